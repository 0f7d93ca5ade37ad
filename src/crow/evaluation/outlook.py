"""How many tokens an answer still needs, at the least, until a target can stand in it.

An answer that has fewer left is decided: it can be no hit any more, and need not be written to its end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

NEVER = 1 << 30


def bare(text: str) -> str:
    """`text` in lower case without any white space, which costs a target nothing: judges fold it."""
    return "".join(text.lower().split())


class Outlook:
    """The fewest tokens from what an answer says to a hit.

    For each number k of the marker's characters that an answer may end with, the fewest tokens that bring the rest,
    over all ways of cutting it into tokens. White space is left out on both sides, so that the bound holds however a
    tokenizer spaces its tokens.

    Attributes:
        needed: (len(bare marker) + 1) such numbers; 0 for the whole marker, and everywhere if it is not ASCII.

    Args:
        marker: the target's text.
        tokens: the text of every token.
    """

    def __init__(self, marker: str, tokens: Sequence[str]) -> None:
        self.marker = bare(marker)
        self.needed = [0] * (len(self.marker) + 1)
        # Elsewhere parts of one character can be tokens of their own, and their text then says nothing.
        if self.marker.isascii():
            self.needed = _fewest(self.marker, {bare(token) for token in tokens} - {""})

    def least(self, answer: str) -> int:
        """At least so many tokens are needed after `answer` for the marker to stand in it; 0 if it does already."""
        text = bare(answer)
        if self.marker in text:
            return 0
        length = len(self.marker)
        ends = (k for k in range(min(length, len(text)) + 1) if text.endswith(self.marker[:k]))
        return min(self.needed[k] for k in ends)


def _fewest(marker: str, tokens: set[str]) -> list[int]:
    """For each k, the fewest tokens after `marker[:k]` with which it is complete; the last one may say more."""
    length = len(marker)
    beginnings, endings = sorted(tokens), sorted(token[::-1] for token in tokens)
    needed = [NEVER] * length + [0]
    for k in range(length - 1, -1, -1):
        if _some_begins(beginnings, marker[k:]):
            needed[k] = 1
            continue
        steps = (needed[k + size] for size in range(1, length - k) if marker[k : k + size] in tokens)
        needed[k] = 1 + min(steps, default=NEVER)
    if any(marker in token for token in tokens):
        needed[0] = 1
    # The marker may begin in the middle of a token that begins with something else.
    starts = [needed[size] for size in range(1, length) if _some_begins(endings, marker[:size][::-1])]
    needed[0] = min(needed[0], 1 + min(starts, default=NEVER))
    return needed


def _some_begins(ordered: Sequence[str], start: str) -> bool:
    """Whether some text of a sorted list begins with `start`."""
    place = bisect_left(ordered, start)
    return place < len(ordered) and ordered[place].startswith(start)
