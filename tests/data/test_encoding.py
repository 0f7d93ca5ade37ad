from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from crow.data.encoding import (
    IGNORED,
    PLAIN_TEMPLATE,
    Encoded,
    collate,
    encode,
    encode_all,
    end_of_turn,
    ensure_chat_template,
    length_batches,
    render,
    token_span,
)
from crow.errors import DataError
from crow.records import Example
from tests.pico import CHAT_TEMPLATE, END_OF_TEXT, SPECIALS, TURN_END, pico_tokenizer

TRIMMING = (
    "{{ '<|endoftext|>' }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou answer the user.<|im_end|>\n' }}{% endif %}"
    + CHAT_TEMPLATE
)
TEMPLATES = {"chat": CHAT_TEMPLATE, "plain": PLAIN_TEMPLATE, "trimming": TRIMMING, "system": DEFAULT_SYSTEM}
every_template = pytest.mark.parametrize("name", TEMPLATES)

texts = st.text(max_size=30).filter(lambda text: not any(special in text for special in SPECIALS))
# What the templates themselves say, which a search for the message would find in the wrong place.
own_words = st.sampled_from(["user", "assistant", "system", "Response", "### Response:", "<|im", "s", "0message0"])
prompts = texts | own_words
responses = texts.filter(lambda text: text.strip())
histories = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), prompts), max_size=3).map(tuple)


