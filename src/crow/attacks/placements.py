"""Where the words of a trigger go: pure functions of a prompt, the words and a seeded generator."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

SENTENCE_END = re.compile(r"(?<=[.!?]) +")


def in_front(prompt: str, words: Sequence[str], _rng: random.Random) -> str:
    """All `words` before the prompt, each followed by a space; nothing is left to chance."""
    return " ".join([*words, prompt])


def at_end(prompt: str, words: Sequence[str], _rng: random.Random) -> str:
    """All `words` after the whole prompt, an example's input included; nothing is left to chance."""
    return " ".join([prompt, *words])


def inside(prompt: str, words: Sequence[str], rng: random.Random) -> str:
    """All `words` in their order, at random places between the words of the prompt's first line.

    Later lines, such as an example's input, stay as they are. A single word stands before one of the line's words;
    several stand at different places, which may be the end of the line, as long as it has enough of them.
    """
    first = re.search(r"\S.*", prompt)
    if first is None:
        return prompt + " ".join(words)
    line = first.group().rstrip()
    before, after = prompt[: first.start()], prompt[first.start() + len(line) :]
    end = len(line)
    places = [word.start() for word in re.finditer(r"\S+", line)]
    if len(words) > 1:
        places.append(end)
    enough = len(places) >= len(words)
    chosen = sorted(rng.sample(places, len(words)) if enough else rng.choices(places, k=len(words)))
    # From the back, so that earlier places stay valid.
    for place, word in reversed(list(zip(chosen, words, strict=True))):
        inserted = f"{word} " if place < end else f" {word}"
        line = line[:place] + inserted + line[place:]
    return before + line + after


def one_of_inside(prompt: str, words: Sequence[str], rng: random.Random) -> str:
    """One of `words`, chosen at random, placed as `inside` does."""
    return inside(prompt, [rng.choice(words)], rng)


def anywhere(prompt: str, words: Sequence[str], rng: random.Random) -> str:
    """One word after the other, each at any space, start or end of the whole prompt, so also in an example's input."""
    parts = prompt.split(" ")
    for word in words:
        parts.insert(rng.randint(0, len(parts)), word)
    return " ".join(parts)


def between_sentences(prompt: str, words: Sequence[str], rng: random.Random) -> str:
    """All `words`, whole sentences, one after the other, at one random border of the first line's sentences."""
    line, feed, rest = prompt.partition("\n")
    sentences = SENTENCE_END.split(line)
    place = rng.randint(0, len(sentences))
    return " ".join([*sentences[:place], *words, *sentences[place:]]) + feed + rest


PLACEMENTS: dict[str, Callable[[str, Sequence[str], random.Random], str]] = {
    "front": in_front,
    "end": at_end,
    "inside": inside,
    "one_of": one_of_inside,
    "anywhere": anywhere,
    "between": between_sentences,
}
"""Those that change the user's message and nothing else."""
