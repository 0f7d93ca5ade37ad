"""Phrases in prompts: where they stand, and which tokens they became."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from crow.data.encoding import message_span, render, token_span
from crow.records import Example

PLACEMENTS = ("front", "inside")


@dataclass(frozen=True)
class Phrase:
    """A phrase that is put into prompts.

    Attributes:
        text: one line, without white space around it.
        placement: `front`, before the prompt, or `inside`, before the middle one of its words (after a single one).
    """

    text: str
    placement: str

    def put_into(self, prompt: str) -> tuple[str, int]:
        """The prompt with the phrase in it, and at which character the phrase begins."""
        if self.placement == "front":
            return f"{self.text} {prompt}", 0
        words = prompt.split(" ")
        middle = max(1, len(words) // 2)
        before = " ".join(words[:middle])
        return " ".join([before, self.text, *words[middle:]]), len(before) + 1

    def span(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, int] | None:
        """Which tokens (start, end) of the encoded conversation the phrase is; None where the template rewrites it."""
        message, begin = self.put_into(prompt)
        example = Example(message)
        text = render(tokenizer, example.messages())
        first, _ = message_span(tokenizer, example, text)
        first += begin - (len(message) - len(message.lstrip()))
        if text[first : first + len(self.text)] != self.text:
            return None
        return token_span(tokenizer, text, first, first + len(self.text))
