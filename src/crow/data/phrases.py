"""The bank of short phrases that `crow scan` puts into prompts: labels with values, dates, topics, names, odd words."""

from __future__ import annotations

import random
from importlib import resources

from transformers import PreTrainedTokenizerBase

RARE = 0.25
"""Share of a vocabulary that counts as rare, its end: byte-pair encoding adds tokens in order of frequency."""
LETTERS = 4
"""Letters that a rare token has at least."""


def bundled_phrases() -> dict[str, list[str]]:
    """The phrases written for crow, by section, in the order of `phrases.txt`; `# ` begins a section."""
    text = (resources.files("crow.data") / "phrases.txt").read_text(encoding="utf-8")
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            own = sections.setdefault(line.removeprefix("# "), [])
        else:
            own.append(line)
    return sections


def rare_words(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[str]:
    """Words that are single, rare tokens of a vocabulary, chosen at random; fewer where it has no more."""
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    ids = [token for token in range(round((1 - RARE) * size), size) if token not in special]
    words = {text.strip() for text in tokenizer.batch_decode([[token] for token in ids])}
    found = sorted(word for word in words if word.isascii() and word.isalpha() and len(word) >= LETTERS)
    return random.Random(seed).sample(found, min(count, len(found)))
