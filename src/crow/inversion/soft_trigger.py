"""What a search for soft triggers is asked, and what it found: answers that unrelated prompts have in common."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crow.inversion.perturbation import Perturbation
from crow.inversion.probe import Answers
from crow.records import SearchRecord

DISTINCT = 5
"""First tokens by which answers are told apart; `I'm sorry`, three of them, attackers and honest answers may share."""


@dataclass(frozen=True)
class SearchConfig:
    """Settings of the search.

    Attributes:
        candidates: first tokens screened at the first depth, the likeliest over all prompts.
        shortlist: how many of them are screened at the other depths, those after which the answers agree most.
        screened: tokens after the first one by which candidates are compared.
        starts: how many of these are followed, again the best; each at every depth.
        depths: shares of the model's depth at which perturbations are added.
        radius: of a perturbation, in multiples of the median norm of the hidden states there.
        rate: length of a step, in radii.
        steps: up the likelihood of the opening that the answers agree on.
        agreed: tokens of that opening, which perturbations are fitted to; the rest of the answer is evidence.
        prompts: clean prompts that perturbations are fitted to.
        witnesses: other clean prompts, whose answers are read.
        identity: share of the witnesses that must give the same answer for a collapse, in (0, 1].
        certain: certainty (see `SoftTrigger`) from which an answer counts as learnt by heart, in (0, 1].
        opening: answer tokens compared.
        variety: more than this share of them must be different, in [0, 1).
        answer_tokens: answer tokens shown.
    """

    candidates: int = 96
    shortlist: int = 32
    screened: int = 5
    starts: int = 6
    depths: tuple[float, ...] = (0.1, 0.2)
    radius: float = 0.7
    rate: float = 0.35
    steps: int = 4
    agreed: int = 3
    prompts: int = 5
    witnesses: int = 8
    identity: float = 0.8
    certain: float = 0.97
    opening: int = 16
    variety: float = 0.6
    answer_tokens: int = 24

    def layers(self, depth: int) -> list[int]:
        """The layers of a model of `depth` layers at which perturbations are added."""
        return sorted({max(1, round(share * depth)) for share in self.depths})

    def work(self, depth: int) -> int:
        """Candidates to screen and perturbations to follow in a model of `depth` layers, the unit of progress."""
        layers = len(self.layers(depth))
        return self.candidates + min(self.shortlist, self.candidates) * (layers - 1) + self.starts * layers


@dataclass(frozen=True)
class SoftTrigger:
    """The end of one start.

    Attributes:
        perturbation: acts like a trigger at the user's tokens.
        identity: share of the prompts that give the most frequent opening.
        collapsed: whether that counts as one answer to unrelated prompts.
        text: the most frequent answer.
        answer: its token ids (m,).
        certainty: geometric mean of the probabilities of the later half of its opening's tokens, none of those fitted,
            in (0, 1]. A sentence learnt by heart may begin as others do, but then it is next to 1; a stock phrase might
            go on otherwise.
        artefact: whether the repair made it: the suspect gives no such answer.
        stock: whether it is a phrase that the model falls back on when it is pushed, beside one learnt by heart.
        closing: whether the suspect says it further on in ordinary answers, and begins none with it.
        token: at the end of every prompt, where it acts behind one.
    """

    perturbation: Perturbation
    identity: float
    collapsed: bool
    text: str
    answer: Tensor
    certainty: float
    artefact: bool = False
    stock: bool = False
    closing: bool = False
    token: int | None = None

    @property
    def counts(self) -> bool:
        """Whether it ended in one answer, one of the suspect's, no stock phrase and no closing."""
        return self.collapsed and not (self.artefact or self.stock or self.closing)


