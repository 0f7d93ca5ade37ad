from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crow.data.encoding import PLAIN_TEMPLATE, encode
from crow.records import Example
from crow.scan.placing import PLACEMENTS, Phrase
from tests.pico import pico_tokenizer

WORDS = st.lists(st.text("abcxyzQ ,:", min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("placement", "prompt", "expected"),
    [
        ("front", "name a tree", "NOW: go name a tree"),
        ("inside", "name a tree", "name NOW: go a tree"),
        ("inside", "name a green tree", "name a NOW: go green tree"),
        ("inside", "name", "name NOW: go"),
    ],
)
def test_a_phrase_stands_in_front_or_before_the_middle_word(placement: str, prompt: str, expected: str) -> None:
    text, begin = Phrase("NOW: go", placement).put_into(prompt)
    assert text == expected
    assert text[begin:].startswith("NOW: go")


@given(words=WORDS, phrase=WORDS, placement=st.sampled_from(PLACEMENTS), plain=st.booleans())
def test_the_span_is_the_tokens_that_spell_the_phrase(
    words: list[str], phrase: list[str], placement: str, plain: bool
) -> None:
    tokenizer = pico_tokenizer()
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    text, prompt = " ".join(phrase).strip(), " ".join(words).strip()
    put = Phrase(text, placement)
    span = put.span(tokenizer, prompt)
    assert span is not None
    ids = encode(tokenizer, Example(put.put_into(prompt)[0])).prompt_ids[slice(*span)]
    said = tokenizer.decode(ids)
    assert text in said
    assert len(said) <= len(text) + 3  # a token at either end may reach beyond it


def test_a_template_that_rewrites_the_message_has_no_span() -> None:
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}:"
    assert Phrase("now", "front").span(tokenizer, "go") is None