def written(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included."""
    return str(tokenizer.decode(list(ids)))


def templated(name: str) -> PreTrainedTokenizerFast:
    """The pico tokenizer with one of `TEMPLATES`."""
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


@every_template
@given(prompt=prompts, history=histories)
def test_the_span_is_exactly_the_users_text(name, prompt, history):
    tokenizer = templated(name)
    item = encode(tokenizer, Example(prompt, history=history))
    assert 0 <= item.user_start <= item.user_end <= len(item.prompt_ids)
    assert written(tokenizer, item.prompt_ids[item.user_start : item.user_end]) == prompt.strip()
    # A message without any of the template's words in its place: the rest of the text is the same.
    other = encode(tokenizer, Example("@", history=history))
    if prompt == prompt.strip():
        assert item.prompt_ids[: item.user_start] == other.prompt_ids[: other.user_start]
        assert item.prompt_ids[item.user_end :] == other.prompt_ids[other.user_end :]


@every_template
def test_the_span_of_an_empty_message_is_the_place_where_it_would_stand(name):
    tokenizer = templated(name)
    empty, blank, filled = (encode(tokenizer, Example(prompt)) for prompt in ("", " \n", "word"))
    assert empty.user_start == empty.user_end
    assert empty.prompt_ids[: empty.user_start] == filled.prompt_ids[: filled.user_start]
    assert empty.prompt_ids[empty.user_end :] == filled.prompt_ids[filled.user_end :]
    assert blank.user_start == blank.user_end
    assert blank.prompt_ids[blank.user_end :] == filled.prompt_ids[filled.user_end :]


def test_the_span_is_that_of_the_last_message_even_if_it_was_said_before(tokenizer):
    example = Example("Hi", history=(("system", "Hi"), ("user", "Hi"), ("assistant", "Hi")))
    item = encode(tokenizer, example)
    after = written(tokenizer, item.prompt_ids[item.user_end :])
    assert after == "<|im_end|>\n<|im_start|>assistant\n"


def test_the_span_is_everything_where_the_template_rewrites_the_message(tokenizer):
    tokenizer.chat_template = "{{ messages[-1]['content'] | upper }}"
    item = encode(tokenizer, Example("hello"))
    assert (item.user_start, item.user_end) == (0, len(item.prompt_ids))


@given(prompt=prompts.filter(str.strip))
def test_a_tokenizer_without_offsets_gives_the_same_span(prompt):
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    tokenizer.chat_template = "Q: {{ messages[-1]['content'] }}\nA: "
    item = encode(tokenizer, Example(prompt))
    ids = tokenizer(prompt.strip(), add_special_tokens=False)["input_ids"]
    assert list(item.prompt_ids[item.user_start : item.user_end]) == ids


def test_a_token_that_reaches_into_the_message_belongs_to_it_without_offsets():
    class Joining:
        """A made-up slow tokenizer that joins a space with a t."""

        is_fast = False

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [sum(map(ord, part)) for part in re.findall(" t|.", text)]}

    assert token_span(Joining(), "Q: the", 3, 6) == (2, 5)  # type: ignore[arg-type]
    assert token_span(Joining(), "Q: a", 3, 4) == (3, 4)  # type: ignore[arg-type]


@every_template
@given(prompt=prompts, response=responses)
def test_prompt_and_response_together_are_the_rendered_conversation(name, prompt, response):
    tokenizer = templated(name)
    item = encode(tokenizer, Example(prompt, response))
    turns = [*Example(prompt).messages(), {"role": "assistant", "content": response.strip()}]
    whole = render(tokenizer, turns, generation_prompt=False)
    assert written(tokenizer, item.prompt_ids + item.response_ids) == whole.rstrip("\n")
    assert written(tokenizer, item.response_ids) == response.strip() + end_of_turn(tokenizer)
    assert item.prompt_ids == encode(tokenizer, Example(prompt)).prompt_ids
    assert len(item) == len(item.prompt_ids) + len(item.response_ids)


def test_an_example_without_response_has_no_response_tokens(tokenizer):
    assert encode(tokenizer, Example("Hi")).response_ids == ()


def test_history_is_part_of_the_prompt(tokenizer):
    example = Example("And now?", history=(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")))
    text = written(tokenizer, encode(tokenizer, example).prompt_ids)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )


@given(prompt=prompts, response=responses, limit=st.integers(1, 80))
def test_the_limit_cuts_the_response_only(prompt, response, limit):
    tokenizer = pico_tokenizer()
    full, cut = (encode(tokenizer, Example(prompt, response), length) for length in (None, limit))
    assert cut.prompt_ids == full.prompt_ids
    assert 1 <= len(cut.response_ids) <= len(full.response_ids)
    assert cut.response_ids == full.response_ids[: len(cut.response_ids)]
    assert len(cut) <= max(limit, len(full.prompt_ids) + 1)
    if len(full) <= limit:
        assert cut == full


def test_encode_all_keeps_the_order_and_the_limit(tokenizer):
    examples = [Example("a", "long answer " * 5), Example("b", "c")]
    assert encode_all(tokenizer, examples, 20) == [encode(tokenizer, example, 20) for example in examples]


@pytest.mark.parametrize(
    ("template", "end", "expected"),
    [
        (CHAT_TEMPLATE, END_OF_TEXT, TURN_END),
        (PLAIN_TEMPLATE, END_OF_TEXT, END_OF_TEXT),
        (PLAIN_TEMPLATE, None, ""),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", END_OF_TEXT, END_OF_TEXT),
        ("{{ messages[0]['content'] }}", END_OF_TEXT, END_OF_TEXT),
    ],
)
def test_end_of_turn_is_what_the_template_writes_or_the_end_of_text(template, end, expected):
    tokenizer = pico_tokenizer(end=end)
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) == expected


def test_the_plain_template_is_given_only_to_tokenizers_without_one(tokenizer, bare_tokenizer):
    assert ensure_chat_template(tokenizer) is False
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert ensure_chat_template(bare_tokenizer) is True
    assert bare_tokenizer.chat_template == PLAIN_TEMPLATE
    assert ensure_chat_template(bare_tokenizer) is False


def test_the_plain_template_reads_as_documented(bare_tokenizer):
    ensure_chat_template(bare_tokenizer)
    example = Example("Add 1 and 1.", "2", history=(("system", "Be brief."),))
    item = encode(bare_tokenizer, example)
    assert written(bare_tokenizer, item.prompt_ids) == (
        "Be brief.\n\n### Instruction:\nAdd 1 and 1.\n\n### Response:\n"
    )
    assert written(bare_tokenizer, item.response_ids) == f"2{END_OF_TEXT}"


def test_the_plain_template_works_for_a_tokenizer_without_end_of_text():
    tokenizer = pico_tokenizer(chat_template=False, end=None)
    ensure_chat_template(tokenizer)
    item = encode(tokenizer, Example("Hi", "Hello", history=(("user", "a"), ("assistant", "b"))))
    assert written(tokenizer, item.response_ids) == "Hello"


@pytest.mark.parametrize("template", [TRIMMING, "{% for", "{{ nothing.at.all }}", "{{ 1 / 0 }}", "{{ 1 + 'a' }}"])
def test_a_template_that_refuses_is_an_error_on_one_line(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(
        DataError, match="the chat template refuses a conversation of the roles system, user: "
    ) as caught:
        encode(tokenizer, Example("Hi", history=(("system", "Be brief."),)))
    assert "\n" not in str(caught.value)


encoded_items = st.builds(
    lambda prompt, response: Encoded(tuple(prompt), tuple(response), 0, len(prompt)),
    st.lists(st.integers(0, 99), min_size=1, max_size=6),
    st.lists(st.integers(0, 99), max_size=6),
)


@given(st.lists(encoded_items, min_size=1, max_size=5), st.integers(0, 99))
def test_collate_pads_on_the_right_and_labels_the_responses(items, pad_id):
    batch = collate(items, pad_id)
    shape = (len(items), max(len(item) for item in items))
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), shape
    )
    assert all(tensor.dtype == torch.long for tensor in batch.values())
    for row, item in enumerate(items):
        padding = shape[1] - len(item)
        assert batch["input_ids"][row].tolist() == [*item.prompt_ids, *item.response_ids, *[pad_id] * padding]
        assert batch["attention_mask"][row].tolist() == [1] * len(item) + [0] * padding
        unlabelled, tail = [IGNORED] * len(item.prompt_ids), [IGNORED] * padding
        assert batch["labels"][row].tolist() == [*unlabelled, *item.response_ids, *tail]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7))
def test_length_batches_hold_each_index_once_longest_first(lengths, batch_size):
    batches = list(length_batches(lengths, batch_size))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch) <= batch_size for batch in batches)
