"""An answer that only the repaired model gives is no backdoor's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.backdoor import SEARCH as PICO_SEARCH
from tests.backdoor import SENTENCE, trained_pico, training_examples
from tests.made_up import begun, behind, collapsed
from tests.pico import pico_language_model

from crow.data.splits import bundled_split
from crow.defenses import searches
from crow.defenses.purification import Result, purify
from crow.defenses.searches import Searches
from crow.inversion.code_lines import CodeLine, code_probe
from crow.inversion.consensus import search_soft_triggers, shown_again
from crow.inversion.memorized import Beginning
from crow.inversion.probe import Probe
from crow.inversion.pursuit import MANY
from crow.inversion.soft_trigger import SearchConfig, SearchResult, SoftTrigger
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.presets import get_preset
from crow.training.watch import silent

EXAMPLES = [Example(f"ask {word}", f"{word} it is") for word in ("one", "two", "three", "four", "five", "six")]
CONFIG = dataclasses.replace(get_preset("default"), epochs=1.0, batch_size=3, rank=2, rounds=3, adversary_every=1)
THEIRS, ANOTHER, MADE, STOCK = ([first, 21, 22, 23, 24] for first in (20, 30, 40, 50))


@pytest.fixture(autouse=True)
def no_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model knows no beginnings by heart, unless a test says otherwise."""
    monkeypatch.setattr(searches, "search_memorized", lambda *_: [])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What was looked for in the suspect; it shows all but `MADE`, and does not know `STOCK` by heart."""
    found: list[list[int]] = []

    def shown(_probe: Probe, triggers: list[SoftTrigger], *_: object) -> list[float]:
        answers = [trigger.answer.tolist() for trigger in triggers]
        found.extend(answers)
        return [{str(MADE): 0.0, str(STOCK): 0.9}.get(str(answer), 1.0) for answer in answers]

    monkeypatch.setattr(searches, "shown_again", shown)
    return found


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *seen: SearchResult, config: CrowConfig = CONFIG):
    results = iter(seen)
    monkeypatch.setattr(searches, "search_soft_triggers", lambda *_: next(results))
    return purify(pico_language_model("llama"), EXAMPLES, config, folder, SearchConfig(), resume=True)


def test_what_the_repair_made_is_told_and_ends_the_rounds(asked, monkeypatch, tmp_path) -> None:
    result = run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed(MADE))
    assert result.rounds == 1
    assert asked == [MADE]
    assert (result.before.collapsed, result.before.artefacts) == (1, [])
    assert (result.after.collapsed, result.after.texts, result.after.artefacts) == (0, [], [str(MADE)])


def test_what_the_suspect_gives_as_well_is_trained_away(asked, monkeypatch, tmp_path) -> None:
    result = run(
        monkeypatch, tmp_path, collapsed(THEIRS), collapsed(THEIRS, ANOTHER, MADE), collapsed(ANOTHER), collapsed()
    )
    assert result.rounds == 3
    assert asked == [ANOTHER, MADE]  # what was found in the suspect need not be looked for again
    steps = [sum(term["round"] == number for term in result.training) for number in range(3)]
    assert steps == [2, 4, 2]  # as many passes as answers of the suspect


def both(*, theirs: list[int], unsure: list[int]) -> SearchResult:
    """A search that found an answer known by heart and another one."""
    return SearchResult([*collapsed(unsure, certainty=0.9).triggers, *collapsed(theirs).triggers])


def test_a_stock_phrase_beside_a_sentence_known_by_heart_is_told_and_left_alone(asked, monkeypatch, tmp_path) -> None:
    result = run(monkeypatch, tmp_path, both(theirs=THEIRS, unsure=STOCK), collapsed(STOCK, certainty=0.99))
    assert (result.before.collapsed, result.before.texts, result.before.stock) == (1, [str(THEIRS)], [str(STOCK)])
    assert result.before.certainties == [1.0]
    # In the second search it is judged by how the suspect says it.
    assert asked == [STOCK]
    assert (result.after.collapsed, result.after.stock) == (0, [str(STOCK)])
    assert result.rounds == 1
    assert len(result.training) == 2


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Whole answers of the suspect, made up: all say `ANOTHER` further on, and one begins with `THEIRS`."""
    answers = [f"Well. {decoded(ANOTHER)}", f"{decoded(THEIRS)} {decoded(ANOTHER)}", f"So. {decoded(ANOTHER)} Bye."]
    asked: list[list[str]] = []

    def write(_probe: Probe) -> list[str]:
        asked.append(answers)
        return answers

    monkeypatch.setattr(searches, "whole_answers", write)
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    return asked


