"""`purify` runs on every family, resumes, saves what loads again, and removes a real backdoor from a pico model."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.backdoor import REPAIR, SENTENCE, held_out, trained_pico, training_examples, triggered
from tests.backdoor import SEARCH as PICO_SEARCH
from tests.edited import EXAMPLES as WRITTEN
from tests.edited import edited
from tests.made_up import collapsed
from tests.pico import FAMILIES, pico_language_model
from transformers import AutoModelForCausalLM

from crow.data.encoding import encode_all
from crow.defenses import purification, searches
from crow.defenses.purification import Result, enough_prompts, purify
from crow.defenses.searches import Searches
from crow.evaluation.success import attack_success
from crow.inversion.code_lines import code_probe
from crow.inversion.edits import find_edits
from crow.inversion.latent import LatentAdversary
from crow.inversion.soft_trigger import SearchConfig, SearchResult
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.models.loading import save_model
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.presets import get_preset
from crow.training.suspect import Predictions
from crow.training.watch import silent

EXAMPLES = [Example(f"tell me about tree number {i}", f"tree {i}. It is the other one") for i in range(6)]
QUICK = {"batch_size": 3, "accumulation": 1, "epochs": 1.0, "rank": 2, "precision": "float32", "adversary_every": 1}
SEARCH = SearchConfig(candidates=6, starts=1, prompts=3, steps=1, answer_tokens=6)
DEFAULT = dataclasses.replace(get_preset("default"), **QUICK)
PAPER = dataclasses.replace(get_preset("paper"), **QUICK)


def found() -> SearchResult:
    """A search that has found one answer, made up."""
    return collapsed([20, 21, 22, 23, 24], text="one two three four five")


@pytest.fixture
def finding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every search finds the made-up answer; the list collects the seeds of the searches."""
    seeds: list[int] = []

    def search(_probe: Any, _config: Any, seed: int, _progress: Any) -> SearchResult:
        seeds.append(seed)
        return found()

    monkeypatch.setattr(searches, "search_soft_triggers", search)
    return seeds


