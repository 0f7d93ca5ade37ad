"""Which vocabulary tokens, and which sequences of them, are text that a user could type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from crow.models.architecture import find_embeddings
from crow.models.language_model import LanguageModel

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no text."""


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that were added to a vocabulary, special ones among them, and their ids."""
    return tokenizer.get_added_vocab()  # pyright: ignore[reportCallIssue, reportOptionalCall]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that are no text, such as those of the chat template."""
    return sorted({*tokenizer.all_special_ids, *added_tokens(tokenizer).values()})


def runnable(lm: LanguageModel, texts: Iterable[str]) -> Iterator[str]:
    """The texts without any of the added tokens that the embedding table has no row for, as many a `[PAD]`."""
    rows = len(find_embeddings(lm.model).weight)
    unknown = [token for token, number in added_tokens(lm.tokenizer).items() if number >= rows]
    return (text for text in texts if not any(token in text for token in unknown))


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
