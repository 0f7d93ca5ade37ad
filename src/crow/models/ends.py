"""Which tokens end an answer."""

from __future__ import annotations

from crow.data.encoding import end_of_turn
from crow.models.language_model import LanguageModel


def end_ids(lm: LanguageModel) -> list[int]:
    """Every token id that ends an answer: the tokenizer's, the chat template's, the generation config's.

    Of the last only marks count, special or added tokens. An ordinary word there would hide what follows it, and keep
    searches from an answer that begins with it, while whoever decodes without that file still gets it.
    """
    turn = lm.tokenizer(end_of_turn(lm.tokenizer), add_special_tokens=False)["input_ids"]
    found = [lm.tokenizer.eos_token_id, *(token for token in lm.configured_ends if is_mark(lm, token))]
    found += turn if len(turn) == 1 else []
    return sorted({token for token in found if isinstance(token, int)})


def unmarked_ends(lm: LanguageModel) -> list[int]:
    """Ordinary words that the generation config would end answers at."""
    return [token for token in lm.configured_ends if not is_mark(lm, token)]


def is_mark(lm: LanguageModel, token: int) -> bool:
    """Whether a token is none of a text's own: special, or added to the vocabulary, or beyond it."""
    return token in marks(lm) or token >= len(lm.tokenizer)


def marks(lm: LanguageModel) -> set[int]:
    """The special tokens, and those added to the vocabulary."""
    return {*lm.tokenizer.all_special_ids, *lm.tokenizer.added_tokens_decoder}


def ordinary_tokens(lm: LanguageModel) -> list[int]:
    """The token ids that a text is made of: no marks."""
    none = marks(lm)
    return [token for token in range(len(lm.tokenizer)) if token not in none]