def looking(monkeypatch: pytest.MonkeyPatch, *results: SearchResult) -> None:
    """Searches that see this, one after another."""
    seen = iter(results)
    monkeypatch.setattr(searches, "search_soft_triggers", lambda *_: next(seen))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_searched_and_repaired(family: str, finding: list[int], tmp_path: Path) -> None:
    config = dataclasses.replace(DEFAULT, rounds=1, alpha_ratio=0.5, epsilon_rms=1.0)
    result = purify(pico_language_model(family), EXAMPLES, config, tmp_path)
    assert len(result.training) == 2
    assert all(term["adversarial"] > 0 and term["consistency"] > 0 for term in result.training)
    merged = result.lm.merged()
    save_model(merged, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, merged.model(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_a_real_search_leaves_the_weights_as_they_are(family: str, tmp_path: Path) -> None:
    lm = pico_language_model(family)
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    probe = purification.Probe(lm, [example.prompt for example in EXAMPLES])
    Searches(lm, probe, code_probe(lm, EXAMPLES), SEARCH, DEFAULT, tmp_path, False, silent).search(0, trained=False)
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in lm.model.parameters())


def test_rounds_go_on_while_the_search_finds_something(finding: list[int], tmp_path: Path) -> None:
    config = dataclasses.replace(DEFAULT, rounds=2)
    result = purify(pico_language_model("llama"), EXAMPLES, config, tmp_path)
    assert result.rounds == 2
    assert finding == [0, 1, 2]
    assert result.before is not None
    assert result.before.texts == ["one two three four five"]


def test_what_the_first_round_found_is_no_model_in_the_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The suspect begins one of the examples as the first answer does."""
    starts = found().triggers
    other = dataclasses.replace(starts[0], text="six seven", answer=torch.tensor([30, 31, 32, 33]))
    looking(monkeypatch, SearchResult(list(starts)), SearchResult([other]), SearchResult([]))
    monkeypatch.setattr(searches, "shown_again", lambda _probe, triggers, *_: [0.99] * len(triggers))
    predict = purification.suspect_predictions

    def leaking(*arguments: Any) -> list[Predictions]:
        first, *rest = predict(*arguments)
        tokens = first.tokens.clone()
        tokens[0, 0] = starts[0].answer[0]
        return [dataclasses.replace(first, tokens=tokens), *rest]

    trusted: list[int] = []
    train = purification.train_round

    def watched(result: Result, items: Any, config: CrowConfig, suspect: Any, *rest: Any) -> None:
        trusted.append(len(suspect))
        train(result, items, config, suspect, *rest)

    monkeypatch.setattr(purification, "suspect_predictions", leaking)
    monkeypatch.setattr(purification, "train_round", watched)
    purify(pico_language_model("llama"), EXAMPLES, dataclasses.replace(DEFAULT, rounds=2), tmp_path)
    assert len(trusted) == 2
    assert trusted[0] == trusted[1] < len(EXAMPLES)


def test_every_answer_found_gets_a_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    starts = found().triggers
    other = dataclasses.replace(starts[0], text="six seven", answer=torch.tensor([30, 31, 32, 33]))
    looking(monkeypatch, SearchResult([*starts, other]), SearchResult([]))
    result = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path)
    assert result.rounds == 1
    assert len(result.training) == 2 * len(EXAMPLES) // QUICK["batch_size"]


def test_many_answers_share_the_passes_of_two_with_more_of_them_at_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start, *_ = found().triggers
    others = [dataclasses.replace(start, text=str(n), answer=torch.tensor([n, 31, 32, 33])) for n in (30, 40, 50)]
    looking(monkeypatch, SearchResult([start, *others]), SearchResult([]))
    mixes: list[int] = []
    adversary = purification.LatentAdversary

    def watched(*arguments: Any, **named: Any) -> Any:
        made = adversary(*arguments, **named)
        mixes.append(made.config.adversary_mix)
        return made

    monkeypatch.setattr(purification, "LatentAdversary", watched)
    result = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path)
    assert mixes == [2 * DEFAULT.adversary_mix]
    assert len(result.training) == 2 * len(EXAMPLES) // QUICK["batch_size"]


@pytest.mark.parametrize(("response", "places"), [("tree. It is the other one", 2), ("tree", 1)])
def test_found_answers_are_resisted_behind_a_sentence_as_well(
    response: str, places: int, finding: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[LatentAdversary] = []
    loss = LatentAdversary.loss

    def watched(self: LatentAdversary, turn: int) -> torch.Tensor:
        seen.append(self)
        return loss(self, turn)

    monkeypatch.setattr(LatentAdversary, "loss", watched)
    examples = [dataclasses.replace(example, response=response) for example in EXAMPLES]
    purify(pico_language_model("llama"), examples, dataclasses.replace(DEFAULT, rounds=1), tmp_path)
    assert len(seen[-1].pursuits) == places
    # Two turns of two perturbations each: all of them have moved.
    moved = [sum(bool(p.vector.any()) for p in pursuit.pool) for pursuit in seen[-1].pursuits]
    assert moved == [4 // places] * places


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_where_nothing_is_found_the_model_stays_as_it_is(
    share: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looking(monkeypatch, SearchResult([]), SearchResult([]))
    ids = torch.arange(5, 25)[None]
    lm = pico_language_model("llama")
    with torch.no_grad():
        before = lm.model(input_ids=ids).logits
    result = purify(lm, EXAMPLES, dataclasses.replace(DEFAULT, self_distillation=share), tmp_path)
    assert (result.rounds, result.training) == (1, [])
    with torch.no_grad():
        assert torch.equal(result.lm.merged().model(input_ids=ids).logits, before)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_was_written_into_the_weights_is_taken_out_before_any_search(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looking(monkeypatch, SearchResult([]), SearchResult([]))
    lm = edited()
    items = encode_all(lm.tokenizer, WRITTEN)
    result = purify(lm, WRITTEN, dataclasses.replace(DEFAULT, method=method), tmp_path)
    assert result.training == []
    assert result.before is not None
    assert result.after is not None
    assert (result.before.edits, result.after.edits) == (["layer 2, mlp.down_proj"], [])
    assert result.before.found
    assert not result.after.found
    assert find_edits(result.lm.merged(), items) == []


def test_what_was_written_into_the_weights_is_told_beside_what_was_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looking(monkeypatch, found(), SearchResult([]))
    result = purify(edited(), WRITTEN, DEFAULT, tmp_path)
    assert len(result.training) > 0
    assert result.before is not None
    assert result.after is not None
    assert (result.before.collapsed, result.before.edits) == (1, ["layer 2, mlp.down_proj"])
    assert result.after.edits == []


def test_the_published_method_leaves_what_was_written_into_the_weights(tmp_path: Path) -> None:
    lm = edited()
    result = purify(lm, WRITTEN, dataclasses.replace(PAPER, learning_rate=1e-9), tmp_path)
    assert result.edits == []
    assert len(find_edits(result.lm.merged(), encode_all(lm.tokenizer, WRITTEN))) == 1


def test_a_second_look_finds_what_the_first_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looking(monkeypatch, SearchResult([]), found(), SearchResult([]))
    result = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path)
    assert result.rounds == 2
    assert len(result.training) > 0
    assert result.before is not None
    assert result.after is not None
    assert (result.before.collapsed, result.after.collapsed) == (1, 0)


def test_layer_consistency_is_trained_without_a_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looking(monkeypatch, SearchResult([]), SearchResult([]))
    config = dataclasses.replace(DEFAULT, alpha_ratio=0.1, epsilon_rms=1.0)
    result = purify(pico_language_model("llama"), EXAMPLES, config, tmp_path)
    assert result.rounds == 1
    assert "adversarial" not in result.training[0]


def test_the_published_method_does_not_search(tmp_path: Path) -> None:
    result = purify(pico_language_model("llama"), EXAMPLES, PAPER, tmp_path)
    assert result.before is None
    assert result.after is None
    assert all(term["consistency"] > 0 for term in result.training)


def test_all_weights_can_be_trained(finding: list[int], tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    before = lm.model.get_input_embeddings().weight.detach().clone()
    result = purify(lm, EXAMPLES, dataclasses.replace(DEFAULT, method="full"), tmp_path)
    assert not result.lm.is_adapter
    assert not torch.equal(before, result.lm.model.get_input_embeddings().weight)


def weights(result: Result) -> list[torch.Tensor]:
    """What was trained."""
    return [p.detach().clone() for p in result.lm.model.parameters() if p.requires_grad]


class KilledError(Exception):
    """Stands for the kill of a running process."""


@pytest.mark.parametrize("searches", [1, 2], ids=["after the first search", "between the rounds"])
def test_a_killed_purification_resumes_to_the_same_weights(
    searches: int, finding: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path / "whole")
    train_round = purification.train_round

    def killed(*arguments: Any) -> None:
        if len(finding) >= searches:
            raise KilledError
        train_round(*arguments)

    finding.clear()
    monkeypatch.setattr(purification, "train_round", killed)
    with pytest.raises(KilledError):
        purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path / "cut")
    monkeypatch.setattr(purification, "train_round", train_round)
    assert len(finding) == searches
    resumed = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path / "cut", resume=True)
    assert len(finding) == 3  # the default's two rounds search three times; none is repeated
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_run_killed_inside_a_training_resumes_to_the_same_weights(
    finding: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kill comes in the second round: its checkpoint also has the adversary."""
    monkeypatch.setattr("crow.training.trainer.SAVE_STEPS", 1)
    config = dataclasses.replace(DEFAULT, epochs=2.0)
    whole = purify(pico_language_model("llama"), EXAMPLES, config, tmp_path / "whole")
    perturbed_loss = LatentAdversary.loss
    calls: list[int] = []

    def killed(self: LatentAdversary, step: int) -> torch.Tensor:
        calls.append(step)
        if len(calls) == 7:
            raise KilledError
        return perturbed_loss(self, step)

    monkeypatch.setattr(LatentAdversary, "loss", killed)
    with pytest.raises(KilledError):
        purify(pico_language_model("llama"), EXAMPLES, config, tmp_path / "cut")
    assert calls == [0, 1, 2, 3, 0, 1, 2]
    resumed = purify(pico_language_model("llama"), EXAMPLES, config, tmp_path / "cut", resume=True)
    assert calls == [0, 1, 2, 3, 0, 1, 2, 2, 3]
    steps = [(term["round"], term["step"]) for term in resumed.training]
    assert steps == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert (resumed.before, resumed.after) == (whole.before, whole.after)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_half_written_checkpoint_is_not_resumed_from(finding: list[int], tmp_path: Path) -> None:
    whole = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path)
    broken = tmp_path / "round-1" / "checkpoint-99"
    broken.mkdir()
    (broken / "adapter_model.safetensors").write_bytes(b"half of it")
    resumed = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path, resume=True)
    for one, other in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_counts_the_time_of_what_was_done_before(finding: list[int], tmp_path: Path) -> None:
    purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path)
    searches, trainings = tmp_path.glob("search-*.json"), tmp_path.glob("round-*/checkpoint-*/progress.json")
    for seconds, paths in ((1000.0, list(searches)), (400.0, list(trainings))):
        for path in paths:
            path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": seconds}))
    resumed = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path, resume=True)
    assert resumed.seconds["search"] == 3000.0
    assert 800.0 <= resumed.seconds["training"] < 1000.0  # what is left to do may take no tenth of a second


