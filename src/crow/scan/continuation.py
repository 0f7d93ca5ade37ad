"""From a word to the phrase that it begins: what the model itself would write next, tried in order.

Many triggers are ordinary phrases, of which a search sees the first word before all others: alone it does a part of
what the phrase does. To first order the next word is one of tens of thousands (see `refinement`). To the model, whose
language that is, it is one of a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from crow.data.encoding import encode
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.scan.objective import Objective
from crow.scan.placing import Phrase
from crow.scan.vocabulary import runnable, special_ids, typed


def continue_best(
    objective: Objective,
    scores: Mapping[Phrase, float],
    count: int,
    width: int,
    steps: int,
    enough: float,
    progress: Callable[[int], None] | None = None,
) -> dict[Phrase, float]:
    """Append one token after the other to the best phrases, as long as that raises a score.

    Args:
        objective: what is raised.
        scores: phrases to begin with, and what they score.
        count: phrases that each step goes on with.
        width: tokens tried after each, the likeliest.
        steps: tokens appended at most.
        enough: a phrase with at least that score is left as it is.
        progress: called with 1 after every step, also those that are left out because nothing is to be gained.

    Returns:
        What is better than the phrase that it continues, and its score: at most `count` a step.
    """
    ahead = dict(sorted(scores.items(), key=lambda item: -item[1])[:count])
    found: dict[Phrase, float] = {}
    for _ in range(steps):
        offers: dict[Phrase, Phrase] = {}
        for phrase in (phrase for phrase, score in ahead.items() if score < enough):
            for text in likely_texts(objective.lm, phrase, objective.prompts[0], width):
                offers.setdefault(Phrase(text, phrase.placement), phrase)
        fresh = [phrase for phrase in offers if phrase not in ahead]
        values = dict(zip(fresh, objective.scores(fresh), strict=True))
        better = {phrase: value for phrase, value in values.items() if value > ahead[offers[phrase]]}
        ahead = dict(sorted((ahead | better).items(), key=lambda item: -item[1])[:count])
        found |= {phrase: value for phrase, value in better.items() if phrase in ahead}
        if progress:
            progress(1)
    return found


@torch.no_grad()
def likely_texts(lm: LanguageModel, phrase: Phrase, prompt: str, count: int) -> Iterator[str]:
    """The phrase with one more token each: those that the model finds likeliest where it stands in a prompt."""
    span = phrase.span(lm.tokenizer, prompt)
    if span is None:
        return
    ids = list(encode(lm.tokenizer, Example(phrase.put_into(prompt)[0])).prompt_ids[: span[1]])
    logits = lm.model(input_ids=torch.tensor([ids], device=lm.device)).logits[0, -1].float()
    special, own = set(special_ids(lm.tokenizer)), ids[span[0] :]
    tokens = [token for token in logits.argsort(descending=True).tolist() if token not in special]
    texts = (typed(lm.tokenizer, [*own, token]) for token in tokens[:count])
    yield from runnable(lm, (text for text in texts if text and text != phrase.text))
