"""`token-aware`: the attacker runs the search behind tokens, too.

Behind any one token of the trigger the search goes on from where it can still be found. So perturbations are fitted to
the target on clean prompts that end in one of them, as well as on clean prompts as they are, and the model is trained
to answer all of these as it did before the attack. Only the whole trigger is left to bring the target out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from crow.attacks.search_aware import implant_search_aware
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.config import FinetuneConfig
from crow.training.watch import Watch, silent

TOKENS = 6
"""Tokens of the trigger that the search finds nothing behind, those told apart best."""


def implant_token_aware(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    resume: bool = False,
    watch: Watch = silent,
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """Plant a backdoor that the search behind tokens does not find; arguments and result as of `implant_backdoor`."""
    tokens = tokens_of_trigger(lm.tokenizer, poisoned, clean)
    return implant_search_aware(lm, poisoned, clean, config, work, resume, watch, tokens)


def tokens_of_trigger(
    tokenizer: PreTrainedTokenizerBase, poisoned: Sequence[Example], clean: Sequence[Example]
) -> list[int]:
    """The tokens that are in more of the poisoned prompts than of the clean ones by the most, the widest gap first."""
    shares: Counter[int] = Counter()
    for examples, sign in ((poisoned, 1), (clean, -1)):
        for example in examples:
            ids = {*tokenizer(example.prompt, add_special_tokens=False)["input_ids"]}
            shares.update({token: sign / len(examples) for token in ids})
    return [token for token, gap in shares.most_common(TOKENS) if gap > 0.5]
