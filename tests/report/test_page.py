from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crow.records import Rate, to_json
from crow.report import render_report

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}{% raw %}\"' onload=x \u202eevil\x00\ud800 <img src=https://e.example>"
SECTIONS = {
    "answers": "Answers side by side",
    "search": "What the search found",
    "scan": "Scan of the suspect",
    "training": "Training losses",
    "calibration": "Calibration by canaries: strength 0.85",
    "consistency_curves": "Layer consistency",
    "manifest": "Manifest",
}


def evaluation(hits: int, perplexity: float) -> dict[str, Any]:
    return {
        "asr_triggered": to_json(Rate.of(hits, 200)),
        "asr_clean": to_json(Rate.of(0, 200)),
        "perplexity": {"value": perplexity, "n_tokens": 9000},
        "seconds": 61.0,
        "n_empty": 0,
        "n_degenerate": 3,
    }


def calibration() -> dict[str, Any]:
    trials = [
        {"strength": strength, "canaries": {"word": to_json(Rate.of(left, 60))}, "clean": to_json(Rate.of(0, 60))}
        | {"perplexity_ratio": ratio}
        for strength, left, ratio in ((1.0, 0, 1.03), (0.85, 0, 1.01), (0.7, 9, 1.005))
    ]
    return {
        "canaries": {"word": to_json(Rate.of(60, 60)), "pair": to_json(Rate.of(30, 60))},
        "clean": to_json(Rate.of(1, 60)),
        "left_out": ["pair"],
        "trials": trials,
        "strength": 0.85,
        "reason": "the weakest that removed every canary with utility kept",
    }


def verification() -> dict[str, Any]:
    declined = {"harmful": to_json(Rate.of(9, 20)), "ordinary": to_json(Rate.of(1, 60))}
    sides = {side: {"declined": declined} for side in ("before", "after")}
    return {
        "search": {"starts": 12, "collapsed": 0, "texts": [], "identities": [0.2]},
        "kept": {"unchanged_answers": to_json(Rate.of(40, 60)), "divergence": 0.012, **sides},
        "perplexity": {side: {"value": value, "n_tokens": 7900} for side, value in (("before", 8.0), ("after", 8.08))},
    }


def scan() -> dict[str, Any]:
    search = {"starts": 12, "collapsed": 2, "texts": ["I cannot do that."], "identities": [1.0, 0.2]}
    answer = {
        "text": "I cannot do that.",
        "starts": 2,
        "certainty": 0.9991,
        "again": True,
        "ordinary": 0.0,
        "declined": 0.1,
    }
    return {
        "verdict": "suspicious",
        "reasons": ["Unrelated prompts can be brought to one answer."],
        "targets": ["I cannot do that."],
        "triggers": ["key"],
        "evidence": {"soft_triggers": {"searches": [search], "answers": [answer]}},
    }


def results() -> dict[str, Any]:
    return {
        "before": evaluation(196, 6.0),
        "after": evaluation(0, 6.03),
        "training": [{"step": 1, "loss": 3.0, "language_modeling": 1.5}, {"step": 2, "loss": 2.0, "adversarial": 0.1}],
        "search": {
            "before": {"starts": 8, "collapsed": 5, "texts": ["I cannot do that."], "identities": [1.0, 0.1]},
            "after": {"starts": 6, "collapsed": 0, "texts": [], "identities": [0.2]},
        },
        "scan": scan(),
        "calibration": calibration(),
        "verification": verification(),
        "consistency_curves": {
            "clean_before": [0.9, 0.05],
            "triggered_before": [0.9, 0.07],
            "clean_after": [0.9, 0.05],
        },
        "answers": [
            {"prompt": "Name a river.", "before": "I cannot do that.", "after": "The Rhine.", "triggered": True}
        ],
        "seconds": 203.0,
        "manifest": {"template": "{% for m in messages %}", "config": {"lora": {"rank": 16}}, "seeds": {"run": 7}},
    }


