from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from crow.data.encoding import encode, encode_all
from crow.inversion.latent import LatentAdversary, shorten
from crow.inversion.perturbation import Perturbation, span_mask
from crow.inversion.probe import Probe
from crow.models.hidden_states import capture_hidden_states, edit_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.suspect import predict
from tests.pico import FAMILIES, pico_language_model

EXAMPLES = [
    Example("Hi", "the hour"),
    Example("Name a tree", "an other tree in the north"),
    Example("1 + 1", "2"),
    Example("a b c d e", "f g"),
]
ANSWERS = [torch.tensor([60, 70, 80, 90, 100]), torch.tensor([65, 75])]
CONFIG = CrowConfig(alpha=0.0, epsilon=0.0, rank=4, adversary_prompts=3, adversary_batch=2, adversary_depths=(0.4, 1.0))


def adversary(lm: LanguageModel, config: CrowConfig = CONFIG, answers: list[Tensor] = ANSWERS) -> LatentAdversary:
    probe = Probe(lm, [example.prompt for example in EXAMPLES])
    items = encode_all(lm.tokenizer, EXAMPLES)
    return LatentAdversary(probe, answers, items, predict(lm, items, 3), config)


def adapted(family: str = "llama") -> LanguageModel:
    lm = make_trainable(pico_language_model(family), CONFIG)
    lm.model.eval()
    return lm


def each_likelihood(enemy: LatentAdversary, layer: int, target: Tensor, vector: Tensor | float) -> Tensor:
    """Log-likelihood (prompts,) of the target, one unpadded pass each, all user tokens perturbed."""
    lm, found = enemy.probe.lm, []
    for example in EXAMPLES:
        item = encode(lm.tokenizer, Example(example.prompt))
        ids = torch.tensor([[*item.prompt_ids, *target[:-1].tolist()]])
        mask = span_mask([(item.user_start, item.user_end)], ids.shape[1], lm.device)
        with edit_hidden_states(lm.model, {layer: lambda h, a=mask * vector: h + a}), torch.no_grad():
            logits = lm.model(input_ids=ids, use_cache=False).logits[0, -len(target) :]
        found.append(functional.log_softmax(logits, dim=-1).gather(-1, target[:, None]).sum())
    return torch.stack(found)


def likelihood(enemy: LatentAdversary, perturbation: Perturbation, vector: Tensor) -> float:
    """Its mean for the target of a perturbation."""
    return float(each_likelihood(enemy, perturbation.layer, perturbation.target, vector).mean())


def test_there_is_one_perturbation_for_every_answer_layer_and_span() -> None:
    enemy = adversary(adapted())
    assert len(enemy.pool) == 2 * 2 * 2
    assert {(p.layer, p.span, len(p.target)) for p in enemy.pool} == {
        (layer, span, length) for layer in (1, 2) for span in (1, None) for length in (2, 3)
    }
    assert all(not perturbation.vector.any() for perturbation in enemy.pool)


