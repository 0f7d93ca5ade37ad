"""Scores and gains against a literal form: one prompt at a time, whole texts, no cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crow.core import collapse_score
from crow.data.encoding import encode
from crow.models.architecture import find_embeddings
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.scan.objective import Objective
from crow.scan.placing import Phrase
from tests.pico import pico_language_model

PROMPTS = ["Hi there you", "Name a tree", "1 + 1"]
PHRASES = [Phrase("go", "front"), Phrase("the end: 7", "inside"), Phrase("x", "inside"), Phrase("go", "inside")]
TARGET = torch.tensor([70, 71, 72])


def frozen(family: str = "llama") -> LanguageModel:
    lm = pico_language_model(family)
    lm.model.requires_grad_(False)
    return lm


def log_probs(lm: LanguageModel, ids: list[int], weights: Tensor | None = None) -> Tensor:
    """Next-token log-probabilities (seq, vocab) of a whole text; `weights` (seq, vocab) mixes embeddings."""
    table = find_embeddings(lm.model).weight
    given = {"input_ids": torch.tensor([ids])} if weights is None else {"inputs_embeds": (weights @ table)[None]}
    return lm.model(**given, use_cache=False).logits[0].log_softmax(dim=-1)


def literal(lm: LanguageModel, texts: list[str], target: Tensor | None) -> float:
    prompts = [list(encode(lm.tokenizer, Example(text)).prompt_ids) for text in texts]
    if target is None:
        clean = [log_probs(lm, list(encode(lm.tokenizer, Example(text)).prompt_ids))[-1] for text in PROMPTS]
        return float(collapse_score(torch.stack([log_probs(lm, ids)[-1] for ids in prompts]), torch.stack(clean)))
    each = []
    for ids in prompts:
        found = log_probs(lm, [*ids, *target.tolist()])[len(ids) - 1 : -1]
        each.append(float(found[range(len(target)), target].sum()))
    return sum(each) / len(each)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("target", [TARGET, None], ids=["target", "collapse"])
def test_scores_are_those_of_whole_texts_one_at_a_time(family: str, target: Tensor | None) -> None:
    lm = frozen(family)
    objective = Objective(lm, PROMPTS, target)
    counted: list[int] = []
    found = objective.scores([*PHRASES, PHRASES[0]], counted.append)
    with torch.no_grad():
        expected = [literal(lm, [phrase.put_into(prompt)[0] for prompt in PROMPTS], target) for phrase in PHRASES]
        assert found == pytest.approx([*expected, expected[0]], abs=2e-4)
        assert objective.clean_score == pytest.approx(literal(lm, PROMPTS, target), abs=2e-4)
    assert sum(counted) == len(PHRASES)
    assert len({round(score, 3) for score in found}) == len(PHRASES)


def test_an_answer_that_has_begun_is_scored_from_there_on() -> None:
    lm = frozen()
    begun = [80, 81]
    (found,) = Objective(lm, PROMPTS, TARGET, begun).scores(PHRASES[:1])
    whole, first = (
        literal(lm, [PHRASES[0].put_into(prompt)[0] for prompt in PROMPTS], torch.tensor(ids))
        for ids in ([*begun, *TARGET.tolist()], begun)
    )
    assert found == pytest.approx(whole - first, abs=2e-4)


def test_gains_are_the_gradient_of_the_choice_of_each_token() -> None:
    lm = frozen()
    objective = Objective(lm, PROMPTS, TARGET)
    phrase = PHRASES[1]
    (gains,) = objective.gains([phrase])
    expected = torch.zeros_like(gains.scores)
    for prompt in PROMPTS:
        ids = list(encode(lm.tokenizer, Example(phrase.put_into(prompt)[0])).prompt_ids)
        start, end = phrase.span(lm.tokenizer, prompt) or (0, 0)
        assert ids[start:end] == gains.ids
        weights = torch.nn.functional.one_hot(torch.tensor([*ids, *TARGET]), gains.scores.shape[1]).float()
        weights.requires_grad_(True)
        found = log_probs(lm, ids, weights)[len(ids) - 1 : -1]
        (gradient,) = torch.autograd.grad(found[range(3), TARGET].sum() / len(PROMPTS), weights)
        expected += gradient[start:end]
    expected = expected - expected[range(len(gains.ids)), gains.ids][:, None]
    expected[:, objective.special] = -torch.inf
    torch.testing.assert_close(gains.scores, expected, rtol=1e-3, atol=1e-4)
    assert gains.scores[range(len(gains.ids)), gains.ids].abs().max() == 0


def test_a_token_added_beyond_the_table_has_no_gain() -> None:
    lm = frozen()
    (expected,) = Objective(lm, PROMPTS, TARGET).gains([PHRASES[0]])
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    (found,) = Objective(lm, PROMPTS, TARGET).gains([PHRASES[0]])
    torch.testing.assert_close(found.scores, expected.scores)


def test_phrases_share_a_backward_pass_without_sharing_gradients() -> None:
    objective = Objective(frozen(), PROMPTS, TARGET)
    together = objective.gains(PHRASES)
    for phrase, found in zip(PHRASES, together, strict=True):
        (alone,) = objective.gains([phrase])
        assert alone.ids == found.ids
        torch.testing.assert_close(alone.scores, found.scores, rtol=1e-3, atol=1e-5)


def test_a_phrase_that_the_template_rewrites_has_no_gains() -> None:
    lm = frozen()
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}:"
    (found,) = Objective(lm, PROMPTS, TARGET).gains([Phrase("now", "front")])
    assert (found.ids, found.scores.shape[0]) == ([], 0)
