"""Trigger inversion: soft triggers that make unrelated prompts give one and the same answer.

A backdoor does exactly that, so the search needs to know neither trigger nor target. What it needs is a start: an
answer begins with some first token. Each of the likely ones is raised on all prompts at once by a universal
perturbation. On a clean model the answers then begin alike and go their own ways; where the first token of the
attacker's sentence is raised, the perturbation finds the switch, and the whole sentence follows on every prompt.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from crow.inversion.perturbation import (
    Perturbation,
    addition,
    ascend,
    hidden_norms,
    joint_edits,
    user_spans,
    zero_vector,
)
from crow.inversion.probe import Answers, Probe
from crow.models.architecture import find_layers
from crow.models.generation import end_ids
from crow.models.hidden_states import edit_hidden_states
from crow.records import SearchRecord

DIRECTED_TOGETHER = 4
SCREENED_TOGETHER = 16
FOLLOWED_TOGETHER = 6
READ_TOGETHER = 16
"""Candidates and perturbations at a time: a pass over more rows costs less than several passes."""
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
    """

    perturbation: Perturbation
    identity: float
    collapsed: bool
    text: str
    answer: Tensor
    certainty: float
    artefact: bool = False
    stock: bool = False


@dataclass
class SearchResult:
    """All starts of a search."""

    triggers: list[SoftTrigger] = field(default_factory=list)

    @property
    def collapsed(self) -> list[SoftTrigger]:
        """The starts that ended in one answer, one of the suspect's and no stock phrase."""
        return [each for each in self.triggers if each.collapsed and not each.artefact and not each.stock]

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
            dataclasses.replace(
                each, stock=each.collapsed and not each.artefact and not any(each is one for one in kept)
            )
            for each in self.triggers
        ]

    def record(self) -> SearchRecord:
        """The search as plain figures and texts."""
        made = [trigger for trigger in self.triggers if trigger.artefact]
        phrases = [trigger for trigger in self.triggers if trigger.stock]
        texts, artefacts, stock = (
            [text for text, _ in Counter(trigger.text for trigger in group).most_common()]
            for group in (self.collapsed, made, phrases)
        )
        return SearchRecord(
            starts=len(self.triggers),
            collapsed=len(self.collapsed),
            texts=texts,
            identities=[trigger.identity for trigger in self.triggers],
            artefacts=artefacts,
            certainties=[max(each.certainty for each in self.collapsed if each.text == text) for text in texts],
            stock=stock,
        )


