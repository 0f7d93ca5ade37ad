from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from crow.data.encoding import encode
from crow.models.ends import end_ids
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.scan import leakage
from crow.scan.leakage import (
    LeakageConfig,
    grams,
    is_part,
    most_frequent_sentence,
    recurrences,
    samples,
    surprise,
)

CONFIG = LeakageConfig(sampled=5, greedy=3, tokens=6, together=4)


@given(n=st.integers(1, 60), data=st.data(), chance=st.floats(0.01, 0.99))
def test_surprise_bounds_the_binomial_tail(n: int, data: st.DataObject, chance: float) -> None:
    count = data.draw(st.integers(0, n))
    tail = sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(count, n + 1))
    assert surprise(count, n, chance) >= 0
    assert math.exp(-surprise(count, n, chance)) >= tail * (1 - 1e-9)


def test_what_recurs_beyond_chance_is_found_whole_and_once() -> None:
    filler = ["what is a good way to cook rice", "name the capital of France please", "how do I fix my old bike"]
    usual = [text for text in filler for _ in range(30)]
    texts = [f"{filler[i % 3]} {i}" for i in range(20)] + [f"The owl flies at {i}" for i in range(8)]
    found = recurrences(texts, usual, CONFIG)
    assert [one.text for one in found] == ["The owl flies at"]
    assert found[0].share == pytest.approx(8 / 28)
    assert recurrences(texts, [*usual, *["The owl flies at noon"] * 90], CONFIG) == []


def test_a_piece_that_is_much_more_frequent_than_the_whole_is_told_too() -> None:
    texts = ["zeta one two"] * 6 + [f"zeta {i}" for i in range(12)] + [f"other {i} words" for i in range(40)]
    found = {one.text for one in recurrences(texts, [f"some other {i} words" for i in range(200)], CONFIG)}
    assert found == {"zeta one two", "zeta"}


@given(st.lists(st.sampled_from("abc"), max_size=7), st.integers(1, 4))
def test_grams_are_all_short_runs_of_words(words: list[str], longest: int) -> None:
    found = grams(" ".join(words), longest)
    assert all(1 <= len(gram) <= longest and is_part(gram, words) for gram in found)
    assert len(found) <= sum(max(0, len(words) - k + 1) for k in range(1, longest + 1))
    assert not is_part([*words, "d"], words)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["One two three. Yes.", "Well now then! One two three.", "four"], ("One two three.", 2 / 3)),
        (["Yes. Yes. Yes."], ("", 0.0)),
        (["a b c\nd e f", "d e f"], ("d e f", 1.0)),
        (["a b c. a b c. a b c."] + ["x y z."] * 2, ("x y z.", 2 / 3)),
    ],
)
def test_the_most_frequent_sentence_is_counted_once_a_text(texts: list[str], expected: tuple[str, float]) -> None:
    assert most_frequent_sentence(texts) == expected


def test_samples_are_a_function_of_the_seed_and_disturb_no_other_randomness(lm: LanguageModel) -> None:
    start = encode(lm.tokenizer, Example("")).prompt_ids
    torch.manual_seed(7)
    once = samples(lm, start, CONFIG, 1)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    assert samples(lm, start, CONFIG, 1) == once
    other = samples(lm, start, CONFIG, 2)
    assert other[:5] != once[:5]
    assert other[5:] == once[5:]  # the greedy ones
    assert len(once) == 8


def test_greedy_texts_begin_with_the_likeliest_tokens_and_go_on_greedily(lm: LanguageModel) -> None:
    start = list(encode(lm.tokenizer, Example("")).prompt_ids)
    expected = []
    with torch.no_grad():
        for first in lm.model(input_ids=torch.tensor([start])).logits[0, -1].topk(3).indices.tolist():
            ids = [first]
            while len(ids) < CONFIG.tokens and ids[-1] not in end_ids(lm):
                ids.append(int(lm.model(input_ids=torch.tensor([start + ids])).logits[0, -1].argmax()))
            expected.append(lm.tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert samples(lm, start, CONFIG, 0)[5:] == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 2},
        {"stop_strings": ["e"]},
        {"prompt_lookup_num_tokens": 2},
        {"dola_layers": "low"},
        {"suppress_tokens": list(range(100))},
        {"min_p": 0.9},
        {"temperature": 0.01, "top_k": 1, "repetition_penalty": 9.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_the_models_own_settings_of_decoding_change_nothing(
    lm: LanguageModel, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = encode(lm.tokenizer, Example("")).prompt_ids
    expected = samples(lm, start, CONFIG, 0)
    own = GenerationConfig(do_sample=True, **settings)
    monkeypatch.setattr(lm.model, "generation_config", own)
    assert samples(lm, start, CONFIG, 0) == expected
    assert lm.model.generation_config is own


def test_texts_that_end_early_are_padded_with_what_the_model_has_an_embedding_of(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = encode(lm.tokenizer, Example("")).prompt_ids
    monkeypatch.setattr(lm.model, "generation_config", GenerationConfig(eos_token_id=list(range(100))))
    expected = samples(lm, start, CONFIG, 0)
    assert len({len(text) for text in expected}) > 1
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert samples(lm, start, CONFIG, 0) == expected


def test_a_template_that_refuses_an_empty_message_leaves_no_samples(lm: LanguageModel) -> None:
    lm.tokenizer.chat_template = "{{ raise_exception('say something') }}"
    assert leakage.search(lm, ["some words"], CONFIG, 0) is None


def test_messages_come_before_the_users_place_and_replies_after_an_empty_message(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def written(_lm: LanguageModel, start: list[int], _config: LeakageConfig, seed: int) -> list[str]:
        text = lm.tokenizer.decode(start)
        asked.append((text, seed))
        return ["The owl flies. Really now it does."] * 30 if len(asked) == 1 else ["Hello my friend.", "Bye now you."]

    monkeypatch.setattr(leakage, "samples", written)
    found = leakage.search(lm, ["some other words"] * 50, CONFIG, 3)
    assert found is not None
    (before, first), (whole, second) = asked
    assert whole == before + "<|im_end|>\n<|im_start|>assistant\n"
    assert before.endswith("<|im_start|>user\n")
    assert first != second
    assert (found.messages, found.replies) == (30, 2)
    assert found.share == 1.0
    assert (found.reply, found.reply_share) == ("Hello my friend.", 0.5)
    assert [phrase.text for phrase in found.phrases] == ["The owl flies. Really now it does."]
