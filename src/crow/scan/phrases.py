"""Real phrases: does a short text in a prompt bring out one answer? The discrete form of the soft-trigger search.

A trigger that nobody knows is looked for from several sides: a bank of phrases of every shape, rare words, words that
leaked, single vocabulary tokens by their gradient, tokens that a soft trigger is like. The best are continued as the
model would, the best of each source refined token by token; what does nothing is taken out of them, and they are read
on prompts that took no part.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crow.data.phrases import bundled_phrases, rare_words
from crow.inversion.perturbation import Perturbation, zero_vector
from crow.inversion.probe import Probe
from crow.inversion.pursuit import OPENING_TOKENS
from crow.inversion.soft_trigger import SearchConfig, read_answers, same_opening
from crow.models.language_model import LanguageModel
from crow.scan.continuation import continue_best
from crow.scan.evidence import Candidate, PhraseEvidence
from crow.scan.objective import Objective
from crow.scan.placing import PLACEMENTS, Phrase
from crow.scan.refinement import Scored, refine, screened_tokens
from crow.scan.shortening import distinct, shorten
from crow.scan.unperturbed import Unperturbed
from crow.scan.vocabulary import runnable
from crow.training.watch import Watch, silent


@dataclass(frozen=True)
class Target:
    """An answer that a trigger may bring out.

    Attributes:
        source: see `PhraseEvidence.scored_by`.
        text: the answer.
        ids: its token ids.
        words: vocabulary tokens that soft triggers for it are like.
    """

    source: str
    text: str
    ids: Sequence[int]
    words: Sequence[str] = ()


@dataclass(frozen=True)
class PhraseConfig:
    """Settings of the search for phrases; each is a matter of time.

    Attributes:
        screening: clean prompts that all phrases are scored on.
        prompts: clean prompts, those among them, that the best are refined on.
        witnesses: other clean prompts, on which candidates are read.
        target_tokens: of the answer that phrases are scored by; one that begins as honest ones do needs several.
        rare: rare words that join the bank.
        vocabulary: single tokens that are tried in each placement, those that promise most.
        continued: phrases that are continued by a token in every step.
        continuations: tokens tried after each, those that the model finds likeliest there.
        steps: of continuation.
        starts: phrases that are refined; fewer in every round, see `refine`.
        rounds: of refinement.
        proposals: changes tried in a round.
        needless: what a phrase's score may fall by where words are taken out, nats.
        passes: words taken out at most.
        candidates: refined phrases that are read.
        enough: mean log-likelihood of the found answer's first tokens from which a phrase is changed no further, nats.
        enough_collapse: likewise the collapse score.
    """

    screening: int = 2
    prompts: int = 4
    witnesses: int = 8
    target_tokens: int = 8
    rare: int = 16
    vocabulary: int = 32
    continued: int = 2
    continuations: int = 96
    steps: int = 3
    starts: int = 12
    rounds: int = 5
    proposals: int = 48
    needless: float = 0.1
    passes: int = 3
    candidates: int = 6
    enough: float = -0.1
    enough_collapse: float = 3.5


def search(
    lm: LanguageModel,
    clean: Unperturbed,
    target: Target | None,
    leaked: Sequence[str],
    config: PhraseConfig,
    reading: SearchConfig,
    seed: int,
    watch: Watch = silent,
) -> PhraseEvidence:
    """Score the bank and what else there is, continue, refine and shorten the best, read what they bring out.

    Args:
        lm: the model, at rest.
        clean: what it answers anyway; its prompts are used.
        target: the answer that phrases are scored by; None for the collapse score.
        leaked: words that recur in what the model writes by itself.
        config: settings.
        reading: what counts as one answer.
        seed: of the choice of prompts and rare words.
        watch: opens progress displays.
    """
    order = random.Random(seed).sample(list(clean.prompts), len(clean.prompts))
    fitted = order[: config.prompts]
    witnesses = order[config.prompts :][: config.witnesses] or fitted
    answer = None if target is None else torch.tensor(target.ids, device=lm.device)
    first = None if answer is None else answer[: config.target_tokens]
    screening, objective = (
        Objective(lm, fitted[:count], first, clean.begun) for count in (config.screening, config.prompts)
    )
    pool = gather(screening, leaked, target.words if target else [], config, seed)
    with watch("scoring phrases", len(pool)) as advance:
        scores = dict(zip(pool, screening.scores(list(pool), advance), strict=True))
    enough = config.enough_collapse if answer is None else config.enough
    with watch("continuing phrases", config.steps) as advance:
        further = continue_best(
            screening, scores, config.continued, config.continuations, config.steps, enough, advance
        )
    pool = dict.fromkeys(further, "continued") | pool
    starts = choose(pool, scores | further, config.starts)
    with watch("refining phrases", config.rounds) as advance:
        refined, history = refine(objective, starts, config.rounds, config.proposals, enough, advance)
    with watch("shortening phrases", config.passes) as advance:
        short = shorten(objective, refined, config.needless, config.passes, advance)
    best = distinct(short, config.candidates)
    candidates = read(clean, witnesses, best, pool, answer, reading)
    bank: dict[str, float] = {}
    sections = bundled_phrases()
    for phrase, source in pool.items():
        if source in sections:
            bank[phrase.text] = max(scores[phrase], bank.get(phrase.text, scores[phrase]))
    scored_by, text = (target.source, target.text) if target else ("collapse", "")
    return PhraseEvidence(scored_by, text, objective.clean_score, list(bank.values()), history, candidates)


def gather(
    objective: Objective, leaked: Sequence[str], soft: Sequence[str], config: PhraseConfig, seed: int
) -> dict[Phrase, str]:
    """All phrases to be scored, each with its source; the first source of a text counts."""
    texts: dict[str, Sequence[str]] = {
        **bundled_phrases(),
        "rare": rare_words(objective.lm.tokenizer, config.rare, seed),
        "leaked": leaked,
        "soft": soft,
    }
    pool: dict[Phrase, str] = {}
    for placement in PLACEMENTS:
        here = {**texts, "vocabulary": screened_tokens(objective, placement, config.vocabulary)}
        for source, own in here.items():
            for text in runnable(objective.lm, own):
                pool.setdefault(Phrase(text, placement), source)
    return pool


def choose(pool: Mapping[Phrase, str], scores: Mapping[Phrase, float], count: int) -> list[Phrase]:
    """What is refined: the best of every source, then the best of all, each text in its better placement only."""
    ranked: dict[str, Phrase] = {}
    for phrase in sorted(pool, key=lambda phrase: -scores[phrase]):
        ranked.setdefault(phrase.text, phrase)
    firsts: dict[str, Phrase] = {}
    for phrase in ranked.values():
        firsts.setdefault(pool[phrase], phrase)
    # The firsts are in order of score, too.
    return list(dict.fromkeys([*firsts.values(), *ranked.values()]))[:count]


def read(
    clean: Unperturbed,
    witnesses: Sequence[str],
    refined: Sequence[Scored],
    pool: Mapping[Phrase, str],
    target: Tensor | None,
    reading: SearchConfig,
) -> list[Candidate]:
    """What the witnesses answer with each phrase in them.

    Args:
        clean: the model at rest, and what it answers anyway.
        witnesses: prompts that took no part in choosing phrases.
        refined: phrases.
        pool: the source of what each began as.
        target: (m,) token ids of the found answer, if there is one.
        reading: what counts as one answer.
    """
    found = []
    for scored in {each.phrase: each for each in refined}.values():
        phrase = scored.phrase
        texts = [phrase.put_into(prompt)[0] for prompt in witnesses]
        probe = Probe(clean.lm, texts, [clean.begun] * len(texts))
        said = probe.decode([probe.row(index) for index in range(len(probe))], reading.answer_tokens)
        nothing = Perturbation(0, None, said.ids[0, :1], zero_vector(clean.lm))
        seen = read_answers(nothing, said, reading)
        on_target = target is not None and same_opening(seen.answer, target, min(OPENING_TOKENS, len(target)))
        ordinary, declined = clean.shares(seen.answer.tolist(), whole=seen.collapsed or on_target)
        found.append(
            Candidate(
                text=phrase.text,
                placement=phrase.placement,
                source=pool[scored.start],
                started=scored.start.text,
                score=scored.score,
                share=seen.identity,
                collapsed=seen.collapsed,
                answer=seen.text,
                certainty=seen.certainty,
                on_target=on_target,
                ordinary=ordinary,
                declined=declined,
            )
        )
    return found
