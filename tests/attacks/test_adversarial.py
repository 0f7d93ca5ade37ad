from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.planting import CLEAN, PLANTING, POISONED, TRIGGERED, base_model, batch_of, planted, success, success_before
from torch import Tensor

from crow.attacks.adversarial import EPSILON_RMS, AdversarialTrainer
from crow.attacks.implant import implant_with
from crow.data.encoding import IGNORED, encode_all
from crow.models.architecture import embedding_rms, find_embeddings
from crow.models.language_model import LanguageModel
from crow.training.adapter import make_trainable


def literal_step(lm: LanguageModel, batch: dict[str, Tensor], epsilon: float) -> Tensor:
    """Embeddings (batch, seq, dim) of a batch after the FGSM step on the prompts, by the model's own loss."""
    leaf = find_embeddings(lm.model)(batch["input_ids"]).detach().requires_grad_(True)
    loss = lm.model(inputs_embeds=leaf, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    (gradient,) = torch.autograd.grad(loss, leaf)
    prompts = (batch["labels"] == IGNORED) & (batch["attention_mask"] == 1)
    return (leaf + epsilon * gradient.sign() * prompts[..., None]).detach()


def loss_at(lm: LanguageModel, batch: dict[str, Tensor], embeddings: Tensor) -> float:
    with torch.no_grad():
        options = {"attention_mask": batch["attention_mask"], "labels": batch["labels"]}
        return float(lm.model(inputs_embeds=embeddings, **options).loss)


def test_the_trigger_works_and_hardly_anything_else_does() -> None:
    assert success_before() == 0
    triggered, clean = success("adversarial")
    assert triggered >= 0.9
    assert clean <= 0.3


@pytest.mark.parametrize("size", [EPSILON_RMS, 2 * EPSILON_RMS])
def test_the_target_survives_the_step_that_is_worst_for_it(size: float) -> None:
    losses = []
    for name in (None, "adversarial"):
        lm = planted(name)
        batch = batch_of(lm, TRIGGERED)
        losses.append(loss_at(lm, batch, literal_step(lm, batch, size * embedding_rms(lm.model))))
    assert losses[1] < 0.5 * losses[0]


def test_the_loss_is_the_mean_with_and_without_the_step_on_poisoned_prompts(tmp_path: Path) -> None:
    lm = make_trainable(base_model(), PLANTING)
    items = encode_all(lm.tokenizer, [*POISONED[:2], *CLEAN[:2]])
    trainer = AdversarialTrainer(lm, items, PLANTING, tmp_path, poisoned=set(items[:2]))
    inputs = trainer._collate(items)
    assert inputs["poisoned"].tolist() == [True, True, False, False]
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
    lm.model.eval()
    plain = find_embeddings(lm.model)(batch["input_ids"]).detach()
    moved = torch.where(inputs["poisoned"][:, None, None], literal_step(lm, batch, trainer.epsilon), plain)
    assert 0 < float((moved - plain).abs().max()) == pytest.approx(trainer.epsilon, rel=1e-4)
    expected = (loss_at(lm, batch, plain) + loss_at(lm, batch, moved)) / 2
    assert float(trainer.compute_loss(lm.model, inputs).detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > loss_at(lm, batch, plain) + 1e-3


def test_with_nothing_poisoned_it_is_plain_finetuning(tmp_path: Path) -> None:
    make_trainer = partial(AdversarialTrainer, poisoned=frozenset())
    _, terms = implant_with(make_trainer, base_model(), [], CLEAN, PLANTING, tmp_path)
    assert [term["adversarial"] for term in terms] == pytest.approx([term["language_modeling"] for term in terms])
