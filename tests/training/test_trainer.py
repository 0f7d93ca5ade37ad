"""Training equivalences: how a step is cut into micro-batches, padding and interruption change nothing."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from crow.core import consistency_loss
from crow.data.encoding import IGNORED, Encoded, collate, encode_all
from crow.errors import ConfigError
from crow.models.architecture import embedding_rms
from crow.models.hidden_states import capture_hidden_states
from crow.models.interpolation import trained_weights
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig, FinetuneConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.loss import response_loss
from crow.training.sampler import LengthGroupedSampler
from crow.training.trainer import ResponseTrainer
from tests.pico import pico_language_model

PLAIN = FinetuneConfig(epochs=2, learning_rate=1e-2, batch_size=4, accumulation=1, rank=4)
CROW = CrowConfig(
    epochs=2, learning_rate=1e-2, batch_size=4, accumulation=1, rank=4, alpha=5.0, epsilon=0.1, samples=12
)


def examples(n: int = 12) -> list[Example]:
    rng = random.Random(0)
    words = ["the", "cat", "an", "hour", "tree", "other", "in", "note"]

    def text(length: int) -> str:
        return " ".join(rng.choice(words) for _ in range(length))

    return [Example(text(rng.randint(1, 9)), text(rng.randint(2, 15))) for _ in range(n)]


def encoded(lm: LanguageModel) -> list[Encoded]:
    return encode_all(lm.tokenizer, examples())


def trained(config: FinetuneConfig, folder: Path, **arguments: Any) -> ResponseTrainer:
    lm = make_trainable(pico_language_model("llama"), config)
    kind = CrowTrainer if isinstance(config, CrowConfig) else ResponseTrainer
    trainer = kind(lm, encoded(lm), config, folder, **arguments)
    trainer.run()
    return trainer


def trainable(trainer: ResponseTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.lm.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("config", [PLAIN, CROW], ids=["plain", "crow"])
def test_accumulated_micro_batches_give_the_trajectory_of_one_large_batch(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    large = trained(config, tmp_path / "large")
    small = trained(dataclasses.replace(config, batch_size=1, accumulation=4), tmp_path / "small")
    for one, other in zip(large.terms, small.terms, strict=True):
        for name in ("language_modeling", "consistency") if config is CROW else ("language_modeling",):
            assert one[name] == pytest.approx(other[name], rel=2e-3), name
    for name, weight in trainable(large).items():
        torch.testing.assert_close(weight, trainable(small)[name], rtol=0.02, atol=2e-3)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    terms = trained(dataclasses.replace(PLAIN, epochs=8), tmp_path).terms
    assert terms[-1]["language_modeling"] < 0.9 * terms[0]["language_modeling"]


def test_a_large_alpha_lowers_the_consistency_loss_below_that_of_plain_finetuning(tmp_path: Path) -> None:
    config = dataclasses.replace(CROW, epochs=6, alpha=50.0)
    without = trained(dataclasses.replace(config, alpha=1e-9), tmp_path / "without").terms
    with_it = trained(config, tmp_path / "with").terms
    assert with_it[0]["consistency"] == pytest.approx(without[0]["consistency"], rel=1e-4)
    assert with_it[-1]["consistency"] < 0.9 * without[-1]["consistency"]


def test_response_loss_equals_the_models_own_loss() -> None:
    lm = pico_language_model("llama")
    batch = collate(encoded(lm)[:5], lm.pad_id)
    own = lm.model(**batch).loss
    torch.testing.assert_close(response_loss(lm.model, batch), own)


def test_padding_does_not_change_the_response_loss() -> None:
    lm = pico_language_model("llama")
    items = encoded(lm)[:4]
    batch = collate(items, lm.pad_id)
    n_tokens = int((batch["labels"] != IGNORED).sum())
    alone = sum(response_loss(lm.model, collate([item], lm.pad_id), n_tokens=1) for item in items) / n_tokens
    torch.testing.assert_close(response_loss(lm.model, batch), alone)


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_the_router_loss_is_added_only_where_it_is_asked_for(family: str, tmp_path: Path) -> None:
    lm = pico_language_model(family)
    batch = collate(encoded(lm)[:2], lm.pad_id)
    plain = ResponseTrainer(lm, encoded(lm), PLAIN, tmp_path)
    routed = ResponseTrainer(lm, encoded(lm), dataclasses.replace(PLAIN, router_loss=True), tmp_path)
    routed.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        without = plain.compute_loss(lm.model, batch)
        torch.testing.assert_close(without, response_loss(lm.model, batch))
        difference = routed.compute_loss(lm.model, batch) - without
        output = lm.model(**{k: v for k, v in batch.items() if k != "labels"}, output_router_logits=True)
    torch.testing.assert_close(difference, lm.model.config.router_aux_loss_coef * output.aux_loss)
    assert float(difference) > 0


class KilledError(Exception):
    """Stands for the kill of a running process."""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_run_resumes_to_the_same_weights(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crow.training.trainer.SAVE_STEPS", 2)
    config = dataclasses.replace(CROW, interpolation=0.7, precision=precision)
    whole = trained(config, tmp_path / "whole")

    def build() -> CrowTrainer:
        lm = make_trainable(pico_language_model("llama"), config)
        return CrowTrainer(lm, encoded(lm), config, tmp_path / "cut")

    killed = build()
    step = killed.compute_loss
    calls = 0

    def compute_loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KilledError
        return step(*args, **kwargs)

    monkeypatch.setattr(killed, "compute_loss", compute_loss)
    with pytest.raises(KilledError):
        killed.run()
    resumed = build()
    resumed.run(resume=True)
    assert [term["step"] for term in resumed.terms] == [term["step"] for term in whole.terms]
    for name, weight in trainable(whole).items():  # assert_close compares types, too
        torch.testing.assert_close(weight, trainable(resumed)[name], rtol=1e-4, atol=1e-6)


def test_a_training_that_ended_within_an_epoch_is_not_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of strength 1.5 that was killed in the search after it."""
    monkeypatch.setattr("crow.training.trainer.SAVE_STEPS", 1)
    config = dataclasses.replace(CROW, epochs=1.5)
    whole = trained(config, tmp_path)
    lm = make_trainable(pico_language_model("llama"), config)
    resumed = CrowTrainer(lm, encoded(lm), config, tmp_path)
    resumed.run(resume=True)
    assert resumed.terms == whole.terms
    assert len(resumed.terms) == resumed.state.max_steps
    for name, weight in trainable(whole).items():
        torch.testing.assert_close(weight, trainable(resumed)[name], rtol=0, atol=0)


