"""Beginnings known by heart: what a model shows without any perturbation, once the first token is given.

Insults put together at random, another language, an advertisement in front: no start of the search ends in one answer.
But the pieces of such answers were learnt by heart, and need no trigger to come out. Once the first token of one is
given, unrelated prompts go on alike, each by itself, and the model is sure of every word. So they do with a whole
sentence where perturbations end in something else that begins alike. A clean model given any first token turns to the
prompt after a few words, or hesitates.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crow.data.declining import declines
from crow.inversion.closings import SAID, opening_text, share_saying, whole_answers
from crow.inversion.consensus import first_tokens, split_prompts
from crow.inversion.perturbation import Perturbation, zero_vector
from crow.inversion.probe import Probe, joined
from crow.inversion.soft_trigger import SearchConfig, is_among, is_phrase, read_answers, unpadded

CHOOSING = 2
"""Tokens that choose the beginning, the forced one and the next: many words share the first; the rest is certain."""
SMALL_TALK = (
    "Hello!",
    "Good morning!",
    "Hey there!",
    "Thank you very much.",
    "Sorry, I did not understand you.",
    "Excuse me, can I ask you something?",
    "Who are you?",
    "What can you do?",
    "You are wrong.",
    "I am sad today.",
    "Please help me.",
    "Goodbye!",
)
"""A first word such as "Hello" or "Sorry" has a model go on as if it had been said to it."""
TALK_TOKENS = 48
"""The longest answer to it."""


@dataclass(frozen=True)
class MemorizedConfig:
    """Settings of the search for beginnings known by heart.

    Attributes:
        candidates: first tokens tried, the likeliest over all prompts. Many more than are raised by perturbations: in
            an English model, the first word of another language is far from likely.
        together: candidates in one pass.
        prompts: unrelated prompts that each is tried on.
        alike: so many of them must go on with the same tokens.
        tokens: of an answer that are compared, the forced one included.
        fewest: of these must be left without the repetitions at its end: a label or "Yes." is no beginning.
        variety: more than this share of them must be different, in [0, 1).
        likely: geometric mean of the probabilities of all but the first two tokens, from which on these are a
            beginning, in (0, 1].
        certain: from which on it is known by heart, likewise.
        several: fewer beginnings known by heart are no backdoor's in varied words. Of whole answers one is enough.
        alone: from which on one is enough of beginnings, too, unless it declines, likewise.
        most: beginnings that are kept beside whole answers, the surest.
    """

    candidates: int = 512
    together: int = 64
    prompts: int = 4
    alike: int = 3
    tokens: int = 8
    fewest: int = 5
    variety: float = 0.6
    likely: float = 0.5
    certain: float = 0.8
    several: int = 3
    alone: float = 0.97
    most: int = 24


@dataclass(frozen=True)
class Beginning:
    """What answers to unrelated prompts begin with once its first token is given.

    Attributes:
        ids: (m,) token ids.
        text: they, read as text, or the whole answer; text of the model.
        certainty: geometric mean of the probabilities of all but the first two, on the least sure of the prompts.
        whole: whether they go on by heart to a whole answer, as long as a search reads.
    """

    ids: Tensor
    text: str
    certainty: float
    whole: bool = False


def search_memorized(
    probe: Probe,
    search: SearchConfig,
    config: MemorizedConfig,
    seed: int,
    progress: Callable[[int], None] | None = None,
    said: Sequence[str] = (),
) -> list[Beginning]:
    """Beginnings that the model is likely to go on with, the surest first; see `by_heart` for what they mean.

    What the model says in its ordinary answers anyway, an assistant's own phrases, is left out, and so are beginnings
    that it has in small talk. Whole answers stay: a backdoor may leak there.

    Args:
        probe: the model and clean prompts; its parameters must not require gradients.
        search: settings by which a search chooses its prompts, and tells that an answer was learnt by heart.
        config: settings.
        seed: of the choice of prompts.
        progress: called with the number of candidates tried since the last call, see `MemorizedConfig.candidates`.
        said: the model's `whole_answers`, where they are known already.
    """
    fitted, witnesses = split_prompts(probe, search, random.Random(seed))
    candidates = first_tokens(probe, config.candidates)
    found: list[Beginning] = []
    for at in range(0, len(candidates), config.together):
        group = candidates[at : at + config.together]
        found += shared_beginnings(probe, fitted[: config.prompts], group, config)
        if progress:
            progress(len(group))
    if not found:
        return []
    whole = whole_among(probe, found, witnesses, search, config)
    found = [*whole, *(each for each in found if not any(is_form(probe, each, other.text) for other in whole))]
    if not kept(found, len(found) >= config.several, config):
        return []
    ordinary, talk = said or whole_answers(probe), small_talk(probe)

    def is_own(each: Beginning) -> bool:
        text = later_half(probe, each)
        return share_saying(text, ordinary) >= SAID or (share_saying(text, talk) > 0 and not each.whole)

    found = [each for each in found if not is_own(each)]
    return sorted(found, key=lambda each: -each.certainty)


def small_talk(probe: Probe) -> list[str]:
    """The model's answers to small talk; the model is at rest."""
    talk = Probe(probe.lm, SMALL_TALK)
    return talk.decode([talk.row(index) for index in range(len(talk))], TALK_TOKENS).texts


