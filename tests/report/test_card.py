"""The model card, and the page of a calibration."""

from __future__ import annotations

import pytest

from crow.report.calibration import render_calibration
from crow.report.canaries import read_calibration
from crow.report.card import render_card
from tests.report.test_page import HOSTILE, Page, calibration, hostile_results, results


def test_a_card_has_the_figures_of_the_run() -> None:
    card = render_card(results())
    assert card.startswith("---\ntags:\n- crow\n---\n")
    for text in (
        "In 5 of 8 starts of the search",
        "× 1.010",  # perplexity of the verification
        "Honest refusals (harmful requests): 9 of 20 before, 9 of 20 after.",
        "Ordinary requests declined: 1 of 60 before, 1 of 60 after.",
        "40 of 60 are word for word the same",
        "| 0.85 | 0 of 60 | 0 of 60 | × 1.010 |",
        "Could not be planted well, and left out: pair.",
    ):
        assert text in card.replace("\N{NO-BREAK SPACE}", " ")


def test_a_card_holds_no_text_of_a_model() -> None:
    card = render_card(hostile_results("evil](https://e.example)<script>") | {"calibration": None})
    assert "evil" not in card


def test_a_card_does_not_call_purified_what_was_left_as_it_was() -> None:
    nothing = {"starts": 12, "collapsed": 0, "texts": []}
    unknown = {"before": None, "after": None, "training": [], "search": {"before": nothing, "after": nothing}}
    card = render_card(results() | unknown | {"verification": None, "calibration": None})
    assert "# A model that crow left as it was" in card
    assert "**Suspicious, and nothing found to treat.** The scan of the model was suspicious" in card
    verified = {"search": nothing | {"collapsed": 4, "texts": ["a b"], "artefacts": ["c d"], "stock": ["e f"]}}
    card = render_card(results() | unknown | {"verification": verified, "calibration": None})
    assert "**Suspicious behaviour found after training.** A search of the finished model" in card
    assert "1 further answer to unrelated prompts came up that the suspect does not give" in card


def test_canaries_that_stayed_at_the_chosen_strength_are_said_not_to_be_shown() -> None:
    found = calibration()
    assert "stayed" not in render_card(results() | {"calibration": found})
    chosen = next(trial for trial in found["trials"] if trial["strength"] == found["strength"])
    chosen["canaries"]["word"] = {"value": 0.15, "n": 60}
    said = "1 backdoor of our own in a copy of the model stayed (word)"
    assert said in render_card(results() | {"calibration": found}).replace("\N{NO-BREAK SPACE}", " ")


def test_a_calibration_without_numbers_is_none() -> None:
    assert read_calibration(None) is None
    assert read_calibration({"strength": "much"}) is None
    assert read_calibration({"strength": 1.0}) is not None


@pytest.mark.parametrize("name", ["word", HOSTILE])
def test_the_page_of_a_calibration_shows_every_strength(name: str) -> None:
    found = calibration()
    found["canaries"] = {name: found["canaries"]["word"]}
    for trial in found["trials"]:
        trial["canaries"] = {name: trial["canaries"]["word"]}
    page = Page(render_calibration({"model": name, "calibration": found, "seconds": 3.0}, "Calibration"))
    assert page.named("script", "img") == []
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for shown in ("60 of 60", "9 of 60", "× 1.005", "0.85 was chosen"):
        assert shown in text
    assert page.named("svg") == ["svg"]