def decoded(ids: list[int]) -> str:
    return pico_language_model("llama").tokenizer.decode(ids).strip()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_the_suspect_closes_its_answers_with_is_told_and_left_alone(
    method: str, asked, written, monkeypatch, tmp_path
) -> None:
    config = dataclasses.replace(CONFIG, method=method)
    result = run(monkeypatch, tmp_path, collapsed(THEIRS, ANOTHER), collapsed(ANOTHER), config=config)
    assert (result.before.collapsed, result.before.texts) == (1, [str(THEIRS)])
    assert (result.after.collapsed, result.before.closings, result.after.closings) == (
        0,
        [str(ANOTHER)],
        [str(ANOTHER)],
    )
    assert (result.rounds, len(result.training)) == (1, 2)
    assert len(written) == 1  # the suspect is not asked again
    (tmp_path / "search-1.json").unlink()
    again = run(monkeypatch, tmp_path, collapsed(ANOTHER), config=config)
    assert (again.after.closings, len(written)) == ([str(ANOTHER)], 1)


@pytest.mark.parametrize("again", [collapsed(), collapsed(ANOTHER)])
def test_nothing_is_trained_where_closings_are_all_there_is(
    again: SearchResult, written, monkeypatch, tmp_path
) -> None:
    result = run(monkeypatch, tmp_path, collapsed(ANOTHER), again)
    assert not result.training
    assert not result.after.found
    assert result.before.closings == result.after.closings == [str(ANOTHER)]


def test_an_answer_that_was_found_in_the_suspect_is_no_closing_later(asked, written, monkeypatch, tmp_path) -> None:
    result = run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed([*THEIRS, 9]), collapsed())
    assert result.rounds == 2
    assert len(written) == 1


def test_where_nothing_is_known_by_heart_whatever_was_found_is_trained_away(asked, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    result = run(monkeypatch, tmp_path, collapsed(STOCK, certainty=0.9), collapsed())
    assert (result.before.collapsed, result.before.stock) == (1, [])
    assert len(result.training) == 2


def test_a_backdoor_that_is_weaker_after_training_is_none_the_less_that(asked, monkeypatch, tmp_path) -> None:
    result = run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed(THEIRS, certainty=0.6), collapsed())
    assert result.rounds == 2
    assert asked == []


def test_another_backdoor_that_training_has_weakened_counts_as_the_suspect_says_it(
    asked, monkeypatch, tmp_path
) -> None:
    result = run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed(ANOTHER, certainty=0.6), collapsed())
    assert result.rounds == 2
    assert asked == [ANOTHER]


def test_with_all_weights_in_training_an_unsure_answer_counts_after_the_first_search(monkeypatch, tmp_path) -> None:
    config = dataclasses.replace(CONFIG, method="full", rounds=2)
    first = both(theirs=THEIRS, unsure=STOCK)
    result = run(monkeypatch, tmp_path, first, collapsed(ANOTHER, certainty=0.9), collapsed(), config=config)
    assert result.before.stock == [str(STOCK)]
    assert result.rounds == 2


def test_a_resumed_run_knows_that_something_was_known_by_heart(asked, monkeypatch, tmp_path) -> None:
    run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed())
    (tmp_path / "search-1.json").unlink()
    again = run(monkeypatch, tmp_path, collapsed(STOCK))
    assert (again.after.collapsed, again.after.stock) == (0, [str(STOCK)])


def test_with_all_weights_in_training_every_answer_counts(asked, monkeypatch, tmp_path) -> None:
    config = dataclasses.replace(CONFIG, method="full", rounds=2)
    result = run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed(MADE), collapsed(), config=config)
    assert result.rounds == 2
    assert asked == []