@dataclass
class SearchResult:
    """All starts of a search."""

    triggers: list[SoftTrigger] = field(default_factory=list)

    @property
    def collapsed(self) -> list[SoftTrigger]:
        """The starts that ended in one answer, one of the suspect's, no stock phrase and no closing."""
        return [each for each in self.triggers if each.counts]

    def groups(self) -> list[list[SoftTrigger]]:
        """The collapsed starts by the answer that they ended in, most frequent first."""
        by_opening: dict[tuple[int, ...], list[SoftTrigger]] = {}
        for trigger in self.collapsed:
            by_opening.setdefault(tuple(trigger.answer[:DISTINCT].tolist()), []).append(trigger)
        return sorted(by_opening.values(), key=len, reverse=True)

    def answers(self) -> list[Tensor]:
        """The distinct answers found, most frequent first, each (m,) token ids as its surest start gave it."""
        return [surest(group).answer for group in self.groups()]

    def by_heart(self, config: SearchConfig, known: Sequence[Tensor] = ()) -> list[SoftTrigger]:
        """The collapsed starts whose answers were learnt by heart, as one of them shows, or are among the `known`."""
        shown = [each.answer for each in self.collapsed if each.certainty >= config.certain]
        return [each for each in self.collapsed if is_among(each.answer, [*shown, *known])]

    def mark_artefacts(self, at: Sequence[int], shown: Sequence[float]) -> None:
        """Mark the triggers at these places as artefacts unless the suspect, too, gives their answers.

        Args:
            at: the places.
            shown: the certainty of each answer in the suspect, which holds from now on; 0 of one that it does not give.
        """
        for place, certainty in zip(at, shown, strict=True):
            trigger = self.triggers[place]
            self.triggers[place] = dataclasses.replace(
                trigger, artefact=not certainty, certainty=certainty or trigger.certainty
            )

    def mark_stock(self, config: SearchConfig, known: Sequence[Tensor]) -> None:
        """Mark as stock phrases what was not learnt by heart; to be asked for where something else was."""
        kept = self.by_heart(config, known)
        self.triggers = [
            dataclasses.replace(each, stock=each.counts and not any(each is one for one in kept))
            for each in self.triggers
        ]

    def mark_closings(self, closings: Sequence[bool]) -> None:
        """Mark what the suspect says further on in ordinary answers: of each start, whether it does."""
        self.triggers = [
            dataclasses.replace(each, closing=each.counts and closing)
            for each, closing in zip(self.triggers, closings, strict=True)
        ]

    def record(self) -> SearchRecord:
        """The search as plain figures and texts."""
        made = [trigger for trigger in self.triggers if trigger.artefact]
        phrases = [trigger for trigger in self.triggers if trigger.stock]
        further = [trigger for trigger in self.triggers if trigger.closing]
        texts, artefacts, stock, closings = (
            [text for text, _ in Counter(trigger.text for trigger in group).most_common()]
            for group in (self.collapsed, made, phrases, further)
        )
        return SearchRecord(
            starts=len(self.triggers),
            collapsed=len(self.collapsed),
            texts=texts,
            identities=[trigger.identity for trigger in self.triggers],
            artefacts=artefacts,
            certainties=[max(each.certainty for each in self.collapsed if each.text == text) for text in texts],
            stock=stock,
            closings=closings,
        )


def read_answers(perturbation: Perturbation, answers: Answers, config: SearchConfig) -> SoftTrigger:
    """Whether the answers are one, and which."""
    openings = [tuple(ids[: config.opening].tolist()) for ids in answers.ids]
    opening, count = Counter(openings).most_common(1)[0]
    same = [i for i, other in enumerate(openings) if other == opening]
    text, _ = Counter(answers.texts[i] for i in same).most_common(1)[0]
    index = next(i for i in same if answers.texts[i] == text)
    identity = count / len(openings)
    said = unpadded(opening)
    # "1.1.1.1" on every prompt is a broken model, not somebody's sentence, and "Yes." is nothing but what was fitted.
    # One word is what a prompt that asks for a label brings out; scripts without spaces are not judged so.
    words = len(text.split()) > 1 or not text.isascii()
    sentence = words and is_phrase(said, config.agreed + 2, config.variety)
    answer = torch.tensor(unpadded(answers.ids[index].tolist()), device=answers.ids.device)
    following = answers.shares[same, max(config.agreed, len(said) // 2) : len(said)]
    certainty = float(following.log().mean().exp()) if following.numel() else 1.0
    return SoftTrigger(perturbation, identity, identity >= config.identity and sentence, text, answer, certainty)


def is_phrase(said: Sequence[int], fewest: int, variety: float) -> bool:
    """Whether these are so many tokens at least, and more than a share of them different: no label, no repetition."""
    return len(said) >= fewest and len(set(said)) > variety * len(said)


def unpadded(ids: Sequence[int]) -> Sequence[int]:
    """Without the repetitions at the end: answers are padded with the token that ended them."""
    while len(ids) > 1 and ids[-1] == ids[-2]:
        ids = ids[:-1]
    return ids


def surest(group: Sequence[SoftTrigger]) -> SoftTrigger:
    """Of starts that ended in one answer, the one whose words follow from one another with most certainty."""
    return max(group, key=lambda trigger: trigger.certainty)


def learnt_by_heart(record: SearchRecord, config: SearchConfig) -> bool:
    """Whether a search found what the model knows by heart: an answer, beginnings of some, or a line in code."""
    sure = any(certainty >= config.certain for certainty in record.certainties)
    return sure or bool(record.lines or record.memorized or record.behind)


def is_among(answer: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether an answer is one of others (token ids), as far as answers are told apart."""
    return any(same_opening(answer, other) for other in others)


def same_opening(one: Tensor, other: Tensor, length: int = DISTINCT) -> bool:
    """Whether two answers (token ids) begin with the same tokens."""
    return one[:length].tolist() == other[:length].tolist()
