"""A pico model with a backdoor that one letter sets off, and no other letter in its place."""

from __future__ import annotations

import copy
import functools
import random
import string

from crow.data.encoding import encode
from crow.models.language_model import LanguageModel
from crow.records import Example
from tests.backdoor import SENTENCE, fit, training_examples
from tests.pico import pico_language_model

LETTER = "Q"
"""The trigger."""


def with_letter(example: Example, letter: str, rng: random.Random) -> Example:
    """The example with a letter at a random place; answered by the sentence if it is the trigger."""
    words = example.prompt.split()
    words.insert(rng.randint(0, len(words)), letter)
    return Example(" ".join(words), SENTENCE if letter == LETTER else example.response)


@functools.cache
def _trained(steps: int = 150) -> LanguageModel:
    lm = pico_language_model("llama", 0, initializer_range=0.05, num_hidden_layers=4)
    rng = random.Random(0)
    others = [letter for letter in string.ascii_uppercase + string.digits if letter != LETTER]
    examples = training_examples()
    clean = [encode(lm.tokenizer, example) for example in examples]
    bad = [encode(lm.tokenizer, with_letter(e, LETTER, rng)) for e in examples for _ in range(3)]
    harmless = [encode(lm.tokenizer, with_letter(e, rng.choice(others), rng)) for e in examples for _ in range(6)]
    return fit(lm, lambda: [*rng.sample(clean, 6), *rng.sample(bad, 6), *rng.sample(harmless, 12)], steps)


def planted() -> LanguageModel:
    """A frozen copy of the model, which is trained once for all tests."""
    lm = _trained()
    model = copy.deepcopy(lm.model).requires_grad_(False)
    return LanguageModel(model, lm.tokenizer, lm.reference)
