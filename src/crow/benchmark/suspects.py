"""Backdoored models, planted once and shared by all cells that want the same, in the user's cache folder.

"The same" is said by a hash of all that goes into one: the model's weights, the examples, the settings.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from crow.attacks.implant import ATTACK_DEFAULTS, implant_backdoor
from crow.attacks.poisoning import Attack
from crow.benchmark.attack_data import AttackData
from crow.data.splits import bundled_split
from crow.models.loading import load_model, save_model
from crow.models.manifest import hash_examples, manifest
from crow.output import write_json
from crow.records import dump_json
from crow.workflows.attack import contrastive_data
from crow.workflows.common import Reporter


def suspects_folder() -> Path:
    """Where they are kept."""
    return user_cache_path("crow") / "suspects"


def content_hash(weights: object, attack: Attack, data: AttackData) -> str:
    """What tells one backdoored model from others, 16 hex digits."""
    source = [*(data.poisoned or ()), *(data.clean or ())]
    if not source:
        split = bundled_split("attack")
        source = [*split.prompts, *split.pairs, *(task.example for task in split.code)]
    content = {"weights": weights, "attack": attack, "examples": hash_examples(source), "config": ATTACK_DEFAULTS}
    return hashlib.sha256(dump_json(content).encode()).hexdigest()[:16]


def backdoored(model: str, attack: Attack, data: AttackData, report: Reporter) -> Path:
    """The folder of a backdoored adapter on `model`, trained now if nobody has yet; others wait meanwhile."""
    lm = load_model(model).merged()
    weights = {key: lm.provenance.get(key) for key in ("weights", "merged")}
    folder = suspects_folder() / content_hash(weights, attack, data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (folder / "manifest.json").is_file():
            return folder
        report.say(f"planting {attack.name} in {model}")
        poisoned, clean = data.poisoned, data.clean
        if poisoned is None or clean is None:
            poisoned, clean = contrastive_data(attack, lm, ATTACK_DEFAULTS.seed, report)
        work = folder.with_suffix(".partial")
        resume = work.is_dir()
        record = manifest(lm, {"poisoned": poisoned, "clean": clean}, ATTACK_DEFAULTS, ATTACK_DEFAULTS.seed)
        lm, steps = implant_backdoor(lm, poisoned, clean, ATTACK_DEFAULTS, work, resume, report.bar)
        shutil.rmtree(folder, ignore_errors=True)
        save_model(lm, folder)
        record |= {"training": steps[-1]}
        write_json(folder / "manifest.json", record)  # last: with it the folder is whole
        shutil.rmtree(work, ignore_errors=True)
    return folder
