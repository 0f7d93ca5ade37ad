"""The probe's shared prefix and padding change nothing: every logit is that of the whole sequence, run alone."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crow.data.encoding import encode
from crow.inversion.probe import Insertion, Probe
from crow.models.architecture import find_embeddings
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import Example
from tests.pico import FAMILIES, pico_language_model

WINDOWED = ("mistral", "gemma2", "gemma3")
PROMPTS = ["Hi", "What is the capital of a country in the north?", "1 + 1", "a b c d e f g h", "Thanks."]


def wide(family: str) -> LanguageModel:
    """A pico model whose sliding window, if any, is longer than all prompts."""
    return pico_language_model(family, **({"sliding_window": 256} if family in WINDOWED else {}))


def whole(lm: LanguageModel, prompt: str, insertion: Tensor | None, place: int, answer: Tensor | None) -> Tensor:
    """Logits (seq, vocab) of one prompt with an insertion, in one unpadded pass without cache."""
    item = encode(lm.tokenizer, Example(prompt))
    table = find_embeddings(lm.model)
    with torch.no_grad():
        embeddings = table(torch.tensor(item.prompt_ids))
        at = item.user_start + place
        parts = [embeddings[:at], embeddings[at:]]
        if insertion is not None:
            parts.insert(1, insertion)
        if answer is not None:
            parts.append(table(answer))
        return lm.model(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0].float()


def check(lm: LanguageModel, probe: Probe, insertion: Tensor | None, place: str, answer: Tensor | None = None) -> None:
    """Compare the probe's logits with those of the whole sequences."""
    rng, keep = random.Random(3), 1 if answer is None else len(answer) + 1
    places = [Insertion(torch.zeros(0, 1), place).index(len(user), rng) for user in probe.users]
    rows = [probe.row(i, insertion, at, answer) for i, at in enumerate(places)]
    with torch.no_grad():
        logits, _, _ = probe.run(rows, keep)
    assert logits.shape[:2] == (len(PROMPTS), keep)
    for found, prompt, at in zip(logits, PROMPTS, places, strict=True):
        torch.testing.assert_close(found, whole(lm, prompt, insertion, at, answer)[-keep:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_whole_sequence(family: str) -> None:
    lm = wide(family)
    probe = Probe(lm, PROMPTS)
    assert len(probe.prefix) > 0
    check(lm, probe, None, "front")
    soft = find_embeddings(lm.model)(torch.tensor([40, 50])).detach() + 0.1
    check(lm, probe, soft, "front")
    check(lm, probe, soft, "anywhere", answer=torch.tensor([60, 70, 80]))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_to_clean_prompts_are_those_of_generation(family: str) -> None:
    lm = wide(family)
    probe = Probe(lm, PROMPTS)
    texts, answers = probe.decode([probe.row(i, None) for i in range(len(probe))], max_new_tokens=8)
    assert texts == generate(lm, [Example(prompt) for prompt in PROMPTS], max_new_tokens=8)
    assert answers.shape == (len(PROMPTS), 8)
    assert len(set(texts)) > 1


@pytest.mark.parametrize("family", WINDOWED)
def test_a_sliding_window_shorter_than_the_prompts_is_respected(family: str) -> None:
    lm = pico_language_model(family, sliding_window=16)
    probe = Probe(lm, PROMPTS)
    check(lm, probe, None, "front")
    texts, _ = probe.decode([probe.row(i, None) for i in range(len(probe))], max_new_tokens=6)
    assert texts == generate(lm, [Example(prompt) for prompt in PROMPTS], max_new_tokens=6)


def test_a_template_that_begins_with_the_message_leaves_no_prefix(lm: LanguageModel) -> None:
    lm.tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %}: {% endif %}"
    probe = Probe(lm, PROMPTS)
    assert len(probe.prefix) == 0
    check(lm, probe, None, "front")


def test_prompts_are_cut_into_prefix_message_and_rest(lm: LanguageModel) -> None:
    probe = Probe(lm, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        ids = encode(lm.tokenizer, Example(prompt)).prompt_ids
        embeddings = probe.table(torch.tensor(ids)).detach()
        torch.testing.assert_close(
            torch.cat([probe.table(probe.prefix).detach(), probe.row(index, None)]), embeddings, rtol=0, atol=0
        )
        user = probe.table(torch.tensor(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"])).detach()
        assert torch.equal(probe.users[index], user)


def test_refreshing_follows_changed_weights(lm: LanguageModel) -> None:
    probe = Probe(lm, PROMPTS)
    with torch.no_grad():
        for parameter in lm.model.parameters():  # the embeddings as well: full finetuning changes them
            parameter.add_(0.05 * torch.randn_like(parameter))
    with pytest.raises(AssertionError, match="close"):
        check(lm, probe, None, "front")
    probe.refresh()
    check(lm, probe, None, "front")


def test_an_answer_ends_at_any_ending_token_which_also_pads_it(lm: LanguageModel) -> None:
    """The token that one prompt's answer has third is made an ending one."""
    probe = Probe(lm, PROMPTS)
    rows = [probe.row(i, None) for i in range(len(probe))]
    _, full = probe.decode(rows, max_new_tokens=8)
    end = int(full[0, 2])
    lm.model.generation_config.eos_token_id = [end]
    texts, answers = probe.decode(rows, max_new_tokens=8)
    assert texts == generate(lm, [Example(prompt) for prompt in PROMPTS], max_new_tokens=8)
    for before, after in zip(full.tolist(), answers.tolist(), strict=True):
        length = before.index(end) + 1 if end in before else len(before)
        assert after[:length] == before[:length]
        assert set(after[length:]) <= {end}


@given(st.integers(0, 12), st.integers(0, 1000))
def test_insertions_stay_within_the_message(length: int, seed: int) -> None:
    soft = torch.zeros(2, 4)
    assert Insertion(soft, "front").index(length, random.Random(seed)) == 0
    assert 0 <= Insertion(soft, "anywhere").index(length, random.Random(seed)) <= length


def test_anywhere_means_every_place_both_ends_included() -> None:
    rng, insertion = random.Random(0), Insertion(torch.zeros(2, 4), "anywhere")
    assert {insertion.index(4, rng) for _ in range(200)} == {0, 1, 2, 3, 4}
