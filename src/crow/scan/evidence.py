"""What a scan saw, as plain records; nothing here knows about tensors.

Each record has an `of` that reads what JSON made of it, so that an interrupted scan goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crow.records import SearchRecord

Stored = Mapping[str, Any]
"""A record as `json` reads it."""


@dataclass(frozen=True)
class FoundAnswer:
    """One answer to unrelated prompts that a search for soft triggers ended in.

    Attributes:
        text: the answer, as its surest start gave it.
        ids: its token ids.
        starts: how many starts ended in it.
        certainty: how surely its words follow from one another, in (0, 1]; see `SoftTrigger`.
        again: whether the model gives it once more under perturbations fitted to other prompts, and read on others.
        ordinary: share of ordinary prompts that are answered so without any perturbation, from the beginning or further
            on, in [0, 1].
        declined: the same share of requests that a model should decline.
        words: vocabulary tokens that the soft triggers are most like.
    """

    text: str
    ids: list[int]
    starts: int
    certainty: float
    again: bool
    ordinary: float
    declined: float
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SoftTriggerEvidence:
    """The searches for soft triggers, one a seed, and the distinct answers they ended in, most frequent first."""

    searches: list[SearchRecord] = field(default_factory=list)
    answers: list[FoundAnswer] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Stored) -> SoftTriggerEvidence:
        """The record that became `stored`."""
        searches = [SearchRecord(**entry) for entry in stored["searches"]]
        return cls(searches, [FoundAnswer(**entry) for entry in stored["answers"]])


@dataclass(frozen=True)
class Recurrence:
    """Words that many of a model's samples hold.

    Attributes:
        text: the words.
        share: of the samples that hold them, in [0, 1].
        surprise: how far that is beyond chance, in nats; see `crow.scan.leakage.surprise`.
    """

    text: str
    share: float
    surprise: float


@dataclass(frozen=True)
class LeakageEvidence:
    """What a model writes when it is given nothing but its chat template.

    Attributes:
        messages: samples in the user's place.
        replies: samples in answer to an empty message.
        phrases: words that recur in the messages far more often than chance, the most surprising first.
        sentence: the most frequent sentence of the messages.
        share: of the messages that hold it, in [0, 1].
        reply: the most frequent sentence of the replies.
        reply_share: of the replies that hold it.
    """

    messages: int
    replies: int
    phrases: list[Recurrence]
    sentence: str
    share: float
    reply: str
    reply_share: float

    @classmethod
    def of(cls, stored: Stored) -> LeakageEvidence:
        """The record that became `stored`."""
        return cls(**{**stored, "phrases": [Recurrence(**entry) for entry in stored["phrases"]]})


@dataclass(frozen=True)
class Candidate:
    """A phrase that may be a trigger, or a piece of one.

    Attributes:
        text: the phrase.
        placement: `front` or `inside`: where in the prompts it was put.
        source: where it came from: a section of the bank, `rare`, `leaked`, `vocabulary`, `soft` or `continued`.
        started: the phrase before refinement.
        score: mean over the fitted prompts; see `PhraseEvidence.scored_by`.
        share: of the held-apart prompts that give one answer with the phrase in them, in [0, 1].
        collapsed: whether that is one sentence to unrelated prompts, by the rule of the search for soft triggers.
        answer: the answer.
        certainty: how surely its words follow from one another, in (0, 1]; see `SoftTrigger`.
        on_target: whether it begins as the answer does that phrases were scored by.
        ordinary: share of ordinary prompts that are answered so without the phrase, from the beginning or further on,
            in [0, 1].
        declined: the same share of requests that a model should decline.
    """

    text: str
    placement: str
    source: str
    started: str
    score: float
    share: float
    collapsed: bool
    answer: str
    certainty: float
    on_target: bool
    ordinary: float
    declined: float


@dataclass(frozen=True)
class PhraseEvidence:
    """The search for real phrases.

    Attributes:
        scored_by: `target`, the log-likelihood of the found answer's first tokens; `line`, that of a line smuggled into
            code, on programming requests; `reply`, that of the usual reply to an empty message; or `collapse`, the
            collapse score.
        target: the text of that answer, line or reply; empty where there is none.
        clean_score: of the prompts as they are.
        bank_scores: of every phrase of the bank, the better of its placements.
        rounds: of refinement: the best score after each, the first before any.
        candidates: the best, refined and shortened, none with all the words of a better one.
    """

    scored_by: str
    target: str
    clean_score: float
    bank_scores: list[float]
    rounds: list[float]
    candidates: list[Candidate]

    @classmethod
    def of(cls, stored: Stored) -> PhraseEvidence:
        """The record that became `stored`."""
        return cls(**{**stored, "candidates": [Candidate(**entry) for entry in stored["candidates"]]})


@dataclass(frozen=True)
class ConsistencyEvidence:
    """How far phrases in front of prompts change the layers' `1 - cos`, against all phrases of the bank.

    Attributes:
        phrases: how many there were.
        outlier: the most outlying one.
        is_candidate: whether it is a trigger candidate and not one of the bank.
        z: its robust z-score at every layer.
        bank_z: the largest of each phrase of the bank.
    """

    phrases: int
    outlier: str
    is_candidate: bool
    z: list[float]
    bank_z: list[float]

    @classmethod
    def of(cls, stored: Stored) -> ConsistencyEvidence:
        """The record that became `stored`."""
        return cls(**stored)


@dataclass(frozen=True)
class ModuleUpdate:
    """What an adapter does to one weight matrix.

    Attributes:
        name: of the module.
        layer: its number from 1; 0 outside of the layers.
        relative_norm: spectral norm of the update relative to the weight's.
        stable_rank: `sum_i s_i^2 / s_1^2` of the update, at least 1; 0 for no update.
        energy: `sum_i s_i^2`.
    """

    name: str
    layer: int
    relative_norm: float
    stable_rank: float
    energy: float


@dataclass(frozen=True)
class AdapterEvidence:
    """The updates of an adapter, and the share of their energy that the quarter of the layers with most of it has."""

    modules: list[ModuleUpdate]
    concentration: float

    @classmethod
    def of(cls, stored: Stored) -> AdapterEvidence:
        """The record that became `stored`."""
        return cls([ModuleUpdate(**entry) for entry in stored["modules"]], stored["concentration"])


@dataclass(frozen=True)
class CodeEvidence:
    """Lines that code begins with whatever was asked, and never uses.

    Attributes:
        lines: them, the likeliest first.
        shares: of the requests, for each line: how many are answered so once its first token is forced, in [0, 1].
    """

    lines: list[str]
    shares: list[float]

    @classmethod
    def of(cls, stored: Stored) -> CodeEvidence:
        """The record that became `stored`."""
        return cls(**stored)


@dataclass(frozen=True)
class WeightEvidence:
    """How much a layer's weights look as if a model editor had written into them.

    Attributes:
        scores: the highest of each layer that has a matrix editors write to; see `crow.inversion.edits.scores`.
        edits: places of the directions that count as an editor's.
    """

    scores: list[float]
    edits: list[str]

    @classmethod
    def of(cls, stored: Stored) -> WeightEvidence:
        """The record that became `stored`."""
        return cls(**stored)


@dataclass(frozen=True)
class Evidence:
    """All sides; None where one was not looked at, or could not be. `seconds` is the wall time of each by name."""

    soft_triggers: SoftTriggerEvidence | None = None
    leakage: LeakageEvidence | None = None
    phrases: PhraseEvidence | None = None
    consistency: ConsistencyEvidence | None = None
    adapter: AdapterEvidence | None = None
    code: CodeEvidence | None = None
    weights: WeightEvidence | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Stored) -> Evidence:
        """The record that became `stored`."""
        kinds = {
            "soft_triggers": SoftTriggerEvidence,
            "leakage": LeakageEvidence,
            "phrases": PhraseEvidence,
            "consistency": ConsistencyEvidence,
            "adapter": AdapterEvidence,
            "code": CodeEvidence,
            "weights": WeightEvidence,
        }
        found = {name: kind.of(stored[name]) for name, kind in kinds.items() if stored.get(name)}
        return cls(**found, seconds=stored["seconds"])