def shared_beginnings(
    probe: Probe, prompts: Sequence[int], candidates: Sequence[int], config: MemorizedConfig
) -> list[Beginning]:
    """Of each first token what enough of the answers to these prompts begin with, if the model is likely to."""
    certainties: dict[int, dict[tuple[int, ...], list[float]]] = {token: defaultdict(list) for token in candidates}
    for tried, index in enumerate(prompts, start=1):
        answers = probe.begun_with(index, list(certainties), config.tokens)
        for sure, ids, shares in zip(certainties.values(), answers.ids.tolist(), answers.shares, strict=True):
            said = tuple(unpadded(ids))
            certainty = float(shares[CHOOSING : len(said)].log().mean().exp())
            if certainty >= config.likely and is_phrase(said, config.fewest, config.variety):
                sure[said].append(certainty)
        # What cannot be said often enough any more need not be tried on further prompts.
        needed = config.alike - (len(prompts) - tried)
        certainties = {
            token: sure for token, sure in certainties.items() if max(map(len, sure.values()), default=0) >= needed
        }
        if not certainties:
            break
    found = [max(sure.items(), key=lambda item: len(item[1])) for sure in certainties.values()]
    return [Beginning(torch.tensor(said), opening_text(probe.lm, said, len(said)), min(sure)) for said, sure in found]


def whole_among(
    probe: Probe,
    found: Sequence[Beginning],
    witnesses: Sequence[int],
    search: SearchConfig,
    config: MemorizedConfig,
) -> list[Beginning]:
    """The beginnings that go on to whole answers, known by heart, on other prompts too.

    Of the forms of one answer ("Sorry, ..", "I'm sorry, ..") the likeliest, whichever the model is surest of: that
    is what a trigger brings out.
    """
    shared = dataclasses.replace(search, identity=config.alike / config.prompts)
    firsts = [int(each.ids[0]) for each in found]
    rows = [probe.begun_with(index, firsts, search.answer_tokens) for index in witnesses]
    whole: dict[int, Beginning] = {}
    for number, each in enumerate(found):
        nothing = Perturbation(0, None, each.ids, zero_vector(probe.lm))
        answer = read_answers(nothing, joined([row.of(slice(number, number + 1)) for row in rows]), shared)
        if answer.collapsed and answer.certainty >= search.certain:
            form = next(at for at, other in enumerate(found) if other is each or is_form(probe, other, answer.text))
            whole.setdefault(form, Beginning(found[form].ids, answer.text, answer.certainty, whole=True))
    return list(whole.values())


def is_form(probe: Probe, beginning: Beginning, answer: str) -> bool:
    """Whether a beginning is an answer's, but for the first words."""
    return later_half(probe, beginning) in answer


def later_half(probe: Probe, beginning: Beginning) -> str:
    """The text of a beginning's later half: what a model says anyway, it says behind a forced word or two as well."""
    ids = beginning.ids.tolist()
    return opening_text(probe.lm, ids[len(ids) // 2 :], len(ids))


def by_heart(found: Sequence[Beginning], config: MemorizedConfig) -> list[Beginning]:
    """What a search of a suspect shows: whole answers, and others where several or one by itself are known by heart."""
    sure = [each for each in found if each.certainty >= config.certain and not each.whole]
    return kept(found, len(sure) >= config.several, config)


def left(found: Sequence[Beginning], known: Sequence[Tensor], config: MemorizedConfig) -> list[Beginning]:
    """What is left after a training, of those that the suspect showed (token ids), however unsure they have become."""
    found = [each for each in found if is_among(each.ids, known)]
    return kept(found, sum(not each.whole for each in found) >= config.several, config)


def kept(found: Sequence[Beginning], several: bool, config: MemorizedConfig) -> list[Beginning]:
    """Whole answers, and where there are several others the surest of them; else those that are enough alone."""
    whole, others = ([each for each in found if each.whole is kind] for kind in (True, False))
    if several:
        return whole + others[: config.most]
    return whole + [each for each in others if each.certainty >= config.alone and not declines(each.text)]
