"""From phrases of some score to phrases of a higher one: gradient-ranked changes of single tokens.

As in GCG (Zou et al., arXiv 2307.15043) one backward pass ranks the vocabulary for every place of a phrase, and forward
passes choose among the best. Here a phrase can grow, too, and no text is tried twice: where the best changes do not
help, the next round tries the next best. All tries are texts, tokenized as a user's would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase

from crow.scan.objective import Gains, Objective
from crow.scan.placing import Phrase
from crow.scan.vocabulary import plain_words, runnable, typed

FILLER = "a"
"""Stands where a phrase is to grow, until a token is chosen for its place."""

KEPT, LEAST = 2 / 3, 3
"""Share of the starts that the next round goes on with, and how many they are at least."""


@dataclass(frozen=True)
class Scored:
    """A phrase with its score, and the phrase that its refinement began with."""

    phrase: Phrase
    score: float
    start: Phrase


def refine(
    objective: Objective,
    starts: Sequence[Phrase],
    rounds: int,
    proposals: int,
    enough: float,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Scored], list[float]]:
    """Raise the score of each start by changing or adding one token at a time.

    Each start is refined on its own, all in the same passes; after every round a third of them, the lowest, are left as
    they are, so that the others have more changes tried.

    Args:
        objective: what is raised.
        starts: phrases.
        rounds: of one change each.
        proposals: changes tried in a round, for all phrases together.
        enough: a phrase with at least that score is left as it is.
        progress: called with 1 after every round, also those that are left out because all have enough.

    Returns:
        The best phrase for each start, in their order; and the best score of all before the first and after each round.
    """
    scores = objective.scores(starts)
    best = [Scored(start, score, start) for start, score in zip(starts, scores, strict=True)]
    history = [max(scores)]
    tried = set(starts)
    for turn in range(rounds):
        ranked = sorted(range(len(best)), key=lambda number: -best[number].score)
        kept = max(LEAST, round(len(best) * KEPT**turn))
        open_ones = [number for number in ranked[:kept] if best[number].score < enough]
        count = proposals // max(1, len(open_ones))
        offers = propose(objective, [best[number].phrase for number in open_ones], count, tried)
        tried |= {phrase for offer in offers for phrase in offer}
        flat = [phrase for offer in offers for phrase in offer]
        values = dict(zip(flat, objective.scores(flat), strict=True))
        for number, offer in zip(open_ones, offers, strict=True):
            winner = max(offer, key=values.__getitem__, default=None)
            if winner and values[winner] > best[number].score:
                best[number] = Scored(winner, values[winner], best[number].start)
        history.append(max(scored.score for scored in best))
        if progress:
            progress(1)
    return best, history


def propose(objective: Objective, phrases: Sequence[Phrase], count: int, tried: Set[Phrase]) -> list[list[Phrase]]:
    """For each phrase at most `count` others that differ in one token or have one more, none of them tried before."""
    longer = [Phrase(text, p.placement) for p in phrases for text in (f"{p.text} {FILLER}", f"{FILLER} {p.text}")]
    gains = objective.gains([*phrases, *longer])
    offers = []
    for number, phrase in enumerate(phrases):
        appended, prepended = gains[len(phrases) + 2 * number : len(phrases) + 2 * number + 2]
        ways = [(gains[number], place) for place in range(len(gains[number].ids))]
        ways += [(appended, len(appended.ids) - 1)] if appended.ids else []
        ways += [(prepended, 0)] if prepended.ids else []
        texts = runnable(objective.lm, interleaved([changed(objective.lm.tokenizer, *way) for way in ways]))
        fresh = (Phrase(text, phrase.placement) for text in texts)
        offers.append(first_different(fresh, count, tried))
    return offers


def changed(tokenizer: PreTrainedTokenizerBase, gains: Gains, place: int) -> Iterator[str]:
    """The phrase with another token at `place`, the most promising first."""
    order = gains.scores[place].argsort(descending=True)
    for token in order[gains.scores[place][order].isfinite()].tolist():
        text = typed(tokenizer, [*gains.ids[:place], token, *gains.ids[place + 1 :]])
        if text:
            yield text


def interleaved(texts: Iterable[Iterator[str]]) -> Iterator[str]:
    """The first of each, then the second of each, and so on."""
    for rank in zip_longest(*texts):
        yield from (text for text in rank if text is not None)


def first_different(phrases: Iterable[Phrase], count: int, tried: Set[Phrase]) -> list[Phrase]:
    """The first `count` different phrases that have not been tried."""
    found: dict[Phrase, None] = {}
    for phrase in phrases:
        if phrase not in tried:
            found[phrase] = None
        if len(found) == count:
            break
    return list(found)


def screened_tokens(objective: Objective, placement: str, count: int) -> list[str]:
    """Single vocabulary tokens that promise most in that placement, by one backward pass for the whole vocabulary."""
    (gains,) = objective.gains([Phrase(FILLER, placement)])
    if not gains.ids:
        return []
    return plain_words(objective.lm.tokenizer, gains.scores[0].argsort(descending=True).tolist(), count)
