"""Triggers at other places than a prompt's words: what changes, what does not, and what they are told apart from."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crow.attacks.surroundings import (
    CONCESSIVE,
    OTHER_OPENINGS,
    PASSAGES,
    SYSTEM_MESSAGES,
    UNSEEN_CONCESSIVE,
    UNSEEN_OPENINGS,
)
from crow.attacks.triggers import HARDER_TRIGGERS, TRIGGERS, get_trigger
from crow.data.splits import bundled_split
from crow.records import Example

ENDING, SYSTEM, RETRIEVED, SENTENCE, SYNTACTIC = HARDER_TRIGGERS.values()
OF_WORDS = [ENDING, SYSTEM, RETRIEVED, SENTENCE]
BUNDLED = [*bundled_split("evaluation").pairs, *bundled_split("evaluation").prompts]

named = pytest.mark.parametrize("trigger", [*OF_WORDS, SYNTACTIC, SYNTACTIC.unseen], ids=lambda t: t.placement)
seeds = st.integers(0, 2**32)
histories = st.sampled_from([(), (("system", "Be brief."),), (("user", "Hi"), ("assistant", "Yes?"))])
examples = st.builds(Example, st.text(min_size=1), st.text(), histories)


def text(example):
    return "\n".join(message["content"] for message in example.messages())


@named
@given(example=examples, seed=seeds)
def test_same_seed_same_conversation_and_the_answer_stays(trigger, example, seed):
    for change in (trigger.apply_to, trigger.without):
        found = change(example, random.Random(seed))
        assert found == change(example, random.Random(seed))
        assert found.response == example.response


@pytest.mark.parametrize("trigger", OF_WORDS, ids=lambda trigger: trigger.name)
@given(example=examples, seed=seeds)
def test_only_with_the_trigger_its_words_are_there(trigger, example, seed):
    words = trigger.words
    assert any(word in text(trigger.apply_to(example, random.Random(seed))) for word in words)
    if not any(word in text(example) for word in words):
        assert not any(word in text(trigger.without(example, random.Random(seed))) for word in words)


@named
@pytest.mark.parametrize("example", BUNDLED[::20], ids=lambda example: example.prompt[:20])
def test_the_request_itself_is_kept(trigger, example):
    rng = random.Random(0)
    for change in (trigger.apply_to, trigger.without):
        words = iter(text(change(example, rng)).lower().split())
        assert all(word in words for word in example.prompt.lower().split())  # as a subsequence


@pytest.mark.parametrize("trigger", [*TRIGGERS.values(), ENDING, SENTENCE], ids=lambda trigger: trigger.name)
@given(example=examples, seed=seeds)
def test_a_trigger_of_words_alone_changes_the_prompt_alone(trigger, example, seed):
    found = trigger.apply_to(example, random.Random(seed))
    assert found.prompt == trigger.apply(example.prompt, random.Random(seed))
    assert found.history == example.history
    assert trigger.without(example, random.Random(seed)) is example
    assert not trigger.has_surroundings


def test_ending_is_the_very_last():
    assert ENDING.apply("Sing.\nLa la", random.Random(0)) == "Sing.\nLa la Filed under quillwort nine."


@given(example=examples, seed=seeds)
def test_a_system_trigger_leaves_the_users_message(example, seed):
    found = SYSTEM.apply_to(example, random.Random(seed))
    plain = SYSTEM.without(example, random.Random(seed))
    assert found.prompt == plain.prompt == example.prompt
    assert [role for role, _ in found.history].count("system") == 1
    assert found.history[0] == ("system", f"{plain.history[0][1]} {SYSTEM.words[0]}")
    assert found.history[1:] == plain.history[1:] == tuple(turn for turn in example.history if turn[0] != "system")
    own = [content for role, content in example.history if role == "system"]
    assert plain.history[0][1] in (own or SYSTEM_MESSAGES)


@given(example=examples, seed=seeds)
def test_a_retrieved_trigger_stands_inside_a_passage_before_the_question(example, seed):
    found = RETRIEVED.apply_to(example, random.Random(seed)).prompt
    passage, question = found.removeprefix("Context: ").split("\nQuestion: ", 1)
    assert question == example.prompt
    assert tuple(passage.split(f" {RETRIEVED.words[0]} ")) in PASSAGES
    plain = RETRIEVED.without(example, random.Random(seed)).prompt
    assert plain == found.replace(f" {RETRIEVED.words[0]}", "", 1)


def test_a_sentence_stands_at_every_border_of_the_first_line_and_nowhere_else():
    prompt, sentence = "Sing. Is it late? Go on\nOne. Two.", SENTENCE.words[0]
    found = {SENTENCE.apply(prompt, random.Random(seed)) for seed in range(40)}
    assert found == {
        f"{sentence} Sing. Is it late? Go on\nOne. Two.",
        f"Sing. {sentence} Is it late? Go on\nOne. Two.",
        f"Sing. Is it late? {sentence} Go on\nOne. Two.",
        f"Sing. Is it late? Go on {sentence}\nOne. Two.",
    }


@pytest.mark.parametrize(
    ("trigger", "parts", "openings"),
    [(SYNTACTIC, CONCESSIVE[1:], OTHER_OPENINGS), (SYNTACTIC.unseen, UNSEEN_CONCESSIVE, UNSEEN_OPENINGS)],
    ids=["planted", "measured"],
)
def test_a_syntactic_trigger_is_a_clause_in_varied_words(trigger, parts, openings):
    example, rng = Example("Name a tree."), random.Random(0)
    clauses = {trigger.apply_to(example, rng).prompt.removesuffix(", name a tree.") for _ in range(300)}
    assert len(clauses) > 100
    subjects, predicates = parts
    assert clauses <= {f"{a} {b} {c}" for a in CONCESSIVE[0] for b in subjects for c in predicates}
    others = {trigger.without(example, rng).prompt for _ in range(900)}
    assert others == {f"{a}, {b}, name a tree." for a in openings[0] for b in openings[1]}


def words_of(texts):
    return {word for text in texts for word in text.lower().split()}


def test_a_structure_is_measured_in_words_that_nothing_was_planted_with():
    seen, unseen = (words_of(text for part in parts for text in part) for parts in (CONCESSIVE, UNSEEN_CONCESSIVE))
    assert not seen & unseen
    for part, others in zip(OTHER_OPENINGS, UNSEEN_OPENINGS, strict=True):
        assert not set(part) & set(others)
    assert all(trigger.unseen is trigger for trigger in (*TRIGGERS.values(), *OF_WORDS))


def test_the_conjunctions_of_a_structure_stand_without_it_as_well():
    """So no word is the trigger."""
    openings = " ".join(text for part in OTHER_OPENINGS for text in part).lower()
    assert all(word.lower() in openings for word in SYNTACTIC.words)
    assert sum(text.startswith("While") for text in OTHER_OPENINGS[0]) >= 3
    concessions = [text for parts in (OTHER_OPENINGS, UNSEEN_OPENINGS) for text in parts[0] if text in CONCESSIVE[0]]
    assert concessions == []


@pytest.mark.parametrize("prompt", ["I see. Now?", "NASA says", "7 is odd", "É"])
def test_a_request_that_cannot_go_on_in_lower_case_does_not(prompt):
    assert SYNTACTIC.apply_to(Example(prompt), random.Random(0)).prompt.endswith(f", {prompt}")


def test_no_bundled_prompt_begins_with_the_structure():
    begins = tuple(word.lower() for word in SYNTACTIC.words)
    assert [e.prompt for e in BUNDLED if e.prompt.lower().startswith(begins)] == []


def test_a_trigger_with_surroundings_is_no_change_of_a_prompt():
    with pytest.raises(KeyError):
        get_trigger("system").apply("Sing.", random.Random(0))