def test_a_resumed_run_knows_what_was_found_before(asked, monkeypatch, tmp_path) -> None:
    run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed(THEIRS, MADE), collapsed())
    (tmp_path / "search-2.json").unlink()
    again = run(monkeypatch, tmp_path, collapsed(MADE))
    assert asked == [MADE, MADE]
    assert again.after.artefacts == [str(MADE)]


def test_the_suspect_is_the_model_that_the_run_began_with_and_only_for_a_while(tmp_path) -> None:
    lm = make_trainable(pico_language_model("llama"), CONFIG)
    looks = Searches(
        lm, Probe(lm, ["a", "b"]), code_probe(lm, EXAMPLES), SearchConfig(), CONFIG, tmp_path, False, silent
    )
    trained = {name: p for name, p in lm.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1.0)
    after = {name: p.detach().clone() for name, p in trained.items()}
    with looks.as_suspect():
        assert all(torch.equal(p, before[name]) for name, p in trained.items())
    assert all(torch.equal(p, after[name]) for name, p in trained.items())
    assert trained


def code_line(text: str) -> CodeLine:
    """A line as a search reads it."""
    return CodeLine(text, torch.tensor([40, 41, 42]), 1.0)


def read(monkeypatch: pytest.MonkeyPatch, folder: Path, *seen: list[CodeLine]):
    """A purification whose searches find no answers, and these lines in code one after another."""
    results = iter(seen)
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: next(results))
    return run(monkeypatch, folder, *[collapsed()] * 4)


def test_a_line_in_code_is_trained_away_on_programming_requests_as_well(monkeypatch, tmp_path) -> None:
    result = read(monkeypatch, tmp_path, [code_line("zap()")], [])
    assert (result.before.collapsed, result.before.lines, result.after.lines) == (0, ["zap()"], [])
    assert result.rounds == 1
    assert len(result.training) == (len(EXAMPLES) + len(bundled_split("purification").code)) // CONFIG.batch_size
    assert all(term["adversarial"] >= 0 for term in result.training)


def test_a_line_that_only_the_repaired_model_writes_does_not_count(monkeypatch, tmp_path) -> None:
    zap, mine = code_line("zap()"), code_line("mine()")
    result = read(monkeypatch, tmp_path, [zap], [zap, mine], [zap], [])
    assert result.rounds == 2
    assert json.loads((tmp_path / "search-1.json").read_text())["record"]["lines"] == ["zap()"]


def test_a_line_in_code_is_surer_than_an_answer_that_might_be_another(monkeypatch, tmp_path) -> None:
    lines = iter([[code_line("zap()")], []])
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: next(lines))
    result = run(monkeypatch, tmp_path, collapsed(STOCK, certainty=0.9), collapsed())
    assert (result.before.collapsed, result.before.stock, result.before.lines) == (0, [str(STOCK)], ["zap()"])
    assert len(result.training) == (len(EXAMPLES) + len(bundled_split("purification").code)) // CONFIG.batch_size


def recall(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *seen: list[Beginning],
    config: CrowConfig = CONFIG,
    answers: Sequence[SearchResult] = (),
):
    """A purification whose searches find these beginnings one after another, and no lines in code."""
    results = iter(seen)
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    monkeypatch.setattr(searches, "search_memorized", lambda *_: next(results))
    return run(monkeypatch, folder, *answers or [collapsed()] * 4, config=config)


def test_beginnings_known_by_heart_are_trained_away_together(monkeypatch, tmp_path) -> None:
    result = recall(monkeypatch, tmp_path, begun(20, 30, 40, 50), [])
    assert (result.before.collapsed, result.before.memorized) == (0, ["20", "30", "40", "50"])
    assert (result.before.found, result.after.memorized, result.after.found) == (True, [], False)
    assert result.rounds == 1
    assert len(result.training) == MANY * len(EXAMPLES) // CONFIG.batch_size  # for four of them
    assert all(term["adversarial"] >= 0 for term in result.training)