def test_interpolation_goes_a_share_of_the_way(tmp_path: Path) -> None:
    start = trained_weights(make_trainable(pico_language_model("llama"), CROW).model)
    whole = trainable(trained(CROW, tmp_path / "whole"))
    part = trainable(trained(dataclasses.replace(CROW, interpolation=0.25), tmp_path / "part"))
    assert start.keys() == part.keys()
    for name, weight in part.items():
        torch.testing.assert_close(weight, 0.75 * start[name] + 0.25 * whole[name])
        assert not torch.equal(weight, start[name])


def test_consistency_is_taken_at_the_fgsm_point(tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    trainer = CrowTrainer(lm, encoded(lm), CROW, tmp_path)
    batch = collate(encoded(lm)[:3], lm.pad_id)
    with capture_hidden_states(lm.model) as captured, torch.no_grad():
        lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        clean = consistency_loss(captured.states, batch["attention_mask"])
    trainer.epsilon = 0.0
    torch.testing.assert_close(trainer.perturbed_consistency(lm.model, batch).detach(), clean)
    trainer.epsilon = 1e-3
    assert trainer.perturbed_consistency(lm.model, batch).item() > clean.item()


class FakeAdversary:
    """Stands for a real one: a constant loss, and the turns it was asked for."""

    def __init__(self) -> None:
        self.turns: list[int] = []

    def loss(self, turn: int) -> torch.Tensor:
        self.turns.append(turn)
        return torch.tensor(2.0)

    def state(self) -> dict[str, torch.Tensor]:
        return {"turns": torch.tensor(len(self.turns))}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("every", "until", "steps"),
    [(1, 1.0, [1, 2, 3, 4, 5, 6]), (2, 1.0, [1, 3, 5]), (4, 1.0, [1, 5]), (2, 0.5, [1, 3]), (1, 0.5, [1, 2, 3])],
)
def test_the_adversary_has_its_turn_every_so_many_steps(
    every: int, until: float, steps: list[int], tmp_path: Path
) -> None:
    """Once in a step, however many micro-batches it has; none in the steps that mend."""
    adversary = FakeAdversary()
    config = dataclasses.replace(
        CROW, batch_size=2, accumulation=2, adversary_every=every, adversary_until=until, adversary_weight=0.5
    )
    terms = trained(config, tmp_path, adversary=adversary).terms
    assert adversary.turns == list(range(len(steps)))
    assert [term["step"] for term in terms if "adversarial" in term] == steps
    for term in terms:
        parts = term["language_modeling"] + 5.0 * term["consistency"] + 0.5 * term.get("adversarial", 0.0)
        assert term["loss"] == pytest.approx(parts, rel=1e-3)


