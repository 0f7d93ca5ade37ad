from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.pico import pico_language_model

from crow.data.encoding import encode_all
from crow.defenses import beear, nad
from crow.defenses.base import Surroundings
from crow.defenses.beear import Beear, UniversalDrift
from crow.defenses.consistency import Consistency, PerturbationOnly, finetuning_config, unperturbed_config
from crow.defenses.merge import Merge
from crow.defenses.nad import Nad, attention_distance
from crow.errors import ModelError
from crow.models.hidden_states import edit_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.crow_trainer import CrowTrainer
from crow.training.passes import perturbation
from crow.training.perturbed_trainer import PerturbedTrainer
from crow.training.presets import get_preset

EXAMPLES = [Example(f"say {word}", f"{word} and {word} again") for word in ("one", "two", "three four", "five", "six")]


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in lm.model.named_parameters()}


def test_the_ablations_are_the_published_settings_less_one_part(tmp_path: Path) -> None:
    paper = get_preset("paper")
    assert unperturbed_config() == dataclasses.replace(paper, epsilon=0.0)
    found = []
    original = PerturbedTrainer.__init__

    def remember(self: PerturbedTrainer, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        found.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerturbedTrainer, "__init__", remember)
        PerturbationOnly(Surroundings(tmp_path, seed=3)).apply(pico_language_model("llama"), EXAMPLES)
    assert found[0].crow_config == dataclasses.replace(paper, seed=3)
    assert all("consistency" not in terms and terms["language_modeling"] > 0 for terms in found[0].terms)


def test_plain_finetuning_takes_the_steps_of_the_default_and_nothing_of_its_parts() -> None:
    default, plain = get_preset("default"), finetuning_config()
    for name in ("epochs", "batch_size", "learning_rate", "rank", "max_length", "trained_from"):
        assert getattr(plain, name) == getattr(default, name)
    assert (plain.rounds, plain.self_distillation, plain.alpha_ratio) == (0, 0.0, 0.0)


