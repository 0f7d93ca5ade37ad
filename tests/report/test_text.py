from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crow.report.text import clip, duration, visible


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\x00", "⟨U+0000⟩"),
        ("\x1b", "⟨U+001B⟩"),
        ("\r", "⟨U+000D⟩"),
        ("\u202e", "⟨U+202E⟩"),
        ("\u2066", "⟨U+2066⟩"),
        ("\u200b", "⟨U+200B⟩"),
        ("\ufeff", "⟨U+FEFF⟩"),
        ("\u2028", "⟨U+2028⟩"),
        ("\u3164", "⟨U+3164⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("\U000e0101", "⟨U+E0101⟩"),
    ],
)
def test_hidden_characters_are_spelled_out(character, shown):
    assert visible(f"a{character}b") == f"a{shown}b"


@pytest.mark.parametrize("text", ["two\nlines\tand a tab", "naïve – “quoted” 1 − 2", "שלום עולם", "مرحبا", "日本語 ❤️"])
def test_readable_text_stays(text):
    assert visible(text) == text


def test_windows_line_ends_become_line_feeds():
    assert visible("a\r\nb") == "a\nb"


@given(st.text(st.characters()))
def test_what_is_visible_can_be_written_and_is_shown_once(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert visible(shown) == shown
    assert not any(unicodedata.category(c).startswith("C") and c not in "\n\t" for c in shown)


def test_clip_says_how_much_is_missing():
    assert clip("abcdef", 6) == "abcdef"
    assert clip("a" * 3000, 5) == "aaaaa … [2,995 more characters]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.24, "8.2 s"), (59.97, "1 min 00 s"), (203, "3 min 23 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text