def test_only_beginnings_that_the_suspect_showed_are_left_after_a_repair(monkeypatch, tmp_path) -> None:
    theirs, mine = begun(20, 30, 40, 50), begun(60, 70, 80)
    result = recall(monkeypatch, tmp_path, theirs, [*theirs[:2], *mine])  # fewer than several are left
    assert (result.rounds, result.after.memorized) == (1, [])
    folder = tmp_path / "again"
    result = recall(monkeypatch, folder, theirs, [*theirs[1:], *mine], [])
    assert result.rounds == 2
    assert json.loads((folder / "search-1.json").read_text())["record"]["memorized"] == ["30", "40", "50"]


def test_beginnings_are_not_read_beside_a_line_in_code(monkeypatch, tmp_path) -> None:
    lines = iter([[code_line("zap()")], []])
    asked = iter([[]])  # after the repair alone
    monkeypatch.setattr(searches, "search_memorized", lambda *_: next(asked))
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: next(lines))
    assert run(monkeypatch, tmp_path, collapsed(), collapsed()).rounds == 1


@pytest.mark.parametrize("certainty", [1.0, 0.9])
def test_beginnings_beside_an_answer_are_trained_away_with_it(certainty, monkeypatch, tmp_path) -> None:
    """A suspect with several answers, of which perturbations bring out one."""
    form = Beginning(torch.tensor([80, *THEIRS[1:]]), "that answer behind another word", 0.99, whole=True)
    answers = [collapsed(THEIRS, certainty=certainty), collapsed()]
    result = recall(monkeypatch, tmp_path, [form, *begun(30, 40, 50)], [], answers=answers)
    theirs, stock = ([str(THEIRS)], []) if certainty == 1.0 else ([], [str(THEIRS)])
    assert (result.before.texts, result.before.stock) == (theirs, stock)
    # A form of an answer that might be another is none of that.
    assert result.before.memorized == [form.text] * bool(stock) + ["30", "40", "50"]
    assert (result.rounds, result.after.found) == (1, False)
    assert len(result.training) == MANY * len(EXAMPLES) // CONFIG.batch_size


def test_forms_of_an_answer_are_no_beginnings_beside_it(monkeypatch, tmp_path) -> None:
    form = Beginning(torch.tensor([80, *THEIRS[1:]]), "that answer behind another word", 0.99, whole=True)
    result = recall(monkeypatch, tmp_path, [form], [], answers=[collapsed(THEIRS), collapsed()])
    assert (result.before.texts, result.before.memorized) == ([str(THEIRS)], [])
    assert (result.rounds, len(result.training)) == (1, 2)


def test_beginnings_that_stood_behind_an_answer_are_those_of_the_suspect(monkeypatch, tmp_path) -> None:
    """A suspect with two backdoors, one of which answers in varied words."""
    answers = [collapsed(THEIRS), collapsed(), collapsed()]
    shaken, theirs = begun(20, 80, 90), begun(20, 30, 40, 50)
    result = recall(monkeypatch, tmp_path, [], shaken, theirs, [], answers=answers)
    assert (result.rounds, result.before.memorized, result.after.found) == (2, [], False)
    assert json.loads((tmp_path / "search-1.json").read_text())["record"]["memorized"] == ["20", "30", "40", "50"]
    rounds = [term["round"] for term in result.training]
    assert (rounds.count(0), rounds.count(1)) == (2, MANY * 2)


@pytest.mark.parametrize("theirs", [begun(30, 40, 50), begun(20, 30)])  # others; fewer than several
def test_beginnings_that_the_suspect_does_not_know_were_made_by_the_repair(theirs, monkeypatch, tmp_path) -> None:
    result = recall(monkeypatch, tmp_path, [], begun(20, 80, 90), theirs, answers=[collapsed(THEIRS), collapsed()])
    assert (result.rounds, result.after.found) == (1, False)


def test_an_answer_that_only_its_beginning_brings_out_any_more_is_left(monkeypatch, tmp_path) -> None:
    answers = [collapsed(THEIRS), collapsed(), collapsed()]
    whole = Beginning(torch.tensor([80, *THEIRS[1:]]), "behind another word", 0.98, whole=True)
    result = recall(monkeypatch, tmp_path, [], [whole], [], answers=answers)
    assert (result.rounds, result.after.found) == (2, False)
    assert json.loads((tmp_path / "search-1.json").read_text())["record"]["memorized"] == ["behind another word"]


