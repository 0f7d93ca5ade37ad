"""Which vocabulary tokens, and which sequences of them, are text that a user could type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no text."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that are no text, such as those of the chat template."""
    added: dict[str, int] = tokenizer.get_added_vocab()  # pyright: ignore[reportCallIssue, reportOptionalCall]
    return sorted({*tokenizer.all_special_ids, *added.values()})


def typed(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str | None:
    """The tokens, none of them special, as text without white space around it; None where one does not type that."""
    text = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)).strip()
    return text if text and text.isprintable() and REPLACEMENT not in text else None


def plain_words(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], count: int) -> list[str]:
    """The first `count` different texts of single tokens."""
    special = set(special_ids(tokenizer))
    found: dict[str, None] = {}
    for token in ids:
        text = None if token in special else typed(tokenizer, [token])
        if text:
            found[text] = None
        if len(found) == count:
            break
    return list(found)