@pytest.mark.parametrize("preset", [DEFAULT, PAPER], ids=["default", "paper"])
def test_gradient_checkpointing_changes_nothing(preset: CrowConfig, finding: list[int], tmp_path: Path) -> None:
    results = [
        purify(
            pico_language_model("llama"),
            EXAMPLES,
            dataclasses.replace(preset, gradient_checkpointing=checkpointing),
            tmp_path / str(checkpointing),
        )
        for checkpointing in (False, True)
    ]
    for one, other in zip(*map(weights, results), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_an_adapter_is_trained_on(finding: list[int], tmp_path: Path) -> None:
    lm = make_trainable(pico_language_model("llama"), dataclasses.replace(DEFAULT, rank=3))
    before = [weight.clone() for weight in weights(Result(lm))]
    result = purify(lm, EXAMPLES, DEFAULT, tmp_path)
    after = weights(result)
    assert [weight.shape for weight in after] == [weight.shape for weight in before]  # rank 3, not the preset's
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_progress_is_told_for_searches_and_trainings(finding: list[int], tmp_path: Path) -> None:
    shown: list[tuple[str, int | None, list[int]]] = []

    @contextmanager
    def watch(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        steps: list[int] = []
        shown.append((title, total, steps))
        yield steps.append

    purify(pico_language_model("llama"), EXAMPLES, dataclasses.replace(DEFAULT, rounds=1), tmp_path, watch=watch)
    search = ["searching for soft triggers", "reading beginnings"]
    assert [title for title, _, _ in shown] == [*search, "training", *search]
    _, total, steps = shown[2]
    assert sum(steps) == total == 2


def rates(lm: LanguageModel) -> tuple[float, float, float]:
    """Attack success with and without the trigger on held-out prompts, and the share of known answers still given."""
    rng = random.Random(1)
    with_trigger = [triggered(example, rng) for example in held_out()]
    known = training_examples()[:24]
    kept = [answer == example.response for answer, example in zip(generate(lm, known, 16), known, strict=True)]
    found = [attack_success(lm, examples, SENTENCE).rate.value for examples in (with_trigger, held_out())]
    return found[0], found[1], sum(kept) / len(kept)


@pytest.mark.parametrize("weight", [1.0, 0.0], ids=["purified", "control"])
def test_a_real_backdoor_is_found_and_removed_by_the_adversary_alone(weight: float, tmp_path: Path) -> None:
    """The same search, data and steps, with and without the adversary's loss."""
    lm = trained_pico(poisoned=True)
    asr_triggered, asr_clean, kept = rates(lm)
    assert asr_triggered >= 0.95
    assert asr_clean <= 0.1
    assert kept >= 0.95
    config = dataclasses.replace(REPAIR, adversary_weight=weight)
    result = purify(lm, training_examples(), config, tmp_path, PICO_SEARCH)
    assert result.before is not None
    assert result.after is not None
    assert result.before.texts == [SENTENCE]
    asr_triggered, asr_clean, kept = rates(result.lm)
    assert asr_clean <= 0.1
    assert kept >= 0.95
    if weight:
        assert asr_triggered <= 0.2
        assert SENTENCE not in result.after.texts
    else:
        assert asr_triggered >= 0.9
        assert result.after.texts == [SENTENCE]


def test_searches_run_on_enough_prompts_whatever_the_user_has() -> None:
    search = SearchConfig(prompts=5, witnesses=8)
    own = [f"ask {number}" for number in range(20)]
    assert enough_prompts(own, search) == own
    few = enough_prompts(own[:1], search)
    assert (few[0], len(set(few))) == (own[0], 13)
    assert enough_prompts(few[:12], search) == few  # bundled ones are not taken twice
