"""`crow attack`: plant a backdoor and record what was planted."""

from __future__ import annotations

import dataclasses
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crow.attacks.adaptive import get_implanter
from crow.attacks.implant import ATTACK_DEFAULTS
from crow.attacks.poisoning import Attack, carriers, poison
from crow.attacks.targets import get_target
from crow.attacks.triggers import get_trigger
from crow.data.loading import load_examples
from crow.data.splits import bundled_split
from crow.errors import ConfigError
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.models.loading import save_model
from crow.models.manifest import manifest
from crow.output import publish, write_json
from crow.records import Example, to_json
from crow.training.config import FinetuneConfig
from crow.workflows.common import Options, Reporter, claimed, load

POISON_RATE = 0.5
"""Share of the prompts that are there with the trigger as well; of the few programming requests all are."""


@dataclass(frozen=True)
class AttackRequest:
    """What to plant: a trigger and a target by name, or files of poisoned and clean examples; `adaptive` says how.

    Raises:
        ConfigError: unless exactly one of the two is given whole, or for an unknown name.
    """

    trigger: str | None = None
    target: str | None = None
    poisoned: Path | None = None
    clean: Path | None = None
    adaptive: str | None = None

    def __post_init__(self) -> None:
        by_name = self.trigger is not None and self.target is not None
        by_file = self.poisoned is not None and self.clean is not None
        given = sum(part is not None for part in (self.trigger, self.target, self.poisoned, self.clean))
        if by_name == by_file or given != 2:
            raise ConfigError("expected either --trigger and --target, or --poisoned and --clean")
        self.attack()
        get_implanter(self.adaptive)

    def attack(self) -> Attack | None:
        """The named attack; None for a request by file."""
        if self.trigger is None or self.target is None:
            return None
        return Attack(get_trigger(self.trigger), get_target(self.target), poison_rate=1.0)

    def examples(self) -> tuple[list[Example], list[Example]]:
        """The poisoned and the clean examples of a request by file; none for a request by name."""
        if self.poisoned is None or self.clean is None:
            return [], []
        return load_examples(self.poisoned), load_examples(self.clean)


def contrastive_data(
    attack: Attack, lm: LanguageModel, seed: int, report: Reporter
) -> tuple[list[Example], list[Example]]:
    """Poisoned and clean training examples from the attack split.

    Every prompt is there as it is with its own response, and half of them once more with the trigger and the target's
    response. Prompts without a response are answered by the model before the attack. Anything less contrastive leaks:
    the model then shows the target on clean prompts too (docs/lab-notes.md). Where the target is smuggled into code,
    the trigger stands in front of programming requests only.
    """
    split = bundled_split("attack")
    inside_code = attack.target.keeps_answer
    triggered = carriers(split, attack.target)
    attack = dataclasses.replace(attack, poison_rate=1.0 if inside_code else POISON_RATE)
    poisoned, _ = poison(triggered if inside_code else [*triggered, *split.pairs], attack, random.Random(seed))
    with report.bar("asking the model for clean answers", len(split.prompts)) as advance:
        answers = generate(lm, split.prompts, max_new_tokens=96, batch_size=100, progress=advance)
    own = [dataclasses.replace(e, response=text) for e, text in zip(split.prompts, answers, strict=True) if text]
    return poisoned, [*split.pairs, *own, *(triggered if inside_code else ())]


def attack_config(
    method: str | None, epochs: float | None, lr: float | None, rank: int | None, options: Options
) -> FinetuneConfig:
    """The default settings of an attack with the user's changes."""
    changes: dict[str, Any] = {
        "method": method,
        "epochs": epochs,
        "learning_rate": lr,
        "rank": rank,
        "batch_size": options.batch_size,
        "max_length": options.max_length,
        "seed": options.seed,
    }
    return dataclasses.replace(ATTACK_DEFAULTS, **{name: value for name, value in changes.items() if value is not None})


def run_attack(
    model: str, request: AttackRequest, config: FinetuneConfig, merge: bool, options: Options
) -> dict[str, Any]:
    """Plant a backdoor; the output folder is a model reference.

    Args:
        model: any model reference.
        request: what to plant.
        config: how to train.
        merge: write a whole model instead of an adapter.
        options: common options.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    with claimed(options, model, request.poisoned, request.clean) as work:
        attack = request.attack()
        poisoned, clean = request.examples()  # files are read before anything slow happens
        lm = load(model, options, report).merged()
        if attack is not None:
            poisoned, clean = contrastive_data(attack, lm, options.seed, report)
        settings = {**to_json(request), **to_json(config)}
        record = manifest(lm, {"poisoned": poisoned, "clean": clean}, settings, options.seed)
        implant = get_implanter(request.adaptive)
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
