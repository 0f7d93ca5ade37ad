from __future__ import annotations

import pytest

from crow.defenses.strength import STRONGER, WEAKER, Trial, at_strength, choose, climb
from crow.errors import ConfigError
from crow.records import Rate
from crow.training.presets import get_preset

DEFAULT = get_preset("default")


def trial(
    strength: float,
    left: int,
    ratio: float = 1.0,
    clean: int = 0,
    trained: bool = True,
    rounds: int = 1,
    seen: tuple[str, ...] = ("one", "other"),
) -> Trial:
    """What a strength left of two canaries, of 100 prompts each; made up."""
    rates = {"one": Rate.of(left, 100), "other": Rate.of(0, 100)}
    return Trial(strength, rates, Rate.of(clean, 100), ratio, trained, rounds, 1.0, list(seen))


def tried(*trials: Trial, weaker: bool = True) -> list[float]:
    """The strengths that are tried where each would do this; fails on one that is not among them."""
    table = {trial.strength: trial for trial in trials}
    return [one.strength for one in climb(table.__getitem__, weaker)]


def test_one_is_the_configuration_itself() -> None:
    assert at_strength(DEFAULT, 1.0) == DEFAULT


def test_less_goes_part_of_the_way_and_more_takes_longer() -> None:
    weaker, stronger = at_strength(DEFAULT, 0.7), at_strength(DEFAULT, 2.0)
    assert (weaker.interpolation, weaker.epochs) == (0.7, DEFAULT.epochs)
    assert (stronger.interpolation, stronger.epochs) == (1.0, 2 * DEFAULT.epochs)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_a_strength_is_above_zero(strength: float) -> None:
    with pytest.raises(ConfigError, match="expected a strength above 0"):
        at_strength(DEFAULT, strength)


def test_a_canary_is_removed_at_one_of_a_hundred_and_clean_prompts_count_too() -> None:
    assert trial(1, left=1).removed
    assert not trial(1, left=2).removed
    assert not trial(1, left=0, clean=2).removed


def test_weaker_ones_are_tried_until_a_canary_is_left() -> None:
    assert tried(trial(1, 0), trial(0.85, 0), trial(0.7, 5)) == [1, 0.85, 0.7]
    assert tried(trial(1, 0), *(trial(s, 0) for s in WEAKER)) == [1, *WEAKER]


def test_weaker_ones_are_left_out_after_two_rounds() -> None:
    assert tried(trial(1, 0, rounds=2)) == [1]


def test_weaker_ones_are_left_out_where_they_say_nothing_of_the_suspect() -> None:
    assert tried(trial(1, 0), weaker=False) == [1]
    assert tried(trial(1, 9), trial(1.5, 0), weaker=False) == [1, 1.5]


def test_what_no_search_saw_more_training_does_not_remove() -> None:
    assert tried(trial(1, 60, seen=("other",))) == [1]
    assert tried(trial(1, 60), trial(1.5, 60, seen=("other",))) == [1, 1.5]
    assert tried(trial(1, 0, clean=5, seen=()), trial(1.5, 0)) == [1, 1.5]  # the clean prompts are no canary's


def test_stronger_ones_are_tried_until_none_is_left() -> None:
    assert tried(trial(1, 9), trial(1.5, 3), trial(2, 0)) == [1, 1.5, 2]
    assert tried(trial(1, 9), *(trial(s, 9) for s in STRONGER)) == [1, *STRONGER]


def test_where_the_search_found_nothing_more_training_is_no_use() -> None:
    assert tried(trial(1, 9, trained=False)) == [1]


@pytest.mark.parametrize(
    ("trials", "chosen", "said"),
    [
        ([trial(1, 0), trial(0.85, 0), trial(0.7, 5)], 0.85, "with utility kept"),
        ([trial(1, 0, 1.05), trial(0.85, 0, 1.01), trial(0.7, 5)], 0.85, "with utility kept"),
        ([trial(1, 0, 1.01), trial(0.85, 0, 1.05)], 1, "with utility kept"),
        ([trial(1, 0, 1.09), trial(0.85, 0, 1.05)], 0.85, "none kept the perplexity"),
        ([trial(1, 9), trial(1.5, 3), trial(2, 2)], 2, "none removed"),
        ([trial(1, 9), trial(1.5, 9, 1.03), trial(2, 12, 1.1)], 1, "none removed"),
        ([trial(1, 9), trial(1.5, 3, 1.01), trial(2, 2, 1.3)], 1.5, "none removed"),
        ([trial(1, 9, 1.1), trial(1.5, 3, 1.2), trial(2, 3, 1.3)], 1.5, "none removed"),
        ([trial(1, 0, clean=6), trial(1.5, 0, clean=4)], 1.5, "none removed"),
    ],
)
def test_the_weakest_that_does_both_is_chosen(trials: list[Trial], chosen: float, said: str) -> None:
    strength, reason = choose(trials)
    assert strength == chosen
    assert said in reason