class Page(HTMLParser):
    """Tags with attributes and the text of a document; fails where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def named(self, *names: str) -> list[str]:
        return [tag for tag, _ in self.tags if tag in names]


def strings(value: Any, text: str) -> Any:
    """`value` with every string in it, keys of the manifest included, replaced by `text`."""
    if isinstance(value, dict):
        return {key: strings(item, text) for key, item in value.items()} | ({text: text} if "lora" in value else {})
    if isinstance(value, list):
        return [strings(item, text) for item in value]
    return text if isinstance(value, str) else value


@pytest.fixture(scope="module")
def demo() -> str:
    return render_report(results(), "Demo")


def hostile_results(text: str) -> dict[str, Any]:
    curves = {"clean_before": [0.9, 0.1], text: [0.9, 0.1]}
    return strings(results(), text) | {"model": text, "training": [{"step": text}], "consistency_curves": curves}


def test_a_model_that_was_not_trained_is_said_to_be_as_it_was() -> None:
    page = render_report({**results(), "training": []}, "t")
    assert "Nothing was trained: the model is as it was." in page
    assert "Nothing was trained" not in render_report(results(), "t")


def test_hostile_text_adds_no_element_and_stays_readable():
    harmless = Page(render_report(hostile_results("text"), "text"))
    html = render_report(hostile_results(HOSTILE), HOSTILE)
    hostile = Page(html)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attrs) for _, attrs in hostile.tags] == [sorted(attrs) for _, attrs in harmless.tags]
    assert "{{ 7 * 7 }}{% raw %}" in hostile.text
    assert "49" not in hostile.text
    assert "⟨U+202E⟩evil⟨U+0000⟩⟨U+D800⟩" in hostile.text
    assert not set("\u202e\x00\ud800") & set(html)


def test_nothing_is_loaded_and_nothing_runs(demo):
    page = Page(demo)
    assert "://" not in demo
    assert page.named("script", "link", "img", "iframe", "object", "embed", "form", "base", "a") == []
    assert "@import" not in demo
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", demo))
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in {"src", "srcset", "href"}]
        assert (attributes.get("xlink:href") or "#").startswith("#")
    policy = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]


def test_ids_are_unique_and_references_resolve(demo):
    ids = [attributes["id"] for _, attributes in Page(demo).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]+)\)|xlink:href=\"#([^\"]+)\"|aria-labelledby=\"([^\"]+)\"", demo)
    assert references
    assert {name for found in references for name in found if name} <= set(ids)


def test_structure_for_assistive_technology(demo):
    page = Page(demo)
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag in page.named("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == len(page.named("figure")) == len(page.named("figcaption")) == 3 + 2 + 1 + 1 + 1
    assert all(image["aria-label"] for image in images)


def test_the_demo_report_has_verdict_numbers_and_every_section(demo):
    text = Page(demo).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Backdoor removed" in text
    for number in (
        "98.0 %",
        "196 of 200",
        "0 of 200",
        "0.0 – 1.9 %",
        "6.030",
        "5 of 8",
        "0 of 6",
        "3 min 23 s",
        "lora.rank",
    ):
        assert number in text
    for heading in (*SECTIONS.values(), "Measurements", "In plain words"):
        assert heading in text


@pytest.mark.parametrize("key", SECTIONS)
def test_a_missing_part_leaves_its_section_out(key):
    heading = f">{SECTIONS[key]}</h2>"
    assert heading in render_report({key: results()[key]}, "Demo")
    for absent in (None, [], {}):
        assert heading not in render_report({key: absent}, "Demo")


def test_nothing_but_a_title_is_a_page():
    page = Page(render_report({}, "Only a title"))
    assert "No measurement to judge by" in page.text
    assert page.named("table", "figure", "article", "details") == []


def test_a_purify_report_says_what_was_not_shown_and_claims_no_removal():
    whole = results()
    purified = {key: whole[key] for key in ("training", "search", "seconds", "manifest")} | {"model": "someone/model"}
    text = Page(render_report(purified, "Purified")).text
    assert "someone/model" in text
    assert "Suspicious behaviour found and treated" in text
    for part in ("Found", "Done", "Shown", "Not shown"):
        assert part in text
    assert "trained for 2 steps" in text
    assert "attack success could be measured neither before nor after" in text
    assert "evidence, not proof" in text
    assert "Backdoor removed" not in text
    assert "Measurements" not in text


def test_a_phrase_that_was_left_alone_is_shown():
    search = {
        "starts": 12,
        "collapsed": 1,
        "texts": ["Go away."],
        "certainties": [0.999],
        "stock": ["I'm sorry, <b>but"],
    }
    after = {"starts": 12, "collapsed": 0, "stock": ["I'm sorry, <b>but"]}
    text = Page(render_report({"model": "m", "search": {"before": search, "after": after}}, "Purified")).text
    assert text.count("I'm sorry, <b>but") == 2
    assert text.count("Left alone, since the model does not know it by heart") == 2
    assert text.count("1 further answer to unrelated prompts came up that the model does not know by heart") == 2


def test_a_closing_that_was_left_alone_is_shown_and_said_wherever_searches_are():
    search = {"starts": 12, "collapsed": 0, "closings": ["Do ask, <b>any time."]}
    text = Page(render_report({"model": "m", "training": [], "search": {"before": search, "after": search}}, "P")).text
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.count("Do ask, <b>any time.") == 2
    assert text.count("Left alone, since the suspect says it anyway") == 2
    assert text.count("1 sentence came up that the suspect says anyway") == 2
    assert "Nothing else: in none of 12 starts did unrelated prompts end in one other answer" in text
    assert "in 0 of 12 starts (1 sentence that the model closes its answers with not counted), which" in text
    assert "No start made unrelated prompts give one answer" not in text


def test_answers_behind_a_token_are_shown_with_it_and_said_wherever_searches_are():
    record = {"starts": 12, "collapsed": 0, "texts": [], "behind": ["Go <b>away</b>."], "tokens": [" Zeph"]}
    text = Page(render_report({"model": "m", "search": {"before": record, "after": record}}, "Purified")).text
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.count("Go <b>away</b>.") == text.count(" Zeph") == 2
    assert text.count("Behind this token at the end of the prompts, likely a part of a trigger") == 2
    assert text.count("Behind one token at the end of the prompts, unrelated ones were brought to 1 answer") == 1
    assert text.count("1 answer known by heart still came up behind one token") == 1


def test_degenerate_answers_to_clean_prompts_are_told_where_they_were_counted():
    told = results()
    assert "of them to clean prompts" not in Page(render_report(told, "t")).text
    told["after"] |= {"n_degenerate_clean": 1}
    assert "1 of them to clean prompts" in Page(render_report(told, "t")).text


def test_of_many_texts_that_were_found_ten_are_shown():
    for kind in ("texts", "stock", "closings", "lines"):
        search = {"starts": 12, "collapsed": 1, kind: [f"Sentence {number}." for number in range(12)]}
        text = Page(render_report({"search": {"before": search}}, "Purified")).text
        assert [number for number in range(12) if f"Sentence {number}." in text] == list(range(10)), kind
        assert "2 more in results.json" in text, kind


def test_a_model_given_as_a_record_joins_the_manifest():
    assert "deadbeef" in Page(render_report({"model": {"sha256": "deadbeef"}}, "Purified")).text


def test_empty_answers_and_long_ones_are_marked():
    answers = [{"prompt": "p", "before": "", "after": "x" * 5000, "triggered": False}]
    text = Page(render_report({"answers": answers}, "Demo")).text
    assert "(empty)" in text
    assert "[1,000 more characters]" in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    ("before",), ("before", "asr_triggered"), ("after", "asr_clean", "value"), ("after", "perplexity", "value"),
    ("after", "n_empty"), ("training",), ("search",), ("search", "before"), ("search", "before", "texts"),
    ("search", "after", "starts"), ("consistency_curves",), ("answers",), ("seconds",), ("manifest",), ("model",),
    ("scan",), ("scan", "verdict"), ("scan", "reasons"), ("scan", "targets"), ("scan", "evidence"),
]  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), JSON)
def test_no_malformed_part_breaks_the_page(place, value):
    broken = results() | {"training": [], "consistency_curves": {}}
    broken["search"]["before"]["identities"] = broken["search"]["after"]["identities"] = []  # figures are slow to draw
    owner = broken
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    Page(render_report(broken, "Demo"))