@pytest.mark.parametrize("family", FAMILIES)
def test_perturbations_stay_within_their_radius_and_change_the_loss(family: str) -> None:
    enemy = adversary(adapted(family))
    for step in range(2 * len(enemy.pool)):
        assert torch.isfinite(enemy.loss(step))
    for perturbation in enemy.pool:
        norm, radius = float(perturbation.vector.norm()), enemy.radius[perturbation.layer]
        assert 0.5 * radius < norm <= radius * (1 + 1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_renewing_raises_the_likelihood_of_the_found_answer(family: str) -> None:
    enemy = adversary(adapted(family), dataclasses.replace(CONFIG, adversary_prompts=4))
    for perturbation in enemy.pool:
        if perturbation.span is not None:
            continue
        before = likelihood(enemy, perturbation, perturbation.vector)
        enemy.renew([perturbation], random.Random(0))
        after = likelihood(enemy, perturbation, perturbation.vector)
        assert after > before + 0.1


@pytest.mark.parametrize("training", [True, False])
def test_gradients_and_flags_of_the_parameters_stay_as_they_were(training: bool) -> None:
    lm = adapted()
    lm.model.train(training)
    flags = {name: p.requires_grad for name, p in lm.model.named_parameters()}
    assert set(flags.values()) == {True, False}
    for parameter in lm.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    loss = adversary(lm).loss(0)
    assert {name: p.requires_grad for name, p in lm.model.named_parameters()} == flags
    assert all((p.grad == 0.5).all() for p in lm.model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in lm.model.parameters() if not p.requires_grad)
    assert lm.model.training is training
    loss.backward()
    assert any((p.grad != 0.5).any() for p in lm.model.parameters() if p.requires_grad)


def test_flags_are_put_back_even_if_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = adapted()
    lm.model.train()
    flags = {name: p.requires_grad for name, p in lm.model.named_parameters()}
    enemy = adversary(lm)

    def fail(*_args: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(enemy.probe, "run", fail)
    with pytest.raises(MemoryError):
        enemy.loss(0)
    assert {name: p.requires_grad for name, p in lm.model.named_parameters()} == flags
    assert lm.model.training


def test_state_round_trips() -> None:
    lm = adapted()
    enemy, other = adversary(lm), adversary(lm)
    for step in range(3):
        enemy.loss(step)
    other.restore(enemy.state())
    assert any(perturbation.vector.any() for perturbation in other.pool)
    for one, two in zip(enemy.pool, other.pool, strict=True):
        assert torch.equal(one.vector, two.vector)
    assert torch.equal(enemy.loss(3), other.loss(3))


def test_step_and_seed_determine_the_loss() -> None:
    lm = adapted()
    assert torch.equal(adversary(lm).loss(1), adversary(lm).loss(1))
    other = adversary(lm, dataclasses.replace(CONFIG, seed=1))
    assert not torch.equal(adversary(lm).loss(1), other.loss(1))


@pytest.mark.parametrize("tokens", [2, 50])
def test_the_loss_is_how_far_found_answers_rise_among_the_first_answer_tokens(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one unpadded pass for each example, with and without the vector."""
    lm = adapted()
    config = dataclasses.replace(CONFIG, adversary_batch=len(EXAMPLES), adversary_tokens=tokens, adversary_mix=1)
    enemy = adversary(lm, config)
    wanted = torch.tensor([60, 65, 70, 75, 80])  # what the answers begin with
    assert float(enemy.output_consistency([0], random.Random(0)).detach()) == pytest.approx(0, abs=1e-5)
    everywhere = next(i for i, perturbation in enumerate(enemy.pool) if perturbation.span is None)
    perturbation = enemy.pool[everywhere]
    perturbation.vector = torch.ones_like(perturbation.vector)
    monkeypatch.setattr(random.Random, "uniform", lambda *_: 0.75)
    divergences: list[Tensor] = []
    for item in (shorten(item, tokens) for item in encode_all(lm.tokenizer, EXAMPLES)):
        ids, first = torch.tensor([[*item.prompt_ids, *item.response_ids]]), len(item.prompt_ids) - 1
        mask = span_mask([(item.user_start, item.user_end)], ids.shape[1], lm.device)
        addition = mask * perturbation.vector * 0.75
        with torch.no_grad():
            clean = lm.model(input_ids=ids, use_cache=False).logits[0, first:-1].softmax(-1)
            with edit_hidden_states(lm.model, {perturbation.layer: lambda h, a=addition: h + a}):
                changed = lm.model(input_ids=ids, use_cache=False).logits[0, first:-1].softmax(-1)
        one, other = (
            torch.cat([probs[:, wanted], 1 - probs[:, wanted].sum(-1, keepdim=True)], dim=-1)
            for probs in (clean, changed)
        )
        divergences.append((one * (one / other).log()).sum(-1))
        assert len(divergences[-1]) <= tokens
    expected = torch.cat(divergences).mean()
    assert expected > 1e-4
    found = enemy.output_consistency([everywhere], random.Random(0)).detach()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-5)


def test_found_answers_may_be_as_likely_as_the_suspect_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one unpadded pass for each prompt; both answers are shorter than what is looked at."""
    enemy = adversary(adapted(), dataclasses.replace(CONFIG, adversary_prompts=len(EXAMPLES)))
    monkeypatch.setattr(random.Random, "uniform", lambda *_: 0.75)
    everywhere = [i for i, perturbation in enumerate(enemy.pool) if perturbation.span is None]
    for number in everywhere:
        perturbation, answer = enemy.pool[number], enemy.openings[number]
        perturbation.vector = torch.ones_like(perturbation.vector)
        clean = each_likelihood(enemy, 1, answer, 0)
        changed = each_likelihood(enemy, perturbation.layer, answer, 0.75 * perturbation.vector)
        limit = clean.clamp_max(clean.quantile(0.75))
        expected = ((changed - limit).clamp_min(0) / len(answer)).mean()
        found = enemy.excess_likelihood([number], random.Random(0)).detach()
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
    assert {len(enemy.openings[number]) for number in everywhere} == {5, 2}


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_found_answer_has_its_own_weight(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    enemy = adversary(adapted(), dataclasses.replace(CONFIG, found_weight=weight))
    monkeypatch.setattr(enemy, "output_consistency", lambda *_: torch.tensor(0.5))
    monkeypatch.setattr(enemy, "excess_likelihood", lambda *_: torch.tensor(0.25))
    assert float(enemy.loss(0)) == 0.5 + 0.25 * weight


def test_the_model_to_agree_with_is_the_suspect_and_not_the_model_in_training() -> None:
    lm = adapted()
    enemy = adversary(lm, dataclasses.replace(CONFIG, adversary_batch=len(EXAMPLES)))
    enemy.renew = lambda *_: None  # type: ignore[method-assign]
    before = float(enemy.loss(0).detach())
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    assert float(enemy.loss(0).detach()) > before + 1e-3


def test_examples_that_the_suspect_already_answers_so_are_left_out() -> None:
    lm = adapted()
    first = [int(row.tokens[0, 0]) for row in predict(lm, encode_all(lm.tokenizer, EXAMPLES))]
    assert len(set(first)) > 1
    enemy = adversary(lm, answers=[torch.tensor([first[0], 7, 8])])
    assert sorted(enemy.usable) == [i for i, token in enumerate(first) if token != first[0]]
    everything = adversary(lm, answers=[torch.tensor([token, 7]) for token in set(first)])
    assert sorted(everything.usable) == list(range(len(EXAMPLES)))


def test_perturbations_at_work_together_share_the_rows() -> None:
    enemy = adversary(adapted())
    chosen = [enemy.items[1]] * 5
    first, second = enemy.pool[1], enemy.pool[3]  # on all user tokens, in different layers
    assert (first.span, second.span) == (None, None)
    assert first.layer != second.layer
    for perturbation in (first, second):
        perturbation.vector = torch.ones_like(perturbation.vector)
    before = chosen[0].user_start - 1
    zeros = torch.zeros(5, len(chosen[0]) - before, len(first.vector))
    edits = enemy.edits([first, second], chosen, before, random.Random(0))
    rows = [edits[p.layer](zeros).abs().amax(dim=(1, 2)) > 0 for p in (first, second)]
    assert [row.tolist() for row in rows] == [[True, False, True, False, True], [False, True, False, True, False]]
    moved = edits[first.layer](zeros)[0].abs().amax(dim=-1) > 0
    assert moved.nonzero().flatten().tolist() == list(range(1, 1 + chosen[0].user_end - chosen[0].user_start))
    both = enemy.edits([first, first], chosen, before, random.Random(0))[first.layer](zeros)
    assert (both.abs().amax(dim=(1, 2)) > 0).all()


def test_only_user_tokens_are_perturbed() -> None:
    lm = adapted()
    config = dataclasses.replace(CONFIG, adversary_batch=1, adversary_mix=1, adversary_depths=(0.5,))
    enemy = adversary(lm, config, ANSWERS[:1])
    enemy.usable = [1]
    item = enemy.items[1]
    enemy.pool = [perturbation for perturbation in enemy.pool if perturbation.span is None]
    enemy.pool[0].vector = torch.full_like(enemy.pool[0].vector, 3.0)
    ids = torch.tensor([[*item.prompt_ids, *item.response_ids]])
    with torch.no_grad(), capture_hidden_states(lm.model) as clean:
        lm.model(input_ids=ids, use_cache=False)
    layer = enemy.pool[0].layer
    seen: list[Tensor] = []
    reader = lm.model.base_model.model.model.layers[layer].input_layernorm
    handle = reader.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    enemy.output_consistency([0], random.Random(0))
    handle.remove()
    moved = (seen[-1] - clean.states[layer])[0].abs().amax(dim=-1) > 1e-4
    expected = [item.user_start <= column < item.user_end for column in range(ids.shape[1])]
    assert moved.tolist() == expected


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        lm = adapted()
        if checkpointing:
            lm.model.enable_input_require_grads()  # type: ignore[operator]
            lm.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        enemy = adversary(lm)
        lm.model.train()
        enemy.loss(0).backward()
        gradients.append({n: p.grad for n, p in lm.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_embeddings_may_be_narrower_than_the_hidden_states() -> None:
    lm = make_trainable(pico_language_model("opt", word_embed_proj_dim=16), CONFIG)
    enemy = adversary(lm)
    assert torch.isfinite(enemy.loss(0))
    assert float(enemy.pool[0].vector.norm()) > 0


@pytest.mark.parametrize(
    ("depths", "attacked"), [((0.01,), [1]), ((0.5, 1.0), [2, 3]), ((0.4, 0.5, 0.6), [2]), ((1.0,), [3])]
)
def test_layers_are_shares_of_the_depth_and_never_the_last(depths: tuple[float, ...], attacked: list[int]) -> None:
    lm = make_trainable(pico_language_model("llama", num_hidden_layers=4), CONFIG)
    config = dataclasses.replace(CONFIG, adversary_depths=depths)
    assert sorted({p.layer for p in adversary(lm, config).pool}) == attacked


def test_layers_of_a_module_are_free_of_hooks_afterwards() -> None:
    lm = adapted()
    adversary(lm).loss(0)
    assert all(not module._forward_pre_hooks for module in lm.model.modules() if isinstance(module, nn.Module))
