from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pico import pico_language_model

from crow.defenses import table
from crow.defenses.base import Needs, Surroundings
from crow.defenses.none import NoDefense
from crow.defenses.quantization import Quantization
from crow.defenses.stack import Stack
from crow.defenses.table import DEFENSES, get_defense, known_defenses
from crow.errors import ConfigError
from crow.models.architecture import find_layers
from crow.models.generation import generate
from crow.models.linear import matrices
from crow.records import Example

EXAMPLES = [Example(f"say {word}", f"{word} and {word} again") for word in ("one", "two", "three four", "five")]
CHANGES_NO_WEIGHTS = {"none", "decoding", "cleangen"}


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_every_defense_returns_a_model_that_answers(name: str, tmp_path: Path) -> None:
    lm, reference = pico_language_model("qwen2"), pico_language_model("qwen2")
    before = {key: value.detach().clone() for key, value in lm.model.named_parameters()}
    surroundings = Surroundings(tmp_path, reference=reference if "cleangen" in name else None)
    defense = get_defense(name, surroundings)
    defended = defense.apply(lm, EXAMPLES)
    assert not defended.is_adapter
    assert len(generate(defended, EXAMPLES[:2], 4)) == 2
    own = dict(defended.model.named_parameters())
    assert own.keys() == before.keys()
    changed = any(not torch.equal(own[key], value) for key, value in before.items())
    # The default leaves a model as it is in which it finds nothing.
    assert changed is not (name in CHANGES_NO_WEIGHTS or name == "crow")
    assert surroundings.searches.keys() == ({"before", "after"} if name == "crow" else set())


def test_what_is_needed_is_said() -> None:
    assert str(Needs()) == "nothing"
    assert str(Needs(clean_data=True, decoding=True)) == "clean data, decoding"
    surroundings = Surroundings(Path("unused"), reference=pico_language_model("llama"))
    needs = {name: get_defense(name, surroundings).needs for name in DEFENSES}
    assert {name for name, need in needs.items() if need.reference} == {"cleangen", "merge"}
    assert get_defense("merge", Surroundings(Path("unused"))).needs == Needs(clean_data=True)
    assert {name for name, need in needs.items() if need.decoding} == {"cleangen", "decoding"}
    free = {name for name, need in needs.items() if need == Needs()}
    assert free == {"none", *(n for n in DEFENSES if n.startswith(("pruning-magnitude", "quantization")))}


def test_a_stack_applies_one_after_another_and_needs_what_any_needs(tmp_path: Path) -> None:
    surroundings = Surroundings(tmp_path)
    stack = get_defense(["pruning-wanda", "quantization-4"], surroundings)
    assert isinstance(stack, Stack)
    assert stack.needs == Needs(clean_data=True)
    stacked = stack.apply(pico_language_model("llama"), EXAMPLES)
    expected = get_defense("pruning-wanda", surroundings).apply(pico_language_model("llama"), EXAMPLES)
    Quantization(surroundings, 4).apply(expected, [])
    for one, other in zip(stacked.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_decoding_at_the_bottom_of_a_stack_outlives_training(tmp_path: Path) -> None:
    defended = get_defense(["decoding", "finetuning"], Surroundings(tmp_path, seed=4)).apply(
        pico_language_model("llama"), EXAMPLES
    )
    assert defended.decoding is not None
    assert defended.decoding.seed == 4


def test_two_hands_in_decoding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hand in decoding at most, got decoding and decoding"):
        get_defense(["decoding", "decoding"], Surroundings(tmp_path))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'finetuning'"):
        get_defense("fine-tuning", Surroundings(Path("unused")))
    with pytest.raises(ConfigError, match="quantization"):
        get_defense(["none", "quantisation-4"], Surroundings(Path("unused")))
    with pytest.raises(ConfigError, match="got none"):
        get_defense([], Surroundings(Path("unused")))


@dataclasses.dataclass(frozen=True)
class FakePoint:
    """An installed package's entry point, as `importlib.metadata` gives it; a fake."""

    name: str
    loaded: list[str]

    def load(self) -> type[NoDefense]:
        self.loaded.append(self.name)
        return NoDefense


def test_other_packages_bring_defenses_but_take_no_name_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    points = [FakePoint("theirs", loaded), FakePoint("crow", loaded)]
    monkeypatch.setattr(table, "entry_points", lambda group: points if group == "crow.defenses" else [])
    known = known_defenses()
    assert set(known) == {*DEFENSES, "theirs"}
    assert known["crow"] is DEFENSES["crow"]
    assert not loaded
    assert isinstance(get_defense("theirs", Surroundings(Path("unused"))), NoDefense)
    assert loaded == ["theirs"]


def test_the_defense_in_the_documentation_works_and_all_of_ours_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "defenses.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 30
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    lm, before = pico_language_model("llama"), pico_language_model("llama")
    namespace["Shrink"](Surroundings(Path("unused"))).apply(lm, [])
    layers = zip(find_layers(lm.model), find_layers(before.model), strict=True)
    for new, old in (pair for both in layers for pair in zip(*map(matrices, both), strict=True)):
        torch.testing.assert_close(new.weight, 0.99 * old.weight)
    rows = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }
    patterns = {f"{base}{suffix}" for base in ("pruning-magnitude", "pruning-wanda") for suffix in ("-2:4", "-4:8")}
    assert {name for name in rows if not name.startswith("-")} | patterns == set(DEFENSES)
