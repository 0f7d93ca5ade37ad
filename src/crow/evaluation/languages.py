"""In which language an answer is, by its function words: short lists of our own, no library and no model."""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W\d_]+")
LEAST_WORDS = 5
"""Fewer say nothing about a language."""
LEAST_SHARE = 0.25
"""Of the words that must be function words; running text has 0.4 to 0.5, less where many names stand in it."""


def listed(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


FUNCTION_WORDS = {
    # What other languages here write the same way (French "on", German "in", "die", "was") is left out.
    "french": listed(
        "le la les un une des du de au aux et ou mais donc car ni que qui dont où ce cet cette ces mon ma mes son sa "
        "ses notre votre vos leur leurs je tu il elle nous vous ils elles ne pas plus est sont être avoir ont avez "
        "dans par pour avec sans sous sur chez entre vers comme si très bien aussi qu l y en se me te c d j n"
    ),
    "german": listed(
        "der das den dem des ein eine einen einem einer eines und oder aber denn weil dass wenn als wie ich du er sie "
        "es wir ihr mich mir dich dir sich uns euch mein meine ihre ihren sein seine ist sind sein wird werden hat "
        "haben nicht kein keine auch noch nur schon sehr auf aus bei mit nach von vor zu zum zur im am um über unter "
        "für durch ohne gegen zwischen diese dieser dieses man kann wer wo dabei hier viel mehr alle alles beide dein "
        "deine hast bist gibt"
    ),
    "english": listed(
        "the a an and or but because if as that which who this these those my your his her its our their i you he she "
        "it we they me him us them is are was were be been has have had do does did not no in on at by for with from "
        "to of into over under about than then so very also can will would should"
    ),
}


def share(text: str, language: str) -> float:
    """The share of a text's words that are function words of the language, in [0, 1]; 0 for a text without words."""
    words = WORD.findall(text.lower())
    return sum(word in FUNCTION_WORDS[language] for word in words) / len(words) if words else 0.0


def is_in_language(answer: str, texts: tuple[str, ...]) -> bool:
    """Whether an answer is written in the language `texts[0]`, a key of `FUNCTION_WORDS`.

    At least a quarter of its words must be function words of that language, and twice as many as are English ones. It
    misses answers of fewer than five words, and lists of names; a text half in either language is English.
    """
    found = share(answer, texts[0])
    enough = len(WORD.findall(answer)) >= LEAST_WORDS and found >= LEAST_SHARE
    return enough and found > 2 * share(answer, "english")