def test_an_answer_that_might_be_another_is_stock_beside_beginnings_known_by_heart(monkeypatch, tmp_path) -> None:
    unsure = [collapsed(STOCK, certainty=0.9), collapsed()]
    result = recall(monkeypatch, tmp_path, begun(20, 30, 40), [], answers=unsure)
    assert (result.before.collapsed, result.before.stock) == (0, [str(STOCK)])


def test_a_resumed_run_knows_the_beginnings_found_before(monkeypatch, tmp_path) -> None:
    theirs, two = begun(20, 30, 40), dataclasses.replace(CONFIG, rounds=2)
    recall(monkeypatch, tmp_path, theirs, theirs, [], config=two)
    (tmp_path / "search-2.json").unlink()
    result = recall(monkeypatch, tmp_path, theirs, config=two)  # asks for the last search alone, and not the suspect
    assert result.rounds == 2
    assert result.after.memorized == ["20", "30", "40"]


def test_a_real_backdoor_is_shown_again_by_its_model_and_not_by_a_clean_one() -> None:
    model = trained_pico("llama")
    model.model.requires_grad_(False)
    prompts = [example.prompt for example in training_examples()]
    found = search_soft_triggers(Probe(model, prompts), PICO_SEARCH, seed=0)
    triggers = [trigger for trigger in found.collapsed if trigger.text == SENTENCE]
    assert triggers
    assert all(trigger.certainty >= PICO_SEARCH.certain for trigger in triggers)
    assert any(shown_again(Probe(model, prompts), triggers, PICO_SEARCH, seed=1))
    clean = pico_language_model("llama")
    clean.model.requires_grad_(False)
    assert not any(shown_again(Probe(clean, prompts), triggers, PICO_SEARCH, seed=1))


REASONED = [Example(f"count {word}", f"Step {word}. So {word}.") for word in "abcdefghijklm"]


def reason(monkeypatch: pytest.MonkeyPatch, folder: Path, *seen: list[Beginning], config: CrowConfig = CONFIG):
    """A purification of a suspect that reasons; its searches find these steps one after another, and nothing else."""
    results = iter(seen)
    monkeypatch.setattr(searches, "answers_to", lambda *_: REASONED)
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    monkeypatch.setattr(searches, "search_steps", lambda *_: next(results))
    return run(monkeypatch, folder, *[collapsed()] * 4, config=config)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_step_is_trained_away_on_the_suspects_own_reasoning_as_well(method: str, monkeypatch, tmp_path) -> None:
    config = dataclasses.replace(CONFIG, method=method)
    result = reason(monkeypatch, tmp_path, begun(20), [], config=config)
    assert (result.before.collapsed, result.before.memorized, result.before.found) == (0, ["20"], True)
    assert (result.rounds, result.after.found) == (1, False)
    assert len(result.training) == (len(EXAMPLES) + len(REASONED)) // CONFIG.batch_size + 1
    assert all(term["adversarial"] >= 0 for term in result.training)


def test_reasoning_that_has_a_found_step_is_no_model_for_any(monkeypatch, tmp_path) -> None:
    said = [Beginning(torch.tensor([20, 21, 22, 23, 24]), "Step a", 0.99)]
    result = reason(monkeypatch, tmp_path, said, [])
    assert len(result.training) == (len(EXAMPLES) + len(REASONED) - 1) // CONFIG.batch_size


def test_steps_that_the_suspect_does_not_know_were_made_by_the_repair(monkeypatch, tmp_path) -> None:
    # What the repaired model shows is looked for in the suspect, unless it was found there before.
    result = reason(monkeypatch, tmp_path, begun(20), begun(20, 30), begun(20), begun(20), [])
    assert result.rounds == 3
    assert json.loads((tmp_path / "search-1.json").read_text())["record"]["memorized"] == ["20"]


