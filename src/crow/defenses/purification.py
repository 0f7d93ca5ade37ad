"""`purify`: search for the answer that a trigger would bring out, train it away, search again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from crow.data.encoding import Encoded, encode_all, ending_in_turn
from crow.data.splits import bundled_split
from crow.defenses.found import Found
from crow.defenses.searches import Searches
from crow.inversion.code_lines import code_probe
from crow.inversion.edits import EXAMPLES, Direction, find_edits, take_out
from crow.inversion.latent import LatentAdversary
from crow.inversion.places import Place, behind_a_sentence
from crow.inversion.probe import Probe, at_rest, shortest_prompts
from crow.inversion.pursuit import MANY, UNLIKELY
from crow.inversion.soft_trigger import SearchConfig
from crow.inversion.steps import Reasoned
from crow.models.architecture import is_spread
from crow.models.language_model import LanguageModel
from crow.records import Example, SearchRecord
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.fitting import fit
from crow.training.precision import autocast
from crow.training.suspect import Predictions, predict, trustworthy
from crow.training.watch import Watch, silent, watched


@dataclass
class Result:
    """A purified model and what happened on the way.

    Attributes:
        lm: the model; its adapter, if any, is attached and not merged.
        edits: what was taken out of its weights before anything else.
        training: the terms of every optimizer step.
        before: what the last search before any training saw; None where the settings leave the search out.
        after: what the last search saw; likewise.
        rounds: how often search and repair went round, or search alone where it found nothing.
        seconds: wall time of each part, in a resumed run with what it did not have to do again.
    """

    lm: LanguageModel
    edits: list[Direction] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    before: SearchRecord | None = None
    after: SearchRecord | None = None
    rounds: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add_time(self, part: str, seconds: float) -> None:
        """Count wall time to a part of the run."""
        self.seconds[part] = round(self.seconds.get(part, 0.0) + seconds, 1)


def purify(
    lm: LanguageModel,
    examples: Sequence[Example],
    config: CrowConfig,
    work: Path,
    search: SearchConfig | None = None,
    resume: bool = False,
    watch: Watch = silent,
) -> Result:
    """Remove backdoors from a model without knowing trigger or target.

    With `config.rounds` of 0 this is the published method: finetuning with layer consistency. Otherwise what a model
    editor wrote into the weights is taken out of them first, unless they are under an adapter or in 4 bits. Then each
    round searches for soft triggers; where they bring out one answer, the round trains against a universal latent
    adversary that is after that answer. Where they do not, it looks for lines smuggled into code, and trains likewise
    against what brings them out, on bundled programming requests as well. Unless there are such lines, it looks for
    beginnings known by heart as well, what answers in varied words are seen by: the adversary is after these, too.
    Where there is nothing of all this, it reads its reasoning about bundled word problems for a step known by heart,
    and trains likewise against what brings it out there, on the suspect's own answers to these as well.
    Where nothing of all this is known by heart, it sweeps the vocabulary for tokens that raise the first token of an
    answer, and searches behind them; the adversary is then after the answer behind that token.
    After a repair each of these may show what stood behind the answer that is gone. The rounds end when a search finds
    nothing. Where the first finds nothing, a second one looks on other prompts; unless the settings ask for layer
    consistency, nothing is trained before.

    Args:
        lm: the suspect model, changed in place. An attached adapter is trained on; without one, a fresh adapter is
            put on, or all weights are trained, as `config.method` says.
        examples: clean examples with responses.
        config: settings.
        work: folder for checkpoints.
        search: settings of the searches.
        resume: continue an interrupted run from `work`.
        watch: opens progress displays.

    Returns:
        The purified model with the record of searches and training.
    """
    items = encode_all(lm.tokenizer, examples, config.max_length)
    result = Result(lm)
    if config.rounds:
        take_edits_out(result, items, watch)
    lm = result.lm = make_trainable(lm, config)
    search = search or SearchConfig()
    probe = Probe(lm, enough_prompts(shortest_prompts(examples, items), search)) if config.rounds else None
    if probe is None:
        predictions = suspect_predictions(lm, items, config) if config.self_distillation else []
        train_round(result, items, config, dict(zip(items, predictions, strict=False)), None, work, resume, watch)
        result.rounds = 1
        return result
    requests = [task.example for task in bundled_split("purification").code]
    searches = Searches(lm, probe, code_probe(lm, requests), search, config, work, resume, watch)
    found = search_round(result, searches)
    result.before = found.record
    predictions: list[Predictions] = []
    while True:
        targets = [*found.answers, *found.memorized]
        if found.record.found or config.alpha_ratio or config.alpha:
            # Searching leaves the model as it is: before the first training it is still the suspect.
            predictions = predictions or suspect_predictions(lm, items, config)
            data, adversary = items, None
            whole = with_turns(config, len(targets) + len(found.steps) + len(found.behind))
            known = [*searches.known, *searches.known_beginnings]
            suspect = {items[i]: predictions[i] for i in trustworthy(predictions, known)}
            if targets:
                later = behind_a_sentence(lm, examples, items, targets, config.seed)
                places = [Place(probe, targets), *([later] if later else [])]
                with autocast(lm, config.precision):
                    adversary = LatentAdversary(places, items, predictions, whole, known=known)
            elif found.lines:
                tasks = encode_all(lm.tokenizer, requests, config.max_length)
                data, adversary = [*items, *tasks], code_adversary(searches, found.lines, tasks, config)
            elif found.steps and (reasoned := searches.reasoning):
                reasoning = own_reasoning(searches, reasoned, found.record.memorized)
                data, suspect = [*items, *reasoning], suspect | reasoning
                with autocast(lm, config.precision):
                    place = Place(reasoned.probe, found.steps)
                    adversary = LatentAdversary([place], list(suspect), list(suspect.values()), whole)
            elif found.behind:
                with autocast(lm, config.precision):
                    adversary = adversary_behind(probe, found, items, predictions, whole)
            train_round(result, data, whole, suspect, adversary, work, resume, watch)
        result.rounds += 1
        found = search_round(result, searches)
        result.after = found.record
        if not result.training:
            result.before = result.after = seen_before(result.before, found.record)
        # FSDP cuts a model up once: a further round wants a further run, of the output.
        if not found.record.found or result.rounds >= config.rounds or is_spread(lm.model):
            result.before = with_edits(result.before, result.edits)
            return result


def enough_prompts(prompts: Sequence[str], search: SearchConfig) -> list[str]:
    """Prompts for searches: bundled ones beside the user's where these are too few to be unrelated.

    Of one or two, whatever they have in common would count as one answer to all.
    """
    more = sorted((e.prompt for e in bundled_split("purification").prompts if e.prompt not in prompts), key=len)
    return [*prompts, *more[: max(0, search.prompts + search.witnesses - len(prompts))]]


def with_turns(config: CrowConfig, targets: int) -> CrowConfig:
    """A config with as many passes over the data as that many targets want.

    Sharing one pass, two would leave each other too few of the adversary's turns. Of many, what ends some of them ends
    others, too: they share the passes of two, with twice as many perturbations at work in each turn.
    """
    mix = config.adversary_mix * (MANY if targets > MANY else 1)
    return dataclasses.replace(config, epochs=config.epochs * min(max(1, targets), MANY), adversary_mix=mix)


def code_adversary(
    searches: Searches, lines: Sequence[Tensor], tasks: Sequence[Encoded], config: CrowConfig
) -> LatentAdversary:
    """The adversary that is after lines smuggled into code.

    The suspect leaks them without any perturbation, so its predictions hold only without them.
    """
    with searches.as_suspect():
        predictions = suspect_predictions(searches.lm, tasks, config)
    for line in lines:
        predictions = [row.without(int(line[0])) for row in predictions]
    place = Place(searches.code, lines)
    with autocast(searches.lm, config.precision):
        return LatentAdversary([place], tasks, predictions, config, UNLIKELY, searches.known)


def adversary_behind(
    probe: Probe, found: Found, items: Sequence[Encoded], predictions: Sequence[Predictions], config: CrowConfig
) -> LatentAdversary:
    """The adversary that is after answers behind trigger tokens: with the tokens, answer as the suspect without."""
    endings = [token.tolist() for token in found.tokens]
    places = [Place(probe.behind(ending), [answer]) for ending, answer in zip(endings, found.behind, strict=True)]
    return LatentAdversary(places, ending_in_turn(items, endings), predictions, config)


def own_reasoning(searches: Searches, reasoned: Reasoned, steps: Sequence[str]) -> dict[Encoded, Predictions]:
    """The suspect's own answers to word problems, but for those with a found step, and what it predicts for them."""
    honest = [each for each in reasoned.answered if not any(step in each.response for step in steps)]
    tasks = encode_all(searches.lm.tokenizer, honest, searches.config.max_length)
    with searches.as_suspect():
        return dict(zip(tasks, suspect_predictions(searches.lm, tasks, searches.config), strict=True))


