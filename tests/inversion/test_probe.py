"""The probe's shared prefix and padding change nothing: every logit is that of the whole sequence, run alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crow.data.encoding import encode
from crow.inversion.probe import Probe, joined
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import Example
from tests.pico import FAMILIES, pico_language_model

WINDOWED = ("mistral", "gemma2", "gemma3")
PROMPTS = ["Hi", "What is the capital of a country in the north?", "1 + 1", "a b c d e f g h", "Thanks."]


def wide(family: str) -> LanguageModel:
    """A pico model whose sliding window, if any, is longer than all prompts."""
    return pico_language_model(family, **({"sliding_window": 256} if family in WINDOWED else {}))


def whole(lm: LanguageModel, prompt: str, answer: Tensor | None) -> Tensor:
    """Logits (seq, vocab) of one prompt, in one unpadded pass without cache."""
    ids = torch.tensor(encode(lm.tokenizer, Example(prompt)).prompt_ids)
    with torch.no_grad():
        return lm.model(input_ids=ids[None] if answer is None else torch.cat([ids, answer])[None]).logits[0].float()


def check(lm: LanguageModel, probe: Probe, answer: Tensor | None = None) -> None:
    """Compare the probe's logits with those of the whole sequences."""
    keep = 1 if answer is None else len(answer) + 1
    with torch.no_grad():
        logits, _, _ = probe.run([probe.row(i, answer) for i in range(len(probe))], keep)
    assert logits.shape[:2] == (len(PROMPTS), keep)
    for found, prompt in zip(logits, PROMPTS, strict=True):
        torch.testing.assert_close(found, whole(lm, prompt, answer)[-keep:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_whole_sequence(family: str) -> None:
    lm = wide(family)
    probe = Probe(lm, PROMPTS)
    assert len(probe.shared) > 0
    check(lm, probe)
    check(lm, probe, answer=torch.tensor([60, 70, 80]))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_to_clean_prompts_are_those_of_generation(family: str) -> None:
    lm = wide(family)
    probe = Probe(lm, PROMPTS)
    answers = probe.decode([probe.row(i) for i in range(len(probe))], max_new_tokens=8)
    assert answers.texts == generate(lm, [Example(prompt) for prompt in PROMPTS], max_new_tokens=8)
    assert answers.ids.shape == answers.shares.shape == (len(PROMPTS), 8)
    assert len(set(answers.texts)) > 1


@pytest.mark.parametrize("family", WINDOWED)
def test_a_sliding_window_shorter_than_the_prompts_is_respected(family: str) -> None:
    lm = pico_language_model(family, sliding_window=16)
    probe = Probe(lm, PROMPTS)
    check(lm, probe)
    texts = probe.decode([probe.row(i) for i in range(len(probe))], max_new_tokens=6).texts
    assert texts == generate(lm, [Example(prompt) for prompt in PROMPTS], max_new_tokens=6)


def test_a_template_that_begins_with_the_message_leaves_no_prefix(lm: LanguageModel) -> None:
    lm.tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %}: {% endif %}"
    probe = Probe(lm, PROMPTS)
    assert len(probe.shared) == 0
    check(lm, probe)


def test_prompts_are_cut_into_prefix_message_and_rest(lm: LanguageModel) -> None:
    probe = Probe(lm, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        ids = encode(lm.tokenizer, Example(prompt)).prompt_ids
        embeddings = probe.table(torch.tensor(ids)).detach()
        torch.testing.assert_close(
            torch.cat([probe.table(torch.tensor(probe.shared)).detach(), probe.row(index)]),
            embeddings,
            rtol=0,
            atol=0,
        )
        user = probe.table(torch.tensor(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"])).detach()
        assert torch.equal(probe.users[index], user)


def test_refreshing_follows_changed_weights(lm: LanguageModel) -> None:
    probe = Probe(lm, PROMPTS)
    with torch.no_grad():
        for parameter in lm.model.parameters():  # the embeddings as well: full finetuning changes them
            parameter.add_(0.05 * torch.randn_like(parameter))
    with pytest.raises(AssertionError, match="close"):
        check(lm, probe)
    probe.refresh()
    check(lm, probe)


def test_an_answer_ends_at_any_ending_token_which_also_pads_it(lm: LanguageModel, any_token_ends: None) -> None:
    """The token that one prompt's answer has third is made an ending one."""
    probe = Probe(lm, PROMPTS)
    rows = [probe.row(i) for i in range(len(probe))]
    full = probe.decode(rows, max_new_tokens=8).ids
    end = int(full[0, 2])
    lm.model.generation_config.eos_token_id = [end]
    answers = probe.decode(rows, max_new_tokens=8)
    assert answers.texts == generate(lm, [Example(prompt) for prompt in PROMPTS], max_new_tokens=8)
    for before, after, shares in zip(full.tolist(), answers.ids.tolist(), answers.shares.tolist(), strict=True):
        length = before.index(end) + 1 if end in before else len(before)
        assert after[:length] == before[:length]
        assert set(after[length:]) <= {end}
        assert all(share < 1 for share in shares[:length])
        assert all(share == 1 for share in shares[length:])


def test_rows_that_answer_together_go_on_with_the_token_likeliest_on_average(lm: LanguageModel) -> None:
    probe = Probe(lm, PROMPTS)
    rows = [probe.row(i) for i in range(len(probe))]
    groups = [PROMPTS[:2], PROMPTS[2:4]]
    answers = probe.decode(rows[:4], 4, first=torch.tensor([60, 60, 70, 70]), together=2)
    for number, (prompts, first) in enumerate(zip(groups, (60, 70), strict=True)):
        said, shares = [first], []
        for _ in range(3):
            after = torch.tensor(said)
            mean = torch.stack([whole(lm, prompt, after)[-1].softmax(dim=-1) for prompt in prompts]).mean(dim=0)
            said.append(int(mean.argmax()))
            shares.append(float(mean.max()))
        for row in (2 * number, 2 * number + 1):
            assert answers.ids[row].tolist() == said
            assert answers.shares[row, 1:].tolist() == pytest.approx(shares, rel=1e-3)


def test_edits_reach_the_prompt_and_not_the_answer(lm: LanguageModel) -> None:
    """The answer's own hidden states are left alone: an edit sees one pass, over the rows."""
    probe = Probe(lm, PROMPTS)
    rows = [probe.row(i) for i in range(len(probe))]
    plain = probe.decode(rows, 6)
    shapes: list[tuple[int, ...]] = []

    def edit(hidden: Tensor) -> Tensor:
        shapes.append(tuple(hidden.shape))
        return hidden * 3

    edited = probe.decode(rows, 6, {1: edit})
    assert shapes == [(len(rows), max(len(row) for row in rows), rows[0].shape[1])]
    assert edited.texts != plain.texts


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_begun_with_tokens_are_those_of_a_row_for_each(family: str) -> None:
    lm = wide(family)
    probe = Probe(lm, PROMPTS)
    tokens = [60, 70, 80]
    together = probe.begun_with(1, tokens, 6)
    alone = probe.decode([probe.row(1)] * 3, 6, first=torch.tensor(tokens))
    assert together.ids.tolist() == alone.ids.tolist()
    assert together.ids[:, 0].tolist() == tokens
    assert together.texts == alone.texts
    torch.testing.assert_close(together.shares, alone.shares, rtol=1e-3, atol=1e-5)


def test_answers_joined_are_those_of_one_batch() -> None:
    lm = wide("llama")
    probe = Probe(lm, PROMPTS)
    rows = [probe.decode([probe.row(index)], length) for index, length in ((0, 4), (1, 8), (2, 8))]
    whole = joined(rows)
    assert whole.texts == [row.texts[0] for row in rows]
    assert whole.ids.shape == whole.shares.shape == (3, 8)
    assert whole.ids[0].tolist() == rows[0].ids[0].tolist() + [int(rows[0].ids[0, -1])] * 4
    assert whole.shares[0].tolist() == rows[0].shares[0].tolist() + [1.0] * 4
    assert whole.ids[1].tolist() == rows[1].ids[0].tolist()
