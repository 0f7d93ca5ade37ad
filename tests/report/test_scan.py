from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from crow.records import to_json
from crow.report.scan import HEADLINES, render_scan
from crow.scan.evidence import WeightEvidence
from tests.report.test_page import HOSTILE, Page, strings
from tests.scan.test_verdict import ADAPTER, FOUND, LEAKED, PHRASE, TURNED, phrases, soft


def results() -> dict[str, Any]:
    found = soft(FOUND)
    found.searches[0].identities.extend([0.9, 0.2])
    leaked = dataclasses.replace(LEAKED, phrases=[])
    evidence = {
        "soft_triggers": found,
        "leakage": leaked,
        "phrases": phrases(PHRASE),
        "consistency": TURNED,
        "adapter": ADAPTER,
        "weights": WeightEvidence([1.2, 7.5], ["layer 2, mlp.down_proj"]),
    }
    stored = to_json(evidence)
    stored["leakage"]["phrases"] = [{"text": "once more", "share": 0.4, "surprise": 30.0}]
    return {
        "model": "somebody/model",
        "verdict": "suspicious",
        "reasons": ["Unrelated prompts can be brought to one answer."],
        "evidence": stored,
        "seconds": 305.0,
        "manifest": {"template": "{% for m in messages %}", "config": {"lora": {"rank": 16}}},
    }


@pytest.mark.parametrize("verdict", list(HEADLINES))
def test_the_page_says_the_verdict_its_reasons_and_what_was_found(verdict: str) -> None:
    page = Page(render_scan({**results(), "verdict": verdict}, "Scan"))
    for text in (
        HEADLINES[verdict],
        "one answer.",
        "Go away now.",
        "0.999.",
        "Sesame",
        "once more",
        "One for all.",
        "Written into: layer 2, mlp.down_proj.",
        "5\N{NO-BREAK SPACE}min 05",
    ):
        assert text in page.text, text
    assert page.named("svg") == ["svg"] * 7


def test_hostile_text_adds_no_element_and_stays_readable() -> None:
    harmless = Page(render_scan(strings(results(), "text"), "text"))
    hostile = Page(render_scan(strings(results(), HOSTILE), HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attrs) for _, attrs in hostile.tags] == [sorted(attrs) for _, attrs in harmless.tags]
    assert hostile.text.count("{{ 7 * 7 }}{% raw %}") >= 8
    assert "49" not in hostile.text
    assert "⟨U+202E⟩" in hostile.text


@pytest.mark.parametrize("evidence", [None, {}, {"phrases": "text", "adapter": [1]}, {"leakage": {"phrases": [3]}}])
def test_what_was_not_looked_at_is_said(evidence: Any) -> None:
    page = Page(render_scan({"verdict": "odd", "evidence": evidence}, "Scan"))
    assert page.named("svg") == []
    assert page.text.count("Not looked at.") == 4
    assert HEADLINES["inconclusive"] in page.text
