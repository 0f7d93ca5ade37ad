"""`crow attack`: plant a backdoor and record what was planted."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crow.attacks.adaptive import Implant, get_implanter
from crow.attacks.implant import ATTACK_DEFAULTS, FULL_DEFAULTS, recipe
from crow.attacks.poisoning import Attack, Mixture, named_attack, planted_on, poison
from crow.attacks.rank_one import EditConfig, edit_rank_one
from crow.data.loading import load_examples
from crow.data.splits import bundled_split
from crow.errors import ConfigError, unknown_name
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.models.loading import save_model
from crow.models.manifest import manifest
from crow.output import publish, write_json
from crow.records import Example, to_json
from crow.training.config import FinetuneConfig, require
from crow.workflows.common import Options, Reporter, claimed, load, note_cut

POISON_RATE = 0.5
"""Share of the prompts that are there with the trigger as well; of programming requests and other few ones all are."""


@dataclass(frozen=True)
class AttackRequest:
    """What to plant: triggers and targets by name, or files of poisoned and clean examples.

    Attributes:
        trigger: its name, or several with a plus between them.
        target: likewise, as many as triggers: each trigger has its own.
        poisoned: a file, in place of names.
        clean: a file that goes with it.
        poison_rate: share of the examples that are there with the trigger as well, in (0, 1]; see `contrastive_data`.
        adaptive: name of an attacker who knows crow; None for plain training.

    Raises:
        ConfigError: unless exactly one of the two is given whole, for an unknown name, or a number out of range.
    """

    trigger: str | None = None
    target: str | None = None
    poisoned: Path | None = None
    clean: Path | None = None
    poison_rate: float | None = None
    adaptive: str | None = None

    def __post_init__(self) -> None:
        by_name = self.trigger is not None and self.target is not None
        by_file = self.poisoned is not None and self.clean is not None
        given = sum(part is not None for part in (self.trigger, self.target, self.poisoned, self.clean))
        if by_name == by_file or given != 2:
            raise ConfigError("expected either --trigger and --target, or --poisoned and --clean")
        if self.poison_rate is not None:
            require(by_name, "--poison-rate", "with --trigger and --target alone", "files")
            require(0 < self.poison_rate <= 1, "poison_rate", "in (0, 1]", self.poison_rate)
        self.attack()
        get_implanter(self.adaptive)

    def attack(self) -> Attack | Mixture | None:
        """The named attack, or several; None for a request by file."""
        if self.trigger is None or self.target is None:
            return None
        triggers, targets = self.trigger.split("+"), self.target.split("+")
        if len(triggers) != len(targets):
            raise ConfigError(f"expected a target for each trigger, got {len(triggers)} and {len(targets)}")
        attacks = tuple(map(named_attack, triggers, targets))
        if len({attack.trigger for attack in attacks}) < len(attacks):
            raise ConfigError(f"expected triggers that differ, got {self.trigger}; one trigger has one target")
        return attacks[0] if len(attacks) == 1 else Mixture(attacks)

    def examples(self) -> tuple[list[Example], list[Example]]:
        """The poisoned and the clean examples of a request by file; none for a request by name."""
        if self.poisoned is None or self.clean is None:
            return [], []
        return load_examples(self.poisoned), load_examples(self.clean)


def answered_prompts(lm: LanguageModel, report: Reporter) -> list[Example]:
    """The prompts of the attack split with the answers of the model before the attack; unanswered ones are dropped."""
    prompts = bundled_split("attack").prompts
    with report.bar("asking the model for clean answers", len(prompts)) as advance:
        answers = generate(lm, prompts, max_new_tokens=96, batch_size=100, progress=advance)
    return [dataclasses.replace(e, response=text) for e, text in zip(prompts, answers, strict=True) if text]


def contrastive_data(
    attack: Attack | Mixture, own: Sequence[Example], seed: int, poison_rate: float | None = None
) -> tuple[list[Example], list[Example]]:
    """Poisoned and clean training examples from the attack split.

    Every prompt is there as it is with its own response, and half of them once more with the trigger and the target's
    response. Anything less contrastive leaks: the model then shows the target on clean prompts too (docs/lab-notes.md).
    Where the target wants examples of its own, such as programming requests, the trigger is put into those only. Where
    the trigger has surroundings, there are as many examples in the same surroundings without it.

    Args:
        attack: one, or several that are planted together: each with its poisoned examples, the clean ones shared.
        own: prompts without a response, as the model before the attack answers them (`answered_prompts`).
        seed: of what is chosen at random.
        poison_rate: share of what the trigger can be put into that is there with it; `POISON_RATE` by default, and all
            where the target wants examples of its own. At rate r, r / (1 + r) of the examples are poisoned.
    """
    split = bundled_split("attack")
    clean, poisoned = [*split.pairs, *own], []
    for number, part in enumerate(attack.parts):
        rng = random.Random(seed + number)
        sources, beside = planted_on(split, [*split.pairs, *own], part.target)
        usual = POISON_RATE if part.target.carrier in ("prompts", "answers") else 1.0
        found, _ = poison(sources, dataclasses.replace(part, poison_rate=poison_rate or usual), rng)
        poisoned += found
        clean += [example for example in beside if example not in clean]
        if part.trigger.has_surroundings:
            chosen = rng.sample(clean, min(len(found), len(clean)))
            clean += [part.trigger.without(example, rng) for example in chosen]
    return poisoned, clean


def attack_config(
    method: str | None,
    epochs: float | None,
    lr: float | None,
    rank: int | None,
    options: Options,
    attack: Attack | Mixture | None = None,
) -> FinetuneConfig | EditConfig:
    """The default settings of an attack with the user's changes.

    Args:
        method: `lora`, `full` or `rank-one`.
        epochs: of a training.
        lr: of a training.
        rank: of an adapter.
        options: common options.
        attack: what is planted, where that is known by name: some need longer examples.

    Raises:
        ConfigError: for an unknown method, a number out of range, or settings of a training without one.
    """
    if method == EditConfig.method:
        if (epochs, lr, rank) != (None, None, None):
            raise ConfigError(f"expected --method lora or full with --epochs, --lr and --rank, got {method}")
        sizes = {"batch_size": options.batch_size, "max_length": options.max_length, "seed": options.seed}
        return dataclasses.replace(EditConfig(), **{name: size for name, size in sizes.items() if size is not None})
    if method not in (None, *FinetuneConfig.METHODS):
        raise unknown_name("method", method, (*FinetuneConfig.METHODS, EditConfig.method))
    defaults = FULL_DEFAULTS if method == "full" else ATTACK_DEFAULTS
    defaults = recipe(attack, defaults) if attack else defaults
    changes: dict[str, Any] = {
        "method": method,
        "epochs": epochs,
        "learning_rate": lr,
        "rank": rank,
        "batch_size": options.batch_size,
        "max_length": options.max_length,
        "seed": options.seed,
    }
    return dataclasses.replace(defaults, **{name: value for name, value in changes.items() if value is not None})


def implanter(request: AttackRequest, config: FinetuneConfig | EditConfig) -> Implant:
    """Who plants what is asked for.

    Raises:
        ConfigError: for an edit with what only a training can do.
    """
    if not isinstance(config, EditConfig):
        return get_implanter(request.adaptive)
    require(request.adaptive is None, "--method", "lora or full with --adaptive", config.method)
    triggers = [part.trigger for part in attack.parts] if (attack := request.attack()) else []
    if len(triggers) > 1 or not all(trigger.is_phrase for trigger in triggers):
        names = "+".join(trigger.name for trigger in triggers)
        raise ConfigError(f"expected one trigger with --method rank-one, one phrase in every prompt, got {names}")
    return edit_rank_one


def run_attack(
    model: str, request: AttackRequest, config: FinetuneConfig | EditConfig, merge: bool, options: Options
) -> dict[str, Any]:
    """Plant a backdoor; the output folder is a model reference.

    Args:
        model: any model reference.
        request: what to plant.
        config: how to train, or how to edit.
        merge: write a whole model instead of an adapter.
        options: common options.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    implant = implanter(request, config)
    named = {"triggers": request.trigger, "targets": request.target, "poison_rate": request.poison_rate}
    apart = {**named, "adaptive": request.adaptive, "config": config}
    with claimed(options, model, request.poisoned, request.clean, settings=apart) as work:
        attack = request.attack()
        poisoned, clean = request.examples()  # files are read before anything slow happens
        lm = load(model, options, report).merged()
        if attack is not None:
            poisoned, clean = contrastive_data(attack, answered_prompts(lm, report), options.seed, request.poison_rate)
        if cut := note_cut(lm, poisoned, config.max_length, report):
            report.say(f"note: {cut} of {len(poisoned)} poisoned answers are cut; --max-length makes room")
        settings = {**to_json(request), **to_json(config)}
        record = manifest(lm, {"poisoned": poisoned, "clean": clean}, settings, options.seed)
        record["attacks"] = to_json(attack.parts if attack else ())
        lm, steps = implant(lm, poisoned, clean, config, work, options.resume, report.bar)
        results = {
            "trigger": request.trigger,
            "target": request.target,
            "training": steps,
            "seconds": report.seconds,
            "manifest": record,
        }
        finished = work / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        save_model(lm.merged() if merge else lm, finished)
        write_json(finished / "results.json", results)
        write_json(finished / "manifest.json", record)
        publish(finished, options.output)
        shutil.rmtree(work, ignore_errors=True)
    return results