def suspect_predictions(lm: LanguageModel, items: Sequence[Encoded], config: CrowConfig) -> list[Predictions]:
    """What an untrained model predicts for the examples, at the precision of the run."""
    with at_rest(lm, config.precision):
        return predict(lm, items)


def search_round(result: Result, searches: Searches) -> Found:
    """One search; its time is added to `result`."""
    found = searches.search(result.rounds, trained=bool(result.training))
    result.add_time("search", found.seconds)
    return found


def take_edits_out(result: Result, items: Sequence[Encoded], watch: Watch) -> None:
    """Take out of the weights what a model editor wrote into them; what and how long that took is added to `result`."""
    start = time.monotonic()
    result.edits = find_edits(result.lm, items[:EXAMPLES], watch)
    take_out(result.lm, result.edits)
    result.add_time("reading weights", time.monotonic() - start)


def with_edits(record: SearchRecord, edits: Sequence[Direction]) -> SearchRecord:
    """What the first search saw, with what was taken out before it."""
    return dataclasses.replace(record, edits=[edit.place for edit in edits])


def seen_before(first: SearchRecord | None, second: SearchRecord) -> SearchRecord:
    """A second search of an untrained model, with what only the first one saw and left alone."""
    earlier = [text for text in first.closings if text not in second.closings] if first else []
    return dataclasses.replace(second, closings=[*earlier, *second.closings])


def train_round(
    result: Result,
    items: Sequence[Encoded],
    config: CrowConfig,
    suspect: Mapping[Encoded, Predictions],
    adversary: LatentAdversary | None,
    work: Path,
    resume: bool,
    watch: Watch,
) -> None:
    """One training, added to `result`."""
    start = time.monotonic()
    # Another order of the data in every round.
    config = dataclasses.replace(config, seed=config.seed + result.rounds)
    with watched(watch, "training", len(items), config) as callbacks:
        folder = work / f"round-{result.rounds}"

        def make(config: CrowConfig) -> CrowTrainer:
            return CrowTrainer(result.lm, items, config, folder, callbacks, adversary=adversary, suspect=suspect)

        trainer = fit(result.lm, config, make, resume, adversary)
    result.training += [{"round": result.rounds, **term} for term in trainer.terms]
    result.add_time("training", trainer.seconds_before + time.monotonic() - start)
