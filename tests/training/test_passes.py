"""The objective in few passes equals the objective in many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from crow.core import consistency_loss, fgsm_perturbation
from crow.data.encoding import collate
from crow.models.hidden_states import capture_hidden_states
from crow.training.adapter import make_trainable
from crow.training.crow_trainer import CrowTrainer
from crow.training.loss import response_loss
from crow.training.passes import KeptPerturbations, settled
from tests.pico import pico_language_model
from tests.training.test_trainer import CROW, encoded, trainable

KEPT = dataclasses.replace(CROW, keep_perturbation=True)


def gradients(trainer: CrowTrainer) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in trainer.lm.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "mixtral"])
def test_two_passes_give_what_the_equations_give_in_three(family: str, checkpointing: bool, tmp_path: Path) -> None:
    lm = make_trainable(pico_language_model(family), CROW)
    if checkpointing:
        lm.model.activation_checkpointing_enable({"use_reentrant": False})
    lm.model.train()
    for module in lm.model.modules():  # passes would drop different units
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    trainer = CrowTrainer(lm, encoded(lm), CROW, tmp_path)
    trainer.alpha, trainer.epsilon = 5.0, 0.01
    batch = collate(encoded(lm)[:3], lm.pad_id)
    mask = batch["attention_mask"]
    trainer.n_real_tokens = mask.sum()

    def consistency(embeddings: torch.Tensor) -> torch.Tensor:
        with capture_hidden_states(lm.model) as captured:
            lm.model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        return consistency_loss(captured.states, mask)

    embeddings = lm.model.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
    step = fgsm_perturbation(embeddings, consistency, 0.01, mask)
    literal = response_loss(lm.model, batch) + 5.0 * consistency(embeddings + step)
    literal.backward()
    expected = gradients(trainer)
    lm.model.zero_grad()
    loss = trainer.compute_loss(lm.model, batch)
    loss.backward()
    torch.testing.assert_close(loss, literal)
    found = gradients(trainer)
    assert expected.keys() == {name for name in found if "lora" in name}
    for name, gradient in expected.items():
        torch.testing.assert_close(gradient, found[name], rtol=1e-3, atol=1e-5)


def test_without_a_step_both_terms_come_from_one_pass(tmp_path: Path) -> None:
    lm = make_trainable(pico_language_model("llama"), CROW)
    trainer = CrowTrainer(lm, encoded(lm), dataclasses.replace(CROW, epsilon=0.0), tmp_path)
    passes: list[object] = []
    lm.model.register_forward_hook(lambda *_: passes.append(None))
    batch = collate(encoded(lm)[:3], lm.pad_id)
    answers, consistency = trainer.answers_and_consistency(lm.model, batch, None)
    assert len(passes) == 1
    torch.testing.assert_close(answers, response_loss(lm.model, batch))
    torch.testing.assert_close(consistency, trainer.perturbed_consistency(lm.model, batch))


def test_a_kept_perturbation_is_the_step_of_the_last_visit(tmp_path: Path) -> None:
    lm = make_trainable(pico_language_model("llama"), KEPT)
    trainer = CrowTrainer(lm, encoded(lm), KEPT, tmp_path)
    batch = trainer._collate(encoded(lm)[:3])
    mask = batch["attention_mask"]
    trainer.n_real_tokens = mask.sum()
    first = trainer.compute_loss(lm.model, batch)
    clean = dataclasses.replace(CROW, epsilon=0.0)
    at_rest = CrowTrainer(lm, encoded(lm), clean, tmp_path / "clean")
    at_rest.n_real_tokens = mask.sum()
    torch.testing.assert_close(first, at_rest.compute_loss(lm.model, batch))
    first.backward()

    def objective(embeddings: torch.Tensor) -> torch.Tensor:
        with capture_hidden_states(lm.model) as captured:
            logits = lm.model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits
        wanted = batch["labels"][:, 1:].flatten()
        answers = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted, ignore_index=-100)
        return answers + 5.0 * consistency_loss(captured.states, mask)

    embeddings = lm.model.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
    step = fgsm_perturbation(embeddings, objective, KEPT.epsilon or 0.0, mask)
    kept = trainer.kept.step(batch["numbers"].tolist(), mask, embeddings, KEPT.epsilon or 0.0)
    torch.testing.assert_close(kept, step)
    torch.testing.assert_close(trainer.compute_loss(lm.model, batch), objective(embeddings + step))


def test_kept_perturbations_know_examples_and_not_rows() -> None:
    kept = KeptPerturbations()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    kept.renew([7, 4], mask, torch.randn(2, 3, 5))
    step = kept.step([4, 9, 7], torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]), torch.zeros(3, 4, 5), 0.5)
    assert torch.equal(step[0, :3], 0.5 * kept.signs[4].float())
    assert torch.equal(step[2, :2], 0.5 * kept.signs[7].float())
    assert not step[1].any()
    assert not step[0, 3].any()
    other = KeptPerturbations()
    other.restore(kept.state())
    assert other.signs.keys() == kept.signs.keys()
    assert torch.equal(other.signs[7], kept.signs[7])


def test_a_run_with_kept_perturbations_lowers_both_terms(tmp_path: Path) -> None:
    lm = make_trainable(pico_language_model("llama"), KEPT)
    trainer = CrowTrainer(lm, encoded(lm), dataclasses.replace(KEPT, epochs=10, epsilon=0.01), tmp_path)
    trainer.run()
    for name in ("language_modeling", "consistency"):
        assert trainer.terms[-1][name] < 0.9 * trainer.terms[0][name]
    assert len(trainer.kept.signs) == 12
    assert all(torch.isfinite(weight).all() for weight in trainable(trainer).values())


def test_a_settled_loss_has_the_gradients_of_the_pass_that_is_gone() -> None:
    weights = [torch.nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(i))) for i in range(3)]
    weights[2].requires_grad_(False)
    squares = (weights[0] ** 2 * 3).sum()
    loss = settled(squares, weights)
    assert all(weight.grad is None for weight in weights)
    with pytest.raises(RuntimeError, match="second time"):
        squares.backward()
    (2 * loss + weights[0].sum()).backward()
    torch.testing.assert_close(loss, squares.detach())
    torch.testing.assert_close(weights[0].grad, 12 * weights[0].detach() + 1)
    assert weights[1].grad is None
    assert weights[2].grad is None
