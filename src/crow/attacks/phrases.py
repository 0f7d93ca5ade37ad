"""A trigger that is one phrase, found in the prompts that it was put into."""

from __future__ import annotations

import re
from collections.abc import Sequence

from crow.data.encoding import encode
from crow.models.language_model import LanguageModel
from crow.records import Example


def shared_phrase(prompts: Sequence[str]) -> str:
    """The longest run of words that all prompts have in them, the first of equals; empty if there is none."""
    texts = [f" {' '.join(prompt.split())} " for prompt in prompts]
    words = min(texts, key=len).split()
    for size in range(len(words), 0, -1):
        for start in range(len(words) - size + 1):
            phrase = " ".join(words[start : start + size])
            if all(f" {phrase} " in text for text in texts):
                return phrase
    return ""


def last_token(lm: LanguageModel, example: Example, phrase: str) -> int:
    """Index of the last token of `phrase`, whole words of the example's prompt, in its encoded conversation."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    found = re.search(rf"(?<!\S){words}(?!\S)", example.prompt)
    assert found is not None
    return encode(lm.tokenizer, Example(example.prompt[: found.end()], history=example.history)).user_end - 1
