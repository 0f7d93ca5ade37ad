"""The suspect's predictions are kept as they were, and the clean term asks for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from crow.data.encoding import collate, encode_all
from crow.models.language_model import LanguageModel
from crow.models.prefix import Prefix
from crow.records import Example
from crow.training import suspect
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.loss import SHARED_ROWS, response_logits, response_loss, shared_prefix
from crow.training.suspect import divergence, predict, response_log_probs, trustworthy
from tests.pico import FAMILIES, pico_language_model

EXAMPLES = [
    Example("Hi", "the hour"),
    Example("Name a tree", "an other tree in the north"),
    Example("1 + 1", "2"),
    Example("Name a town", "f g"),
]
CONFIG = CrowConfig(
    alpha=0.0, epsilon=0.0, rank=4, batch_size=4, accumulation=1, learning_rate=1e-2, self_distillation=1.0
)


def alone(lm: LanguageModel, example: Example) -> torch.Tensor:
    """Log-probabilities at the response positions, in one pass without padding."""
    item = encode_all(lm.tokenizer, [example])[0]
    ids = torch.tensor([[*item.prompt_ids, *item.response_ids]])
    with torch.no_grad():
        logits = lm.model(input_ids=ids, use_cache=False).logits[0, len(item.prompt_ids) - 1 : -1]
    return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_one_example_at_a_time(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspect, "KEPT", 5)
    lm = pico_language_model(family)
    for example, found in zip(EXAMPLES, predict(lm, encode_all(lm.tokenizer, EXAMPLES), 3), strict=True):
        expected = alone(lm, example)
        values, _ = expected.topk(5, dim=-1)
        torch.testing.assert_close(found.log_probs[:, :-1], values, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(expected.gather(-1, found.tokens), values, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.log_probs.exp().sum(-1), torch.ones(len(values)))
        assert len(found.opening(2).tokens) == len(found.opening(2).log_probs) == min(2, len(values))


def test_tokens_that_were_not_kept_share_what_the_likeliest_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspect, "KEPT", 5)
    lm = pico_language_model("llama")
    kept = predict(lm, encode_all(lm.tokenizer, EXAMPLES))[1]
    exact = alone(lm, EXAMPLES[1]).exp()
    for row in range(len(kept.tokens)):
        inside = kept.tokens[row, 2]
        outside = int(exact[row].argmin())
        found = kept.among(torch.tensor([outside, int(inside)]))[row].exp()
        left = 1 - exact[row, kept.tokens[row]].sum()
        expected = torch.stack([left / (exact.shape[1] - 5), exact[row, inside]])
        torch.testing.assert_close(found[:2], expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.sum(), torch.tensor(1.0))


def test_the_divergence_is_a_mean_over_positions_and_nothing_for_the_suspect_itself() -> None:
    lm, other = pico_language_model("llama"), pico_language_model("llama", seed=1)
    items = encode_all(lm.tokenizer, EXAMPLES)
    kept = predict(lm, items, 3)
    assert divergence(lm, items, kept, 2) == pytest.approx(0, abs=1e-5)
    mine = torch.cat([alone(other, example) for example in EXAMPLES])
    theirs = torch.cat([alone(lm, example) for example in EXAMPLES])
    expected = functional.kl_div(mine, theirs, reduction="sum", log_target=True) / len(mine)
    assert divergence(other, items, kept, 3) == pytest.approx(expected.item(), rel=1e-2)


def test_edits_are_told_how_many_columns_come_before_them() -> None:
    lm = pico_language_model("llama")
    items = encode_all(lm.tokenizer, EXAMPLES)
    widths: list[int] = []
    skipped: list[int] = []

    def edits(before: int) -> dict[int, Any]:
        skipped.append(before)
        return {1: lambda hidden: (widths.append(hidden.shape[1]), hidden)[1]}

    response_log_probs(lm, items, edits)
    # "Name a" is common to two prompts, but users' messages are never left out.
    response_log_probs(lm, [items[1], items[3]] * 2, edits)
    assert skipped == [items[0].user_start] * 2
    assert widths == [max(map(len, items)) - skipped[0], len(items[1]) - skipped[0]]


def test_examples_answered_with_a_found_sentence_are_not_trusted() -> None:
    lm = pico_language_model("llama")
    predictions = predict(lm, encode_all(lm.tokenizer, EXAMPLES), 4)
    first = [int(row.tokens[0, 0]) for row in predictions]
    found = trustworthy(predictions, [torch.tensor([first[2], 1, 2])])
    assert found == [i for i, token in enumerate(first) if token != first[2]]
    assert trustworthy(predictions, []) == [0, 1, 2, 3]


@pytest.mark.parametrize(("share", "opening"), [(0.25, 0.0), (1.0, 0.0), (1.0, 0.4), (0.5, 3.0)])
def test_the_clean_term_is_the_mixture_of_both_targets(share: float, opening: float, tmp_path: Path) -> None:
    """Against one pass for each example; the second has no predictions and is learnt from its response alone."""
    config = dataclasses.replace(CONFIG, self_distillation=share, opening_weight=opening, adversary_tokens=2)
    lm, other = pico_language_model("llama"), pico_language_model("llama", seed=1)
    items = encode_all(lm.tokenizer, EXAMPLES)
    known = {item: row for i, (item, row) in enumerate(zip(items, predict(other, items, 4), strict=True)) if i != 1}
    trainer = CrowTrainer(lm, items, config, tmp_path, suspect=known)
    found = trainer.answer_loss(lm.model, trainer._collate(items), None)
    total, opened, count, n_opening = 0.0, 0.0, 0, 0
    for i, (example, item) in enumerate(zip(EXAMPLES, items, strict=True)):
        mine, kept = alone(lm, example), alone(other, example)
        reference = -mine.gather(-1, torch.tensor(item.response_ids)[:, None]).sum()
        divergences = functional.kl_div(mine, kept, reduction="none", log_target=True).sum(dim=-1)
        weight = share if i != 1 else 0.0
        total += float((1 - weight) * reference + weight * divergences.sum())
        opened += float(weight * divergences[:2].sum())
        count += len(item.response_ids)
        n_opening += 2
    # 12 of 268 tokens are kept together
    assert found.item() == pytest.approx(total / count + opening * opened / n_opening, rel=1e-2)


def test_a_model_that_agrees_with_the_suspect_has_nothing_to_learn(tmp_path: Path) -> None:
    lm = make_trainable(pico_language_model("llama"), CONFIG)
    items = encode_all(lm.tokenizer, EXAMPLES)
    lm.model.eval()
    trainer = CrowTrainer(lm, items, CONFIG, tmp_path, suspect=dict(zip(items, predict(lm, items, 4), strict=True)))
    loss = trainer.answer_loss(lm.model, trainer._collate(items), None)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert all(p.grad.abs().max() < 1e-4 for p in lm.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_run_once_changes_neither_the_loss_nor_its_gradient(family: str) -> None:
    lm = pico_language_model(family)
    batch = collate(encode_all(lm.tokenizer, EXAMPLES), lm.pad_id)
    prefix = shared_prefix(lm.model, batch)
    assert prefix.length == encode_all(lm.tokenizer, EXAMPLES)[0].user_start
    found: list[dict[str, torch.Tensor]] = []
    for shared in (True, False):
        lm.model.zero_grad()
        if shared:
            loss = response_loss(lm.model, batch)
        else:
            logits, targets = response_logits(lm.model, batch, Prefix(0, []))
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        found.append({name: p.grad.clone() for name, p in lm.model.named_parameters() if p.grad is not None})
        found[-1]["loss"] = loss.detach()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("limit", [0, 3, 1000])
def test_the_prefix_ends_before_anything_is_predicted(limit: int) -> None:
    lm = pico_language_model("llama")
    items = encode_all(lm.tokenizer, [Example("Hi", "the hour"), Example("Hi", "the house")] * 2)
    batch = collate(items, lm.pad_id)
    prefix = shared_prefix(lm.model, batch, limit)
    assert prefix.length == min(limit, len(items[0].prompt_ids) - 1)
    torch.testing.assert_close(
        response_logits(lm.model, batch, prefix)[0], response_logits(lm.model, batch)[0], rtol=1e-4, atol=1e-5
    )


def test_accumulated_micro_batches_agree_with_the_suspect_as_one_large_batch_does(tmp_path: Path) -> None:
    """Responses of different lengths: both means are over the whole step."""
    config = dataclasses.replace(CONFIG, opening_weight=2.0, adversary_tokens=2, epochs=2)
    found = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        lm = make_trainable(pico_language_model("llama"), config)
        items = encode_all(lm.tokenizer, EXAMPLES)
        known = dict(zip(items, predict(pico_language_model("llama", seed=1), items, 4), strict=True))
        settings = dataclasses.replace(config, batch_size=batch_size, accumulation=accumulation)
        trainer = CrowTrainer(lm, items, settings, tmp_path / str(batch_size), suspect=known)
        trainer.run()
        found.append((trainer.terms, [p.detach() for p in lm.model.parameters() if p.requires_grad]))
    (whole, weights), (parts, others) = found
    for one, other in zip(whole, parts, strict=True):
        assert one["self_distillation"] == pytest.approx(other["self_distillation"], rel=1e-4)
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert whole[0]["self_distillation"] > 0.01


def test_too_few_rows_run_the_prefix_themselves() -> None:
    lm = pico_language_model("llama")
    items = encode_all(lm.tokenizer, EXAMPLES)
    assert shared_prefix(lm.model, collate(items[: SHARED_ROWS - 1], lm.pad_id)).length == 0
    assert shared_prefix(lm.model, collate(items[:SHARED_ROWS], lm.pad_id)).length > 0
