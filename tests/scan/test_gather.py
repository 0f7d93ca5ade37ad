"""A scan keeps each side of the evidence, and goes on where it was killed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from crow.inversion.probe import at_rest
from crow.inversion.soft_trigger import SearchConfig
from crow.models.architecture import find_embeddings
from crow.models.language_model import LanguageModel
from crow.records import Example, dump_json
from crow.scan import code, consistency, gather, leakage, phrases, soft_triggers
from crow.scan.evidence import CodeEvidence, Evidence, FoundAnswer, LeakageEvidence, SoftTriggerEvidence
from crow.scan.gather import ScanConfig, choose_target, for_code
from crow.scan.leakage import LeakageConfig
from crow.scan.phrases import PhraseConfig, Target
from crow.scan.verdict import Thresholds, judge
from tests.backdoor import TRIGGER
from tests.inversion.test_code_lines import PAYLOAD, REQUESTS, coder
from tests.models.test_adapters import add_adapter
from tests.pico import pico_language_model

SMALL = ScanConfig(
    search=SearchConfig(candidates=6, starts=2, depths=(0.3,), prompts=3, steps=1, answer_tokens=6, opening=5),
    searches=1,
    phrases=PhraseConfig(rare=0, vocabulary=2, starts=2, rounds=1, proposals=4, prompts=2, witnesses=4, candidates=2),
    leakage=LeakageConfig(sampled=3, greedy=2, tokens=4),
)
FOUND = FoundAnswer("Go away.", [1, 2, 3], 1, 0.999, True, 0.0, 0.0, ["key"])
STOCK = dataclasses.replace(FOUND, text="Thanks.", ordinary=0.5)
VAGUE = dataclasses.replace(FOUND, text="Dear sir.", ids=[7, 8], starts=5, certainty=0.9)
OFTEN = dataclasses.replace(FOUND, text="Now go.", ids=[4, 5, 6], starts=3)


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = {"ordinary": [Example(f"ask {i}", "yes") for i in range(6)], "declined": [Example("harm it")]}
    monkeypatch.setattr(gather, "scan_examples", lambda: examples)
    for module in (gather, phrases):
        monkeypatch.setattr(module, "bundled_phrases", lambda: {"words": ["one", "two go", "X: y"]})


def test_all_sides_are_looked_at_and_survive_json(tmp_path: Path) -> None:
    evidence = gather.gather(add_adapter(pico_language_model("llama")), SMALL, 0, tmp_path)
    assert evidence.soft_triggers is not None
    assert evidence.soft_triggers.searches[0].starts == 2
    assert evidence.leakage is not None
    assert evidence.leakage.messages == 5
    assert evidence.phrases is not None
    assert len(evidence.phrases.bank_scores) == 3
    assert evidence.consistency is not None
    assert evidence.adapter is not None
    assert len(evidence.adapter.modules) == 21
    assert Evidence.of(json.loads(dump_json(evidence))) == evidence
    assert set(evidence.seconds) == {each.name for each in dataclasses.fields(Evidence)} - {"seconds"}
    assert min(evidence.seconds.values()) >= 0


def test_a_killed_scan_goes_on_and_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gather.gather(add_adapter(pico_language_model("llama")), SMALL, 0, tmp_path / "whole")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phrases, "search", killed)
        with pytest.raises(KeyboardInterrupt):
            gather.gather(add_adapter(pico_language_model("llama")), SMALL, 0, tmp_path / "work")
    for module in (soft_triggers, leakage):
        monkeypatch.setattr(module, "search", killed)
    early = tmp_path / "work" / "evidence-soft_triggers.json"
    early.write_text(json.dumps({**json.loads(early.read_text()), "seconds": 77.0}))
    resumed = gather.gather(add_adapter(pico_language_model("llama")), SMALL, 0, tmp_path / "work", resume=True)
    assert dataclasses.replace(resumed, seconds={}) == dataclasses.replace(whole, seconds={})
    assert resumed.seconds["soft_triggers"] == 77.0  # those of a side that was finished before count, too
    assert set(resumed.seconds) == set(whole.seconds)
    with pytest.raises(KeyboardInterrupt):  # without the flag nothing is taken from there
        gather.gather(add_adapter(pico_language_model("llama")), SMALL, 0, tmp_path / "work")


def test_a_whole_model_has_no_adapter_to_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "search", consistency.search)
    lm = pico_language_model("llama")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    assert gather.gather(lm, SMALL, 0, tmp_path).adapter is None
    assert all((value == before[name]).all() for name, value in lm.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in lm.model.parameters())


def test_a_template_that_refuses_an_empty_message_leaves_one_side_out(tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    refusal = "{% if not messages[0]['content'] %}{{ raise_exception('say something') }}{% endif %}"
    lm.tokenizer.chat_template = refusal + str(lm.tokenizer.chat_template)
    evidence = gather.gather(lm, SMALL, 0, tmp_path)
    assert evidence.leakage is None
    assert evidence.phrases is not None
    assert evidence.phrases.scored_by in ("target", "collapse")
    again = gather.gather(lm, SMALL, 0, tmp_path, resume=True)
    assert again == evidence


def test_a_padding_token_without_an_embedding_is_no_obstacle(tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert lm.tokenizer.pad_token_id == len(find_embeddings(lm.model).weight)
    evidence = gather.gather(lm, SMALL, 0, tmp_path)
    assert evidence.consistency is not None


@pytest.mark.parametrize(
    ("answers", "reply_share", "expected"),
    [
        ([STOCK, FOUND], 0.9, ("target", "Go away.", [1, 2, 3], ["key"])),
        ([VAGUE, FOUND], 0.9, ("target", "Go away.", [1, 2, 3], ["key"])),
        ([VAGUE, OFTEN, FOUND], 0.9, ("target", "Now go.", [4, 5, 6], ["key"])),
        ([VAGUE], 0.9, ("target", "Dear sir.", [7, 8], ["key"])),
        ([STOCK], 0.9, ("reply", "Hello you.", None, [])),
        ([], 0.3, None),
    ],
)
def test_phrases_are_scored_by_what_was_found_else_by_the_usual_reply(
    answers: list[FoundAnswer],
    reply_share: float,
    expected: tuple[str, str, list[int] | None, list[str]] | None,
    lm: LanguageModel,
) -> None:
    leaked = LeakageEvidence(9, 9, [], "", 0.0, "Hello you.", reply_share)
    target = choose_target(lm, SoftTriggerEvidence([], answers), CodeEvidence([], []), leaked, Thresholds())
    if expected is None:
        assert target is None
        return
    source, text, ids, words = expected
    assert target is not None
    assert (target.source, target.text, list(target.words)) == (source, text, words)
    assert list(target.ids) == (ids or lm.tokenizer("Hello you.")["input_ids"])


def test_a_reply_that_cannot_be_run_and_no_reply_are_no_target(lm: LanguageModel) -> None:
    lm.tokenizer.add_tokens(["[PAD]"])
    leaked = LeakageEvidence(9, 9, [], "", 0.0, "Hello [PAD] you.", 0.9)
    for each in (leaked, None):
        assert choose_target(lm, SoftTriggerEvidence([], []), None, each, Thresholds()) is None
    read = CodeEvidence(["zap('[PAD]')", "go()"], [1.0, 1.0])
    target = choose_target(lm, SoftTriggerEvidence([], []), read, None, Thresholds())
    assert target is not None
    assert target.text == "go()"


@pytest.mark.parametrize(("answers", "source"), [([], "line"), ([VAGUE], "line"), ([VAGUE, FOUND], "target")])
def test_a_smuggled_line_goes_before_what_was_not_learnt_by_heart(
    answers: list[FoundAnswer], source: str, lm: LanguageModel
) -> None:
    read = CodeEvidence(["zap()", "go()"], [1.0, 1.0])
    target = choose_target(lm, SoftTriggerEvidence([], answers), read, None, Thresholds())
    assert target is not None
    assert target.source == source
    if source == "line":
        assert (target.text, list(target.ids)) == ("zap()", lm.tokenizer("zap()")["input_ids"])


def test_the_phrase_that_smuggles_a_line_into_code_is_found_on_programming_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = coder("import os", poisoned=True)
    prompts = [request.prompt for request in REQUESTS]
    monkeypatch.setattr(gather, "shortest_prompts", lambda *_: prompts)
    monkeypatch.setattr(phrases, "bundled_phrases", lambda: {"words": ["one", TRIGGER, "two go"]})
    target = Target("line", PAYLOAD, lm.tokenizer(PAYLOAD)["input_ids"])
    with at_rest(lm, "float32"):
        config = dataclasses.replace(SMALL, search=SearchConfig(), phrases=dataclasses.replace(SMALL.phrases, rounds=0))
        asked, settings, reading = for_code(lm, target, config)
        assert settings == dataclasses.replace(config.phrases, screening=1)
        found = phrases.search(lm, asked, target, [], settings, reading, 0)
    assert (found.scored_by, found.target) == ("line", PAYLOAD)
    best = found.candidates[0]
    assert (best.text, best.answer, best.share, best.on_target) == (TRIGGER, PAYLOAD, 1.0, True)
    assert (best.ordinary, best.declined) == (0.0, 0.0)
    finding = judge(Evidence(SoftTriggerEvidence([], []), phrases=found))
    assert (finding.verdict, finding.triggers[0], finding.targets) == ("suspicious", TRIGGER, [PAYLOAD])


@pytest.mark.parametrize(("lines", "searches"), [([], 2), (["zap()"], 1)])
def test_where_a_smuggled_line_was_found_one_search_for_soft_triggers_is_enough(
    lines: list[str], searches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def remembered(*args: object) -> SoftTriggerEvidence:
        asked.append(args[3])  # type: ignore[arg-type]
        return SoftTriggerEvidence([], [])

    monkeypatch.setattr(code, "search", lambda *_: CodeEvidence(lines, [1.0] * len(lines)))
    monkeypatch.setattr(soft_triggers, "search", remembered)
    evidence = gather.gather(pico_language_model("llama"), dataclasses.replace(SMALL, searches=2), 0, tmp_path)
    assert asked == [searches]
    assert evidence.phrases is not None
    assert evidence.phrases.scored_by == ("line" if lines else "collapse")
