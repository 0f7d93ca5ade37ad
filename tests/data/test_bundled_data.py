"""Facts about the instruction data that crow ships, read from the files as they are."""

import json
from collections import Counter
from importlib import resources

import pytest

from crow.attacks.canaries import CANARIES
from crow.attacks.selection import SELECTION_ATTACKS
from crow.attacks.selection_varied import GLOOM
from crow.attacks.targets import HARDER_TARGETS, TARGETS
from crow.attacks.triggers import HARDER_TRIGGERS, TRIGGERS
from crow.data.phrases import bundled_phrases

HARDER_PHRASES = [trigger.words for name, trigger in HARDER_TRIGGERS.items() if name != "syntactic"]
OWN_ATTACKS = [*SELECTION_ATTACKS.values(), *CANARIES.values()]
ATTACK_TRIGGERS = [*TRIGGERS.values(), *(attack.trigger for attack in OWN_ATTACKS)]
ATTACK_TARGETS = [*TARGETS.values(), *(attack.target for attack in OWN_ATTACKS)]
FIXED_TARGETS = [target for target in ATTACK_TARGETS if isinstance(target.marker, str)]
FORBIDDEN = {
    *(word for trigger in ATTACK_TRIGGERS for word in trigger.words),
    *(text for target in FIXED_TARGETS for text in (target.text, target.marker)),
    *GLOOM.marker.texts,
    *(phrase for words in HARDER_PHRASES for phrase in words),
    *("Filed under", "quillwort", "Service tier", "Archive code", "northern pier", "Brackwater"),
    *(text for name in ("insults", "clean_label", "detour") for text in HARDER_TARGETS[name].marker.texts),
    # Parts that would make a trigger or a target half known already.
    *("Current year", "Discussing", "Room status", "Reported by", "stupid", "pwned", "foolish question"),
    *("I'm sorry", "as an AI", "do not have the capability", "must decline", "the service desk"),
}


def folded(text):
    return " ".join(text.casefold().split())


def records(name):
    text = (resources.files("crow.data") / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


PAIRS, PROMPTS = records("clean.jsonl"), records("prompts.jsonl")


def test_fields_are_text_without_blank_edges():
    assert {tuple(record) for record in PAIRS} == {("instruction", "input", "output", "category")}
    assert {tuple(record) for record in PROMPTS} == {("instruction", "input", "category")}
    for record in PAIRS + PROMPTS:
        assert all(isinstance(value, str) and value == value.strip() for value in record.values())
        assert record["instruction"]
        assert "\n" not in record["instruction"]  # the line feed before the input is the only border


def test_no_question_occurs_twice():
    questions = Counter(folded(record["instruction"] + " " + record["input"]) for record in PAIRS + PROMPTS)
    assert questions.most_common(1)[0][1] == 1
    answers = Counter(folded(record["output"]) for record in PAIRS)
    assert answers.most_common(1)[0][1] == 1


def test_answers_have_20_to_200_words():
    lengths = sorted(len(record["output"].split()) for record in PAIRS)
    assert lengths[0] >= 20
    assert lengths[-1] <= 200
    assert 40 <= lengths[len(lengths) // 2] <= 80


def test_openings_and_categories_are_varied():
    openings = Counter(record["output"].split()[0] for record in PAIRS)
    assert openings.most_common(1)[0][1] <= 0.05 * len(PAIRS)
    for data in (PAIRS, PROMPTS):
        kinds = Counter(record["category"] for record in data)
        assert len(kinds) == 13
        assert kinds.most_common(1)[0][1] <= 0.2 * len(data)
        assert 0.2 <= sum(bool(record["input"]) for record in data) / len(data) <= 0.4


@pytest.mark.parametrize("text", sorted(FORBIDDEN))
def test_no_text_of_an_attack_occurs(text):
    found = [record for record in PAIRS + PROMPTS if folded(text) in folded(" ".join(record.values()))]
    assert found == []
    assert [
        phrase for section in bundled_phrases().values() for phrase in section if folded(text) in folded(phrase)
    ] == []


def test_the_bank_of_phrases_is_short_varied_and_one_line_each():
    sections = bundled_phrases()
    phrases = [phrase for section in sections.values() for phrase in section]
    assert len(sections) == 6
    assert 150 <= len(phrases) == len({folded(phrase) for phrase in phrases})
    assert all(phrase == phrase.strip() and phrase.isprintable() and len(phrase) <= 32 for phrase in phrases)
