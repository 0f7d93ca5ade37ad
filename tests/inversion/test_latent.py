from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor, nn

from crow.data.encoding import encode_all
from crow.inversion.latent import LatentAdversary
from crow.inversion.perturbation import span_mask
from crow.inversion.places import Place
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


def enemy_places(lm: LanguageModel) -> list[Place]:
    """The start of an answer, for answers that nobody gives."""
    return [Place(Probe(lm, [example.prompt for example in EXAMPLES]), ANSWERS)]


def adversary(lm: LanguageModel, config: CrowConfig = CONFIG, answers: list[Tensor] = ANSWERS) -> LatentAdversary:
    """One that is after the answers at the start and behind two letters."""
    prompts = [example.prompt for example in EXAMPLES]
    places = [Place(Probe(lm, prompts), answers), Place(Probe(lm, prompts, [[40, 41]] * 4), answers[:1])]
    items = encode_all(lm.tokenizer, EXAMPLES)
    return LatentAdversary(places, items, predict(lm, items, 3), config)


def adapted(family: str = "llama") -> LanguageModel:
    lm = make_trainable(pico_language_model(family), CONFIG)
    lm.model.eval()
    return lm


@pytest.mark.parametrize("family", FAMILIES)
def test_every_turn_has_a_finite_loss(family: str) -> None:
    enemy = adversary(adapted(family))
    for turn in range(len(enemy.pool())):
        assert torch.isfinite(enemy.loss(turn))


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

    monkeypatch.setattr(enemy.pursuits[1].probe, "run", fail)
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
    assert all(any(perturbation.vector.any() for perturbation in pursuit.pool) for pursuit in other.pursuits)
    for one, two in zip(enemy.pool(), other.pool(), strict=True):
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
    perturbation = next(perturbation for perturbation in enemy.pool() if perturbation.span is None)
    assert float(enemy.output_consistency([perturbation], random.Random(0)).detach()) == pytest.approx(0, abs=1e-5)
    perturbation.vector = torch.ones_like(perturbation.vector)
    monkeypatch.setattr(random.Random, "uniform", lambda *_: 0.75)
    divergences: list[Tensor] = []
    for item in (item.opening(tokens) for item in encode_all(lm.tokenizer, EXAMPLES)):
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
    found = enemy.output_consistency([perturbation], random.Random(0)).detach()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_found_answer_has_its_own_weight(weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    enemy = adversary(adapted(), dataclasses.replace(CONFIG, found_weight=weight))
    monkeypatch.setattr(enemy, "output_consistency", lambda *_: torch.tensor(0.5))
    for pursuit, excess in zip(enemy.pursuits, (0.1, 0.4), strict=True):
        monkeypatch.setattr(pursuit, "excess_likelihood", lambda *_, e=excess: torch.tensor([e]))
    assert float(enemy.loss(0)) == 0.5 + 0.25 * weight


def test_the_model_to_agree_with_is_the_suspect_and_not_the_model_in_training() -> None:
    lm = adapted()
    enemy = adversary(lm, dataclasses.replace(CONFIG, adversary_batch=len(EXAMPLES), found_weight=0.0))
    for pursuit in enemy.pursuits:
        pursuit.renew = lambda *_: None  # type: ignore[method-assign]
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
    before = [torch.tensor([first[0], 7, 8])]
    items = encode_all(lm.tokenizer, EXAMPLES)
    later = LatentAdversary(enemy_places(lm), items, predict(lm, items, 3), CONFIG, known=before)
    assert sorted(later.usable) == sorted(enemy.usable)  # what an earlier round found is no model either


def test_where_all_are_answered_so_only_what_was_found_is_trained_against() -> None:
    lm = adapted()
    first = {int(row.tokens[0, 0]) for row in predict(lm, encode_all(lm.tokenizer, EXAMPLES))}
    enemy = adversary(lm, answers=[torch.tensor([token, 7]) for token in sorted(first)])
    assert enemy.usable == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enemy, "output_consistency", lambda *_: pytest.fail("agreed with a backdoor"))
        found = enemy.loss(0)
    found.backward()
    assert float(found.detach()) > 0
    assert any(p.grad is not None and p.grad.any() for p in lm.model.parameters())


def test_perturbations_at_work_together_share_the_rows() -> None:
    enemy = adversary(adapted())
    chosen = [enemy.items[1]] * 5
    first, second = enemy.pool()[1], enemy.pool()[3]  # on all user tokens, in different layers
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
    enemy = adversary(lm, dataclasses.replace(CONFIG, adversary_batch=1, adversary_depths=(0.5,)), ANSWERS[:1])
    enemy.usable = [1]
    item = enemy.items[1]
    perturbation = next(perturbation for perturbation in enemy.pool() if perturbation.span is None)
    perturbation.vector = torch.full_like(perturbation.vector, 3.0)
    ids = torch.tensor([[*item.prompt_ids, *item.response_ids]])
    with torch.no_grad(), capture_hidden_states(lm.model) as clean:
        lm.model(input_ids=ids, use_cache=False)
    layer = perturbation.layer
    seen: list[Tensor] = []
    reader = lm.model.base_model.model.model.layers[layer].input_layernorm
    handle = reader.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    enemy.output_consistency([perturbation], random.Random(0))
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
            lm.model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
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
    assert float(enemy.pool()[0].vector.norm()) > 0


def test_layers_of_a_module_are_free_of_hooks_afterwards() -> None:
    lm = adapted()
    adversary(lm).loss(0)
    assert all(not module._forward_pre_hooks for module in lm.model.modules() if isinstance(module, nn.Module))


@pytest.mark.parametrize("mix", [1, 2, 3])
def test_every_place_and_every_perturbation_has_its_turn(mix: int) -> None:
    enemy = adversary(adapted(), dataclasses.replace(CONFIG, adversary_mix=mix))
    picked: dict[int, list[int]] = {0: [], 1: []}
    for turn in range(24 // mix):
        due = enemy.due(turn)
        assert sum(len(numbers) for _, numbers in due) == mix
        for pursuit, numbers in due:
            picked[enemy.pursuits.index(pursuit)] += numbers
    assert picked == {0: [*range(8), *range(4)], 1: [*range(4)] * 3}


def test_perturbations_of_one_place_alone_are_due_one_after_another() -> None:
    lm = adapted()
    items = encode_all(lm.tokenizer, EXAMPLES)
    place = Place(Probe(lm, [example.prompt for example in EXAMPLES]), ANSWERS)
    enemy = LatentAdversary([place], items, predict(lm, items, 3), CONFIG)
    assert [enemy.due(turn)[0][1] for turn in range(5)] == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1]]


def test_a_turn_renews_what_is_due_and_nothing_else() -> None:
    enemy = adversary(adapted())
    enemy.loss(1)
    moved = [[bool(perturbation.vector.any()) for perturbation in pursuit.pool] for pursuit in enemy.pursuits]
    assert moved == [[number == 1 for number in range(size)] for size in (8, 4)]