def test_the_perturbed_loss_is_that_of_the_embeddings_moved_by_fgsm(tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    items = encode_all(lm.tokenizer, EXAMPLES)
    config = dataclasses.replace(get_preset("paper"), epsilon=0.05)
    trainer = PerturbedTrainer(lm, items, config, tmp_path)
    batch = trainer._collate(items[:3])
    embeddings = lm.model.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
    step = perturbation(lm.model, batch, trainer.layers, trainer.epsilon)
    moved = lm.model(inputs_embeds=embeddings + step, attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:]
    rows = torch.nn.functional.cross_entropy(moved[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
    loss = trainer.compute_loss(lm.model, batch, num_items_in_batch=(targets != -100).sum())
    loss = loss.detach()
    assert float(loss) == pytest.approx(float(rows.detach()), rel=1e-4)
    clean = CrowTrainer(lm, items, config, tmp_path).answer_loss(lm.model, batch, (targets != -100).sum())
    assert float(loss) != pytest.approx(float(clean.detach()), rel=1e-4)


def test_attention_maps_are_told_apart_by_their_shape_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 5, 8, generator=generator) for _ in range(3)]
    others = [torch.randn(2, 5, 8, generator=generator) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert float(attention_distance(states, [3 * state for state in states], mask)) == pytest.approx(0, abs=1e-9)
    distance = float(attention_distance(states, others, mask))
    assert 0 < distance < 4
    spoiled = [torch.where(mask[..., None] == 0, 1e3, state) for state in states]
    assert float(attention_distance(spoiled, others, mask)) == pytest.approx(distance, rel=1e-5)


def test_distillation_brings_the_student_nearer_to_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = []
    original = nad.DistillationTrainer.__init__

    def remember(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        trainers.append(self)

    monkeypatch.setattr(nad.DistillationTrainer, "__init__", remember)
    monkeypatch.setattr(nad, "finetuning_config", lambda: dataclasses.replace(finetuning_config(), epochs=20.0))
    before = weights(pico_language_model("llama"))
    lm = Nad(Surroundings(tmp_path)).apply(pico_language_model("llama"), EXAMPLES)
    assert not lm.is_adapter
    changed = [name for name, value in weights(lm).items() if not torch.equal(value, before[name])]
    assert changed
    terms = trainers[0].terms
    assert terms[0]["distillation"] > 0
    assert terms[-1]["distillation"] < terms[0]["distillation"]


@pytest.fixture
def drift() -> UniversalDrift:
    lm = pico_language_model("llama")
    return UniversalDrift(lm, encode_all(lm.tokenizer, EXAMPLES), seed=0)


def test_a_drift_is_found_that_hurts_clean_answers_and_stays_small(drift: UniversalDrift) -> None:
    still = torch.zeros_like(drift.drift)
    drift.loss(0)
    with torch.no_grad():
        assert drift.answers_loss(drift.items, drift.drift) > drift.answers_loss(drift.items, still) + 0.1
    assert (drift.drift.norm(dim=-1) <= drift.radius * 1.001).all()
    assert all(parameter.grad is None for parameter in drift.lm.model.parameters())


def test_a_drift_moves_the_last_tokens_of_every_prompt(drift: UniversalDrift) -> None:
    """As adding it by hand to one unpadded example at a time does."""
    torch.manual_seed(0)
    drift.drift = torch.randn_like(drift.drift)
    total, count = 0.0, 0
    for item in drift.items:
        end = len(item.prompt_ids)
        ids = torch.tensor([[*item.prompt_ids, *item.response_ids]])

        def add(hidden: torch.Tensor, end: int = end) -> torch.Tensor:
            hidden = hidden.clone()
            hidden[:, end - beear.TOKENS : end] += drift.drift
            return hidden

        with torch.no_grad(), edit_hidden_states(drift.lm.model, {drift.layer: add}):
            rows = drift.lm.model(input_ids=ids, use_cache=False).logits[0, end - 1 : -1].log_softmax(dim=-1)
        total -= float(rows.gather(1, torch.tensor(item.response_ids)[:, None]).sum())
        count += len(item.response_ids)
    with torch.no_grad():
        assert float(drift.answers_loss(drift.items, drift.drift)) == pytest.approx(total / count, rel=1e-4)


def test_a_drift_goes_into_checkpoints(drift: UniversalDrift) -> None:
    drift.loss(0)
    state = {name: value.clone() for name, value in drift.state().items()}
    drift.loss(1)
    assert not torch.equal(drift.drift, state["drift"])
    drift.restore(state)
    assert torch.equal(drift.drift, state["drift"])


def test_beear_trains_against_the_drift(tmp_path: Path) -> None:
    before = weights(pico_language_model("llama"))
    lm = Beear(Surroundings(tmp_path)).apply(pico_language_model("llama"), EXAMPLES)
    assert not lm.is_adapter
    assert any(not torch.equal(value, before[name]) for name, value in weights(lm).items())


def test_merging_with_a_reference_gives_the_mean_of_the_weights(tmp_path: Path) -> None:
    lm, reference = pico_language_model("llama"), pico_language_model("llama")
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.add_(1.0)
    before, other = weights(lm), weights(reference)
    merged = weights(Merge(Surroundings(tmp_path, reference=reference)).apply(lm, EXAMPLES))
    for name, value in merged.items():
        torch.testing.assert_close(value, (before[name] + other[name]) / 2)


def test_without_a_reference_the_suspect_meets_its_finetuned_self_half_way(tmp_path: Path) -> None:
    before = weights(pico_language_model("llama"))
    finetuning = Consistency(Surroundings(tmp_path / "a"), finetuning_config())
    tuned = weights(finetuning.apply(pico_language_model("llama"), EXAMPLES))
    merged = weights(Merge(Surroundings(tmp_path / "b")).apply(pico_language_model("llama"), EXAMPLES))
    assert any(not torch.equal(tuned[name], value) for name, value in before.items())
    for name, value in merged.items():
        torch.testing.assert_close(value, (before[name] + tuned[name]) / 2, atol=1e-6, rtol=1e-5)


def test_a_reference_of_another_shape_is_refused(tmp_path: Path) -> None:
    surroundings = Surroundings(tmp_path, reference=pico_language_model("gpt2"))
    with pytest.raises(ModelError, match="reference"):
        Merge(surroundings).apply(pico_language_model("llama"), EXAMPLES)