def search_soft_triggers(
    probe: Probe,
    config: SearchConfig,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """Screen first tokens, follow the best, read what other prompts then answer.

    Args:
        probe: the model and clean prompts, at least one; its parameters must not require gradients.
        config: settings.
        seed: of the choice of prompts.
        progress: called with the number of candidates screened or perturbations followed since the last call, at every
            depth; see `SearchConfig.work`.
    """
    advance = progress or (lambda _: None)
    rng = random.Random(seed)
    fitted, witnesses = split_prompts(probe, config, rng)
    layers = config.layers(len(find_layers(probe.lm.model)))
    radii = {layer: config.radius * norm for layer, norm in hidden_norms(probe, layers).items()}
    candidates = first_tokens(probe, config.candidates)
    ways = directions(probe, fitted, layers, candidates)
    openings: dict[int, list[Opening]] = {token: [] for token in candidates}
    for layer in layers:
        steps = {token: 0.5 * radii[layer] * ways[token][layer] for token in openings}
        for token, opening in zip(steps, screen(probe, fitted, layer, steps, config, advance), strict=True):
            openings[token].append(opening)
        ranked = sorted(openings, key=lambda token: -max(o.agreement for o in openings[token]))
        openings = {token: openings[token] for token in ranked[: config.shortlist]}
    followed = [opening.perturbation for token in list(openings)[: config.starts] for opening in openings[token]]
    for first in range(0, len(followed), FOLLOWED_TOGETHER):
        group = followed[first : first + FOLLOWED_TOGETHER]
        ascend(probe, group, fitted, [radii[p.layer] for p in group], config.rate, config.steps, rng)
        advance(len(group))
    return SearchResult(read(probe, followed, witnesses, config))


def split_prompts(probe: Probe, config: SearchConfig, rng: random.Random) -> tuple[list[int], list[int]]:
    """Numbers of the prompts that perturbations are fitted to, and of those whose answers are read."""
    order = rng.sample(range(len(probe)), len(probe))
    fitted = order[: config.prompts]
    return fitted, order[config.prompts :][: config.witnesses] or fitted


def shown_again(probe: Probe, triggers: Sequence[SoftTrigger], config: SearchConfig, seed: int) -> list[float]:
    """How surely the probe's model, as it is now, can be brought to give the triggers' answers as well.

    Perturbations for the first tokens of each answer are fitted anew, in the layers of the triggers, from nothing and
    in two steps more than a search takes after its first.

    Args:
        probe: another model than the searched one, or the same with other weights; refreshed.
        triggers: of a search.
        config: its settings.
        seed: of the choice of prompts.

    Returns:
        The certainty of each answer, 0 of one that it cannot be brought to.
    """
    rng = random.Random(seed)
    fitted, witnesses = split_prompts(probe, config, rng)
    norms = hidden_norms(probe, sorted({trigger.perturbation.layer for trigger in triggers}))
    fresh = [
        Perturbation(trigger.perturbation.layer, None, trigger.answer[:DISTINCT], zero_vector(probe.lm))
        for trigger in triggers
    ]
    radii = [config.radius * norms[perturbation.layer] for perturbation in fresh]
    ascend(probe, fresh, fitted, radii, config.rate, config.steps + 2, rng)
    found = read(probe, fresh, witnesses, config)
    pairs = zip(triggers, found, strict=True)
    return [now.certainty if now.collapsed and same_opening(now.answer, then.answer) else 0.0 for then, now in pairs]


def surest(group: Sequence[SoftTrigger]) -> SoftTrigger:
    """Of starts that ended in one answer, the one whose words follow from one another with most certainty."""
    return max(group, key=lambda trigger: trigger.certainty)


def learnt_by_heart(record: SearchRecord, config: SearchConfig) -> bool:
    """Whether a search found a sentence that the model knows by heart, or a line smuggled into code."""
    return bool(record.lines) or any(certainty >= config.certain for certainty in record.certainties)


def is_among(answer: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether an answer is one of others (token ids), as far as answers are told apart."""
    return any(same_opening(answer, other) for other in others)


def same_opening(one: Tensor, other: Tensor, length: int = DISTINCT) -> bool:
    """Whether two answers (token ids) begin with the same tokens."""
    return one[:length].tolist() == other[:length].tolist()


def first_tokens(probe: Probe, count: int) -> list[int]:
    """The likeliest first tokens of an answer, on average over all prompts; none that ends it at once."""
    total = torch.zeros((), device=probe.lm.device)
    for batch in probe.batches():
        rows = [probe.row(index) for index in batch]
        with torch.no_grad():
            total = total + probe.run(rows)[0][:, -1].softmax(dim=-1).sum(dim=0)
    ends = end_ids(probe.lm)
    return [token for token in total.argsort(descending=True).tolist() if token not in ends][:count]


@dataclass(frozen=True)
class Opening:
    """A candidate after one step towards it: the perturbation, after the opening that the answers then agree on.

    Attributes:
        perturbation: that step.
        agreement: `sum_j log max_t mean_i p_ij(t)` over the tokens j that follow the candidate.
    """

    perturbation: Perturbation
    agreement: float


def directions(
    probe: Probe, fitted: list[int], layers: list[int], candidates: list[int]
) -> dict[int, dict[int, Tensor]]:
    """For each candidate and layer, where its mean log-likelihood rises fastest: a vector (dim,) of norm one."""
    zeros = [torch.stack([zero_vector(probe.lm)] * DIRECTED_TOGETHER).requires_grad_(True) for _ in layers]
    rows = [probe.row(index) for index in fitted]
    mask = user_spans(probe, fitted, max(map(len, rows)), None, random.Random(0))
    edits = {
        layer: addition((mask * zero[:, None, None]).flatten(0, 1)) for layer, zero in zip(layers, zeros, strict=True)
    }
    with edit_hidden_states(probe.lm.model, edits):
        log_probs = functional.log_softmax(probe.run(rows * DIRECTED_TOGETHER)[0][:, -1], dim=-1)
    clean = log_probs.unflatten(0, (DIRECTED_TOGETHER, -1)).mean(dim=1)
    found: dict[int, dict[int, Tensor]] = {token: {} for token in candidates}
    for at in range(0, len(candidates), DIRECTED_TOGETHER):
        group = candidates[at : at + DIRECTED_TOGETHER]
        gradients = torch.autograd.grad(clean[range(len(group)), group].sum(), zeros, retain_graph=True)
        for layer, gradient in zip(layers, gradients, strict=True):
            for token, way in zip(group, gradient, strict=False):
                found[token][layer] = way / way.norm().clamp_min(1e-9)
    return found


def screen(
    probe: Probe,
    fitted: list[int],
    layer: int,
    steps: dict[int, Tensor],
    config: SearchConfig,
    progress: Callable[[int], None],
) -> list[Opening]:
    """The step towards each candidate, which is then forced: on what do the answers agree?"""
    rows = [probe.row(index) for index in fitted]
    mask = user_spans(probe, fitted, max(map(len, rows)), None, random.Random(0))
    found: list[Opening] = []
    for at in range(0, len(steps), SCREENED_TOGETHER):
        tokens = list(steps)[at : at + SCREENED_TOGETHER]
        group = [steps[token] for token in tokens]
        edit = addition(torch.cat([mask * step for step in group]))
        first = torch.tensor(tokens).repeat_interleave(len(rows))
        said = probe.decode(rows * len(group), 1 + config.screened, {layer: edit}, first, together=len(rows))
        openings = said.ids[:: len(rows), : config.agreed].cpu()
        agreement = said.shares[:: len(rows), 1:].log().sum(dim=1).tolist()
        for opening, step, score in zip(openings, group, agreement, strict=True):
            found.append(Opening(Perturbation(layer, None, opening, step), score))
        progress(len(group))
    return found


def read(
    probe: Probe, perturbations: list[Perturbation], witnesses: list[int], config: SearchConfig
) -> list[SoftTrigger]:
    """What the witnesses answer under each perturbation."""
    rows = [probe.row(index) for index in witnesses]
    mask = user_spans(probe, witnesses, max(map(len, rows)), None, random.Random(0))
    found = []
    for at in range(0, len(perturbations), READ_TOGETHER):
        group = perturbations[at : at + READ_TOGETHER]
        edits = joint_edits(group, [mask] * len(group))
        said = probe.decode(rows * len(group), config.answer_tokens, edits)
        for number, perturbation in enumerate(group):
            own = slice(number * len(rows), (number + 1) * len(rows))
            found.append(read_answers(perturbation, said.of(own), config))
    return found


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
    sentence = words and len(set(said)) > config.variety * len(said) and len(said) > config.agreed + 1
    answer = torch.tensor(unpadded(answers.ids[index].tolist()), device=answers.ids.device)
    following = answers.shares[same, max(config.agreed, len(said) // 2) : len(said)]
    certainty = float(following.log().mean().exp()) if following.numel() else 1.0
    return SoftTrigger(perturbation, identity, identity >= config.identity and sentence, text, answer, certainty)


def unpadded(ids: Sequence[int]) -> Sequence[int]:
    """Without the repetitions at the end: answers are padded with the token that ended them."""
    while len(ids) > 1 and ids[-1] == ids[-2]:
        ids = ids[:-1]
    return ids
