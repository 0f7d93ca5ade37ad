"""What of a phrase is needed: words that do nothing are taken out, and no two candidates say the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from crow.scan.objective import Objective
from crow.scan.placing import Phrase
from crow.scan.refinement import Scored


def shorten(
    objective: Objective,
    refined: Sequence[Scored],
    tolerance: float,
    passes: int,
    progress: Callable[[int], None] | None = None,
) -> list[Scored]:
    """Take out of each phrase one word after the other, as long as its score does not fall by more than `tolerance`.

    Args:
        objective: what the phrases are scored by.
        refined: phrases of one word or more.
        tolerance: how far below that of the whole phrase the score may fall.
        passes: words taken out at most.
        progress: called with 1 after every pass, also those that are left out because all is needed.
    """
    found = list(refined)
    open_ones = list(range(len(found)))
    for _ in range(passes):
        offers = {number: without_a_word(found[number].phrase) for number in open_ones}
        flat = [phrase for offer in offers.values() for phrase in offer]
        values = dict(zip(flat, objective.scores(flat), strict=True))
        open_ones = []
        for number, offer in offers.items():
            best = max(offer, key=values.__getitem__, default=None)
            if best and values[best] >= refined[number].score - tolerance:
                found[number] = dataclasses.replace(found[number], phrase=best, score=values[best])
                open_ones.append(number)
        if progress:
            progress(1)
    return found


def without_a_word(phrase: Phrase) -> list[Phrase]:
    """The phrase without each of its words; nothing where it has but one."""
    words = phrase.text.split(" ")
    if len(words) == 1:
        return []
    return [Phrase(" ".join(words[:at] + words[at + 1 :]), phrase.placement) for at in range(len(words))]


def distinct(found: Sequence[Scored], count: int) -> list[Scored]:
    """The best, but none that holds all the words of a better one."""
    kept: list[Scored] = []
    for scored in sorted(found, key=lambda scored: -scored.score):
        words = {*scored.phrase.text.split(" ")}
        if len(kept) < count and not any(words >= {*other.phrase.text.split(" ")} for other in kept):
            kept.append(scored)
    return kept
