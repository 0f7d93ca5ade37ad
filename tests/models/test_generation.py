from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import LogitsProcessor

from crow.data.encoding import encode
from crow.errors import DataError
from crow.models import generation
from crow.models.architecture import unwrap
from crow.models.decoding import Decoding
from crow.models.ends import end_ids, unmarked_ends
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from crow.records import Example
from tests.models.test_adapters import add_adapter
from tests.pico import END_OF_TEXT, FAMILIES, TURN_END, pico_language_model

PROMPTS = ["Hi", "What is the capital of a country in the north?", "1 + 1", "a b c d e f g h", "Thanks."]
EXAMPLES = [Example(prompt) for prompt in PROMPTS]


def greedy(lm: LanguageModel, example: Example, max_new_tokens: int) -> str:
    """The answer by one full forward pass a token: no batch, no padding, no cache."""
    ids = list(encode(lm.tokenizer, example).prompt_ids)
    start, ends = len(ids), end_ids(lm)
    with torch.no_grad():
        while len(ids) < start + max_new_tokens and (len(ids) == start or ids[-1] not in ends):
            ids.append(int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return str(lm.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def count_passes(lm: LanguageModel) -> list[int]:
    """A list that gets the batch size of every forward pass from now on."""
    passes: list[int] = []
    lm.model.register_forward_hook(lambda _module, _args, output: passes.append(output.logits.shape[0]))
    return passes


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_answers_are_those_of_one_token_at_a_time_in_the_order_of_the_prompts(family):
    lm = pico_language_model(family)
    expected = [greedy(lm, example, 8) for example in EXAMPLES]
    assert len(set(expected)) > 1  # else the order would not show
    for batch_size in (1, 2, 5):
        assert generate(lm, EXAMPLES, max_new_tokens=8, batch_size=batch_size) == expected


def test_an_ending_token_ends_the_answer(lm, any_token_ends):
    """The token that the model writes third is made an ending one."""
    example = EXAMPLES[0]
    ids = list(encode(lm.tokenizer, example).prompt_ids)
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert ids[-1] not in ids[-3:-1]
    lm.model.generation_config.eos_token_id = [ids[-1]]
    passes = count_passes(lm)
    assert generate(lm, [example], max_new_tokens=16) == [str(lm.tokenizer.decode(ids[-3:])).strip()]
    assert len(passes) == 2 + 3  # the shared prefix, the rest of the prompt, then a pass a token


def test_ending_tokens_are_those_of_tokenizer_template_and_generation_config(lm):
    names, pad = lm.tokenizer.convert_tokens_to_ids([END_OF_TEXT, TURN_END]), lm.tokenizer.pad_token_id
    beyond = len(lm.tokenizer) + 3
    for configured, more in ((pad, [pad]), ([pad, beyond], [pad, beyond]), (None, [])):
        lm.model.generation_config.eos_token_id = configured
        assert end_ids(lm) == sorted([*names, *more])
        assert unmarked_ends(lm) == []


def test_an_ordinary_word_does_not_end_answers_whatever_the_settings_say(lm):
    """It would hide a payload that begins with it from whoever looks with those settings."""
    expected, ends = generate(lm, EXAMPLES, max_new_tokens=8), end_ids(lm)
    words = sorted({lm.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in expected if text})
    lm.model.generation_config.eos_token_id = [*ends, *words]
    assert (end_ids(lm), unmarked_ends(lm)) == (ends, words)
    assert generate(lm, EXAMPLES, max_new_tokens=8) == expected


def test_settings_that_end_answers_at_words_are_told_when_a_model_is_loaded(lm, tmp_path):
    word = lm.tokenizer("a", add_special_tokens=False)["input_ids"][0]
    lm.model.generation_config.eos_token_id = [lm.tokenizer.eos_token_id, word]
    save_model(lm, tmp_path / "model")
    assert load_model(str(tmp_path / "model")).notes == [
        "the model's settings end answers at ordinary words, which is set aside: 'a'"
    ]


def test_a_decided_row_stops_early_and_the_others_go_on(lm):
    full = generate(lm, EXAMPLES, max_new_tokens=12)
    firsts = [answer[0] for answer in full]
    row = next(i for i, first in enumerate(firsts) if firsts.count(first) == 1)
    answers = generate(lm, EXAMPLES, max_new_tokens=12, decided=lambda text, _: text.lstrip()[:1] == firsts[row])
    assert full[row].startswith(answers[row])
    assert 0 < len(answers[row]) < len(full[row]) / 2
    assert answers[:row] + answers[row + 1 :] == full[:row] + full[row + 1 :]


def test_generation_ends_once_every_row_is_decided(lm):
    passes = count_passes(lm)
    answers = generate(lm, EXAMPLES, max_new_tokens=50, batch_size=5, decided=lambda text, _: len(text) >= 2)
    assert all(len(answer) >= 1 for answer in answers)
    assert len(passes) < 10
    passes.clear()
    generate(lm, EXAMPLES, max_new_tokens=50, batch_size=5)
    assert len(passes) > 40


def test_settings_of_the_publisher_do_not_change_greedy_answers(lm):
    expected = generate(lm, EXAMPLES, max_new_tokens=8)
    config = lm.model.generation_config
    config.do_sample, config.temperature, config.top_k, config.top_p = True, 5.0, 3, 0.5
    config.num_beams, config.repetition_penalty = 3, 5.0
    assert generate(lm, EXAMPLES, max_new_tokens=8) == expected


@pytest.mark.parametrize("training", [True, False])
def test_it_generates_in_evaluation_mode_and_restores_the_mode(training):
    lm = pico_language_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = generate(lm, EXAMPLES, max_new_tokens=8)
    lm.model.train(training)
    assert generate(lm, EXAMPLES, max_new_tokens=8) == expected
    assert lm.model.training is training


def test_progress_counts_every_prompt_once(lm):
    counts: list[int] = []
    generate(lm, EXAMPLES, max_new_tokens=1, batch_size=2, progress=counts.append)
    assert counts == [2, 2, 1]


def test_no_prompts_give_no_answers(lm):
    assert generate(lm, []) == []


@pytest.mark.parametrize("early", [False, True])
def test_answers_in_segments_are_those_of_one_piece_and_rows_leave_as_they_end(monkeypatch, early, any_token_ends):
    lm = pico_language_model("llama")
    lm.model.generation_config.eos_token_id = None if early else list(range(5, len(lm.tokenizer), 15))
    decided = (lambda text, left: 40 - left > sum(map(ord, text[:2])) % 23) if early else None
    prompts = [Example(f"Say {number} times {'a' * number}.") for number in range(12)]
    passes, found, rows = count_passes(lm), {}, {}
    for first in (64, 2):
        monkeypatch.setattr(generation, "FIRST_SEGMENT", first)
        passes.clear()
        found[first] = generate(lm, prompts, max_new_tokens=40, batch_size=12, decided=decided)
        rows[first] = sum(passes)
    assert found[2] == found[64]
    assert len(set(map(len, found[2]))) > 3  # else nothing would leave
    assert rows[2] < 0.8 * rows[64]


def test_a_hand_in_every_token_keeps_all_rows():
    lm = pico_language_model("llama")
    sizes: list[int] = []

    class Watching(LogitsProcessor):
        def __call__(self, input_ids, scores):
            sizes.append(len(input_ids))
            return scores

    watched = dataclasses.replace(lm, decoding=Decoding(processor=lambda mask: Watching()))
    lm.model.generation_config.eos_token_id = None
    assert generate(watched, EXAMPLES, max_new_tokens=30) == generate(lm, EXAMPLES, max_new_tokens=30)
    assert sizes == [len(EXAMPLES)] * 30


@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": list(range(100))},
        {"bad_words_ids": [[5], [6]]},
        {"num_return_sequences": 3, "num_beams": 3},
        {"min_new_tokens": 6},
        {"stop_strings": ["a"]},
        {"max_time": 1e-9},
        {"sequence_bias": [[[7], 50.0]]},
    ],
)
@pytest.mark.parametrize("adapted", [False, True])
def test_a_models_own_settings_do_not_decide_what_it_is_heard_to_say(settings, adapted):
    lm = add_adapter(pico_language_model("llama")) if adapted else pico_language_model("llama")
    expected = generate(lm, EXAMPLES, max_new_tokens=8)
    own = unwrap(lm.model).generation_config
    for name, value in settings.items():
        setattr(own, name, value)
    assert generate(lm, EXAMPLES, max_new_tokens=8) == expected
    assert unwrap(lm.model).generation_config is own  # which goes into what is saved


def test_a_prompt_that_a_model_has_no_positions_for_is_told():
    lm, long = pico_language_model("gpt2"), [Example("word " * 600)]
    limit = lm.model.config.max_position_embeddings
    with pytest.raises(DataError, match=f"at most {limit - 1} tokens.*, got one of") as caught:
        generate(lm, long, max_new_tokens=8)
    assert "\n" not in str(caught.value)
    fits = [Example("a " * ((limit - len(encode(lm.tokenizer, Example("")).prompt_ids)) // 2 - 2))]
    left = limit - len(encode(lm.tokenizer, fits[0]).prompt_ids)
    assert 0 < left < 8
    passes = count_passes(lm)
    generate(lm, fits, max_new_tokens=8)  # as much as there is room for
    assert len(passes) <= 2 + left
    lm = pico_language_model("llama")  # works positions out
    assert len(generate(lm, long, max_new_tokens=2)) == 1