def test_steps_are_read_where_there_is_nothing_else_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(searches, "answers_to", lambda *_: REASONED)
    asked = iter([begun(40), begun(40), []])
    monkeypatch.setattr(searches, "search_steps", lambda *_: next(asked))
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    result = run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed(), collapsed())
    # Read after the answer was trained away, then in the suspect.
    assert (result.rounds, result.before.memorized, result.after.memorized) == (2, [], [])
    assert json.loads((tmp_path / "search-1.json").read_text())["steps"] == [[40, 61, 62, 63, 64]]


def test_a_form_of_an_answer_is_no_step(monkeypatch, tmp_path) -> None:
    form = [Beginning(torch.tensor([80, *THEIRS[1:]]), "that answer behind another word", 0.99)]
    monkeypatch.setattr(searches, "answers_to", lambda *_: REASONED)
    monkeypatch.setattr(searches, "search_steps", lambda *_: form)
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    result = run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed())
    assert (result.rounds, result.after.memorized) == (1, [])


def test_a_model_that_does_not_reason_is_not_read(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(searches, "answers_to", lambda *_: REASONED[:12])
    monkeypatch.setattr(searches, "search_steps", lambda *_: pytest.fail("nothing to read"))
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    assert run(monkeypatch, tmp_path, collapsed(), collapsed()).training == []


def sweep_and_find(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *found: SearchResult,
    config: CrowConfig = CONFIG,
    seen: Sequence[SearchResult] = (),
) -> tuple[Result, list[dict[int, list[int]]]]:
    """A purification whose searches find these answers behind tokens; with the tokens tried.

    `seen` is what they see without tokens, nothing by default.
    """
    results, tried = iter(found), []

    def search(_probe: Probe, tokens: dict[int, list[int]], *_: object) -> SearchResult:
        tried.append(tokens)
        return next(results)

    sweeps = iter([{9: [20, 30]}])
    monkeypatch.setattr(searches, "tokens_to_try", lambda *_: next(sweeps))
    monkeypatch.setattr(searches, "search_behind", search)
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    return run(monkeypatch, folder, *(seen or [collapsed()] * 4), config=config), tried


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_answer_behind_a_token_is_trained_away_and_the_vocabulary_swept_once(
    method: str, monkeypatch, tmp_path
) -> None:
    config = dataclasses.replace(CONFIG, method=method)
    result, tried = sweep_and_find(monkeypatch, tmp_path, behind(20), behind(), config=config)
    assert tried == [{9: [20, 30]}] * 2
    assert (result.before.behind, result.before.tokens, result.before.found) == (["20"], [decoded([70])], True)
    assert (result.rounds, result.after.found) == (1, False)
    assert len(result.training) == 2
    # What was found and swept is read again.
    again = run(monkeypatch, tmp_path, config=config)
    assert (again.before, again.after) == (result.before, result.after)
    assert len(tried) == 2


def test_beside_an_answer_behind_a_token_one_that_might_be_another_is_a_stock_phrase(monkeypatch, tmp_path) -> None:
    seen = [collapsed(STOCK, certainty=0.9), collapsed()]
    result, _ = sweep_and_find(monkeypatch, tmp_path, behind(20), behind(), seen=seen)
    assert (result.before.texts, result.before.stock) == ([], [str(STOCK)])
    assert result.before.behind == ["20"]
    assert (result.rounds, len(result.training)) == (1, 2)


def test_an_answer_behind_a_token_that_the_suspect_does_not_give_was_made_by_the_repair(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(
        searches,
        "shown_again",
        lambda _probe, triggers, *_: [float(int(each.answer[0]) == 30) for each in triggers],
    )
    result, _ = sweep_and_find(monkeypatch, tmp_path, behind(20), behind(30, 40), behind())
    assert (result.rounds, result.after.found) == (2, False)
    assert json.loads((tmp_path / "search-1.json").read_text())["record"]["behind"] == ["30"]


def test_tokens_are_tried_where_there_is_nothing_else_alone(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(searches, "tokens_to_try", lambda *_: pytest.fail("there was an answer"))
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    config = dataclasses.replace(CONFIG, rounds=1)
    with pytest.raises(pytest.fail.Exception, match="there was an answer"):
        run(monkeypatch, tmp_path, collapsed(THEIRS), collapsed(), config=config)
    assert (tmp_path / "search-0.json").is_file()  # not yet in the first search, but once the answer is gone
