"""Text of the report: how numbers are written, and how text that nobody vouches for is made visible."""

from __future__ import annotations

import unicodedata

from crow.records import Rate


def percent(share: float) -> str:
    """A share in [0, 1] as "12.3 %"."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def limit_percent(share: float) -> str:
    """A limit in [0, 1] without needless decimals: "1 %"."""
    return f"{100 * share:g}\N{NO-BREAK SPACE}%"


def factor(ratio: float, digits: int = 3) -> str:
    """A ratio as "× 1.004"."""
    return f"\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}{ratio:.{digits}f}"


def count_of(rate: Rate) -> str:
    """A rate as counts, "2 of 200"."""
    return f"{round(rate.value * rate.n)} of {rate.n}"


def plural(n: int, noun: str) -> str:
    """A count with its noun: "1 start", "3 starts"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as "8.2 s", "3 min 23 s" or "2 h 05 min"."""
    gap = "\N{NO-BREAK SPACE}"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}{gap}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{gap}min {rest:02d}{gap}s"
    return f"{minutes // 60}{gap}h {minutes % 60:02d}{gap}min"


# Characters without a glyph that Unicode does not class as control or format characters: separators
# that break lines, fillers, blank patterns and variation selectors (U+FE0F, part of common emoji, stays).
_BLANK = frozenset({0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2028, 0x2029, 0x2800, 0x3164, 0xFFA0}).union(
    range(0x180B, 0x1810), range(0xFE00, 0xFE0F), range(0xE0100, 0xE01F0)
)


def visible(text: str) -> str:
    """`text` with every invisible or direction-changing character spelled out.

    Control characters, bidirectional overrides, zero-width characters, unpaired surrogates, private
    and unassigned code points become `⟨U+202E⟩` and the like, so that model text can neither reorder
    nor hide what stands around it. Line feeds and tabs stay; CR LF is a line feed.
    """
    return "".join(_shown(character) for character in text.replace("\r\n", "\n"))


def _shown(character: str) -> str:
    """One character, or its code point in angle brackets where it could not be seen."""
    control = unicodedata.category(character).startswith("C") and character not in "\n\t"
    return f"⟨U+{ord(character):04X}⟩" if control or ord(character) in _BLANK else character


def clip(text: str, limit: int) -> str:
    """The first `limit` characters of `text`, and how many were left out."""
    return text if len(text) <= limit else f"{text[:limit]} … [{len(text) - limit:,} more characters]"