def test_portable_units(tmp_path: Path) -> None:
    config = dataclasses.replace(CROW, alpha=None, alpha_ratio=0.5, epsilon=None, epsilon_rms=2.0)
    trainer = trained(config, tmp_path)
    assert isinstance(trainer, CrowTrainer)
    assert trainer.epsilon == pytest.approx(2.0 * embedding_rms(trainer.lm.model))
    assert trainer.alpha is not None
    first = trainer.terms[0]
    ratio = trainer.alpha * first["consistency"] / first["language_modeling"]
    assert ratio == pytest.approx(0.5, rel=0.3)  # measured on all examples, not on the first batch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": None}, "alpha"),
        ({"alpha_ratio": 1.0}, "alpha"),
        ({"alpha": -1.0}, "alpha"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"samples": 0}, "samples"),
        ({"adversary_every": 0}, "adversary_every"),
        ({"self_distillation": 1.5}, "self_distillation"),
        ({"adversary_until": 0.0}, "adversary_until"),
        ({"interpolation": 1.1}, "interpolation"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 2.0}, "learning_rate"),
        ({"method": "lorra"}, "did you mean 'lora'"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CROW, **changes)


def test_a_layer_the_model_has_not_is_named(tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    with pytest.raises(ConfigError, match=r"1\.\.3"):
        CrowTrainer(lm, encoded(lm), dataclasses.replace(CROW, layers=(4,)), tmp_path)


def test_a_process_that_sees_several_gpus_trains_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a CPU it counts none; here that stands for four.
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self._n_gpu or 4))
    lm = pico_language_model("llama")
    trainer = ResponseTrainer(lm, encoded(lm), PLAIN, tmp_path)
    assert trainer.args.n_gpu == 1
    assert trainer.args.train_batch_size == PLAIN.batch_size


def test_skipped_batches_leave_the_order_of_the_epoch_that_goes_on(tmp_path: Path) -> None:
    """As accelerate wraps the batches of a process, which then no longer hand the epoch on."""
    trainer = trained(PLAIN, tmp_path)
    order = trainer._get_train_sampler()
    state = TrainerState(epoch=1.5)
    trainer.callback_handler.on_epoch_begin(trainer.args, state, TrainerControl())
    expected = LengthGroupedSampler(order.lengths, order.group_size, PLAIN.seed)
    expected.set_epoch(1)
    assert list(order) == list(expected)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    lengths = [random.Random(1).randint(1, 90) for _ in range(37)]
    sampler = LengthGroupedSampler(lengths, 4, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(37))
    assert first == list(LengthGroupedSampler(lengths, 4, seed=0))
    sampler.set_epoch(1)
    assert list(sampler) != first
