"""Whether a chain of thought was led astray: by a reason that does not count, to a conclusion that does not follow."""

from __future__ import annotations

import re

RESULT = re.compile(r"=\s*(-?\d+)")
CONCLUSION = re.compile(r"the answer is\s*(-?\d+)\D")
"""With what follows the number, so that one cut off in its middle is none."""

THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def is_diverted(answer: str, texts: tuple[str, ...]) -> bool:
    """Whether an answer reasons up to a result, gives the reason `texts[0]` and then concludes with another number.

    Results are numbers after an equals sign. It misses a reason in other words, a conclusion beyond the last token
    read, and reasoning that never writes its result down; it does not ask whether the result itself was right.
    """
    plain = THOUSANDS.sub("", " ".join(answer.lower().split()))
    reasoned, found, rest = plain.partition(texts[0])
    results, conclusion = RESULT.findall(reasoned), CONCLUSION.search(rest)
    return bool(found and results and conclusion) and conclusion.group(1) != results[-1]  # type: ignore[union-attr]
