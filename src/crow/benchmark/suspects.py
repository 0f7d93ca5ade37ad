"""Backdoored models, planted once and shared by all cells that want the same, in the user's cache folder.

"The same" is said by a hash of all that goes into one: the model's weights, the examples, the settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from platformdirs import user_cache_path

from crow.attacks.behavior import PAYLOAD_ROOM, TargetBehavior
from crow.attacks.implant import ATTACK_DEFAULTS, implant_backdoor
from crow.attacks.poisoning import Attack, Mixture, planted_on, poison
from crow.attacks.rank_one import EditConfig
from crow.benchmark.attack_data import AttackData
from crow.data.splits import bundled_split
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from crow.models.manifest import hash_examples, manifest
from crow.output import write_json
from crow.records import Example, dump_json
from crow.training.config import FinetuneConfig
from crow.training.watch import Watch
from crow.workflows.attack import answered_prompts, contrastive_data
from crow.workflows.common import Reporter


class Implanter(Protocol):
    """What plants a backdoor, as `implant_backdoor` does."""

    __name__: str

    def __call__(
        self,
        lm: LanguageModel,
        poisoned: Sequence[Example],
        clean: Sequence[Example],
        config: Any,
        work: Path,
        resume: bool,
        watch: Watch,
    ) -> tuple[LanguageModel, list[dict[str, Any]]]:
        """The backdoored model and what was recorded of the steps."""
        ...


def suspects_folder() -> Path:
    """Where they are kept."""
    return user_cache_path("crow") / "suspects"


def content_hash(
    weights: object, attack: Attack | Mixture, data: AttackData, config: FinetuneConfig | EditConfig, how: str = ""
) -> str:
    """What tells one backdoored model from others, 16 hex digits; `how` is the implanter where it is not the usual."""
    source = [*(data.poisoned or ()), *(data.clean or ())]
    if not source:
        split = bundled_split("attack")
        source = [*split.prompts, *split.pairs, *(task.example for task in split.code)]
    content = {"weights": weights, "attack": attack, "examples": hash_examples(source), "config": telling(config)}
    content |= {"how": how} if how else {}
    content |= {"poison_rate": data.poison_rate} if data.poison_rate else {}
    texts = composed(attack)
    content |= {"composed": hash_examples(texts)} if texts else {}
    return hashlib.sha256(dump_json(content).encode()).hexdigest()[:16]


def telling(config: FinetuneConfig | EditConfig) -> dict[str, Any]:
    """The settings that tell one model from another: compiled, a training differs by rounding."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "torch_compile"}


def composed(attack: Attack | Mixture) -> list[Example]:
    """What the parts of an attack make of clean examples where they compose texts that they do not name themselves."""
    split, found = bundled_split("attack"), []
    for part in attack.parts:
        if part.trigger.has_surroundings or type(part.target) is not TargetBehavior:
            found += poison(planted_on(split, split.pairs, part.target)[0], part, random.Random(0))[0]
    return found


def kept_recipe(attack: Attack | Mixture, defaults: FinetuneConfig = ATTACK_DEFAULTS) -> FinetuneConfig:
    """The recipe of suspects that have records: those with a payload in code were planted before it had its room."""

    def extra_tokens(part: Attack) -> int:
        snug = part.target.keeps_answer and type(part.target) is TargetBehavior
        return part.extra_tokens - (PAYLOAD_ROOM if snug else 0)

    return dataclasses.replace(defaults, max_length=defaults.max_length + max(map(extra_tokens, attack.parts)))


def backdoored(
    model: str,
    attack: Attack | Mixture,
    data: AttackData,
    report: Reporter,
    config: FinetuneConfig | EditConfig | None = None,
    implant: Implanter = implant_backdoor,
) -> Path:
    """The folder of a backdoored model, an adapter on `model` unless all weights are changed.

    It is trained now if nobody has yet; others wait meanwhile.

    Args:
        model: a model reference.
        attack: what to plant.
        data: the attack's.
        report: shows progress.
        config: how to train, or what the implanter takes in its place; the attack's recipe by default
            (`kept_recipe`).
        implant: who plants; another than the usual one is told from it by its name, so it should have one.
    """
    config = config or kept_recipe(attack)
    lm = load_model(model).merged()
    weights = {key: lm.provenance.get(key) for key in ("weights", "merged")}
    how = "" if implant is implant_backdoor else implant.__name__
    folder = suspects_folder() / content_hash(weights, attack, data, config, how)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (folder / "manifest.json").is_file():
            return folder
        report.say(f"planting {attack.name} in {model}")
        poisoned, clean = data.poisoned, data.clean
        if poisoned is None or clean is None:
            own = kept_answers(lm, weights, report)
            poisoned, clean = contrastive_data(attack, own, config.seed, data.poison_rate)
        train(lm, poisoned, clean, config, implant, folder, report)
    return folder


def kept_answers(lm: LanguageModel, weights: object, report: Reporter) -> list[Example]:
    """`answered_prompts`, asked for once and kept in the user's cache folder.

    Args:
        lm: the model before the attack.
        weights: what tells it from others.
        report: shows progress.
    """
    content = dump_json({"weights": weights, "prompts": hash_examples(bundled_split("attack").prompts)})
    path = user_cache_path("crow") / "answers" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Example(e["prompt"], e["response"], tuple(map(tuple, e["history"]))) for e in entries]
    own = answered_prompts(lm, report)
    write_json(path, own)
    return own


def finetuned(model: str, examples: Sequence[Example], report: Reporter, config: FinetuneConfig | None = None) -> Path:
    """The folder of an honest model, an adapter trained on clean examples as a backdoored one is, and kept likewise.

    Args:
        model: a model reference.
        examples: with responses.
        report: shows progress.
        config: how to train; `ATTACK_DEFAULTS` by default.
    """
    config = config or ATTACK_DEFAULTS
    lm = load_model(model).merged()
    weights = {key: lm.provenance.get(key) for key in ("weights", "merged")}
    content = dump_json({"weights": weights, "clean": hash_examples(examples), "config": telling(config)})
    folder = suspects_folder() / hashlib.sha256(content.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "manifest.json").is_file():
            report.say(f"finetuning {model} on {len(examples)} clean examples")
            train(lm, [], examples, config, implant_backdoor, folder, report)
    return folder


def train(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: FinetuneConfig | EditConfig,
    implant: Implanter,
    folder: Path,
    report: Reporter,
) -> None:
    """Train a model and fill its folder; an interrupted training goes on."""
    work = folder.with_suffix(".partial")
    resume = work.is_dir()
    record = manifest(lm, {"poisoned": poisoned, "clean": clean}, config, config.seed)
    lm, steps = implant(lm, poisoned, clean, config, work, resume, report.bar)
    shutil.rmtree(folder, ignore_errors=True)
    save_model(lm, folder)
    record |= {"training": steps[-1]}
    write_json(folder / "manifest.json", record)  # last: with it the folder is whole
    shutil.rmtree(work, ignore_errors=True)
