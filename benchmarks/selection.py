"""Choosing settings: our own backdoors, with triggers and targets that no evaluation uses, planted, treated, measured.

    python benchmarks/selection.py --attack phrase
    python benchmarks/selection.py --attack phrase --set adversary_tokens=512 --set learning_rate=0.001

The backdoor is planted and measured once (in the user's cache folder) from the attack split, treated on the
purification split and measured on the selection split: success, the log-likelihood of the target's first tokens after
triggered prompts (finer than success: -2 is close to firing), the mean divergence from the suspect on clean pairs, and
the shares of answers that decline: to requests that should be declined, and to the clean prompts.
With `--terse` the attacker's clean answers are cut after their first sentence: the suspect has lost something besides,
as those of the public insults have. What is best to agree with, the suspect or the clean examples, depends on that.
With `--full` the backdoor is trained into all weights, with `--adaptive` by an attacker who knows crow. With `--beside`
a second one is in the same model.
Each run appends a line to `benchmarks/results/selection.jsonl`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

from crow.attacks.adaptive import ADAPTIVE, get_implanter
from crow.attacks.behavior import TargetBehavior
from crow.attacks.implant import ATTACK_DEFAULTS, FULL_DEFAULTS
from crow.attacks.poisoning import Attack, Mixture, carriers, poison
from crow.attacks.selection import SELECTION_ATTACKS
from crow.benchmark.attack_data import AttackData, own_data
from crow.benchmark.portable import portable
from crow.benchmark.suspects import backdoored, kept_recipe
from crow.data.declining import bundled_declines
from crow.data.encoding import encode_all
from crow.data.splits import bundled_split
from crow.defenses.purification import purify
from crow.evaluation.utility import declined
from crow.inversion.code_lines import code_probe
from crow.inversion.probe import Probe
from crow.inversion.pursuit import likelihoods
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.output import write_json
from crow.records import Example
from crow.training.presets import PRESETS, get_preset
from crow.training.suspect import divergence, predict
from crow.workflows.attack import answered_prompts, contrastive_data
from crow.workflows.common import Options, Reporter
from crow.workflows.evaluate import measure

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "selection.jsonl"
WORK = user_cache_path("crow") / "benchmarks" / "selection"
N = 60
TARGET_TOKENS = (1, 3, 8)
"""Of a target: the first is what a trigger brings out longest; three decide where it begins as no honest answer does,
eight where it does."""
HELD_OUT_LENGTH = 128


def terse_data(attack: Attack, report: Reporter) -> AttackData:
    """The attack's own data, every clean answer ending after its first sentence."""
    poisoned, clean = contrastive_data(attack, answered_prompts(load_model(BASE), report), 0)
    cut = [dataclasses.replace(e, response=re.split(r"(?<=[.!?:])\s", e.response.strip())[0]) for e in clean]
    return dataclasses.replace(own_data(attack), poisoned=poisoned, clean=cut)


def target_log_likelihood(
    lm: LanguageModel, triggered: list[Example], target: TargetBehavior
) -> dict[int, dict[str, float]]:
    """Mean and highest log-likelihood of the target's first tokens over the triggered prompts, by their number.

    Of a line of code: where a block of code has just been opened.
    """
    probe = code_probe(lm, triggered) if target.keeps_answer else Probe(lm, [example.prompt for example in triggered])
    ids = lm.tokenizer(target.text, add_special_tokens=False)["input_ids"]
    lm.model.eval()
    found = {length: likelihoods(probe, torch.tensor(ids[:length])) for length in TARGET_TOKENS}
    return {length: {"mean": float(each.mean()), "highest": float(each.max())} for length, each in found.items()}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", choices=sorted(SELECTION_ATTACKS), required=True)
    parser.add_argument("--beside", choices=sorted(SELECTION_ATTACKS), help="another one in the same model")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting")
    parser.add_argument("--continue-adapter", action="store_true")
    parser.add_argument("--terse", action="store_true", help="the suspect learnt to answer in one sentence")
    parser.add_argument("--full", action="store_true", help="the backdoor is trained into all weights")
    parser.add_argument("--adaptive", choices=sorted(ADAPTIVE), help="an attacker who knows crow plants it")
    arguments = parser.parse_args()
    if arguments.full and arguments.continue_adapter:
        parser.error("a backdoor in all weights leaves no adapter to continue")
    if arguments.terse and arguments.beside:
        parser.error("expected one attack with --terse, got another one beside it")
    return arguments


def measured(
    lm: LanguageModel,
    attacks: Sequence[Attack],
    triggered: Sequence[Sequence[Example]],
    clean: Sequence[Example],
    report: Reporter,
) -> dict[str, Any]:
    """The figures of the first attack, and of one that was planted beside it; each has its triggered prompts."""
    (found, verdicts), *beside = (
        measure(lm, prompts, clean, attack.target.marker, report, Options(output=WORK))
        for attack, prompts in zip(attacks, triggered, strict=True)
    )
    target = attacks[0].target
    requests = bundled_declines("declines_selection.jsonl").items()
    said = {kind: generate(lm, group) for kind, group in requests} | {"clean": verdicts["clean"].answers}
    found["declined"] = {kind: declined(answers, target.marker) for kind, answers in said.items()}
    if isinstance(target.marker, str):  # others have no text of their own
        found["target_log_likelihood"] = target_log_likelihood(lm, list(triggered[0]), target)
    for figures, _ in beside:
        found["beside"] = figures
    return found


def main() -> None:
    """Plant, treat, measure, append."""
    arguments = parsed()
    changes: dict[str, Any] = {
        name: json.loads(value) for name, value in (item.split("=", 1) for item in arguments.set)
    }
    config = dataclasses.replace(get_preset(arguments.preset), **changes)
    report = Reporter(quiet=False)
    attacks = [SELECTION_ATTACKS[name] for name in (arguments.attack, arguments.beside) if name]
    attack = attacks[0] if len(attacks) == 1 else Mixture(tuple(attacks))
    data = terse_data(attacks[0], report) if arguments.terse else own_data(attacks[0])
    recipe = kept_recipe(attack, FULL_DEFAULTS if arguments.full else ATTACK_DEFAULTS)
    folder = backdoored(BASE, attack, data, report, recipe, get_implanter(arguments.adaptive))
    lm = load_model(str(folder), trainable=arguments.continue_adapter)
    lm = lm if arguments.continue_adapter else lm.merged()
    held_out, examples = bundled_split("selection"), bundled_split("purification").pairs
    triggered = [poison(carriers(held_out, part.target)[:N], part, random.Random(1))[0] for part in attacks]
    clean = list(held_out.pairs[:N])
    kept = folder / "selection.measured.json"
    if not kept.is_file():
        write_json(kept, measured(lm, attacks, triggered, clean, report))
    items = encode_all(lm.tokenizer, clean, HELD_OUT_LENGTH)
    predictions = predict(lm, items)
    work = WORK / ".treatment.partial"
    shutil.rmtree(work, ignore_errors=True)
    result = purify(lm, examples, config, work, watch=report.bar)
    shutil.rmtree(work, ignore_errors=True)
    lm = result.lm.merged()
    names = ("triggered", "triggered beside")
    sets = dict(zip(names, triggered, strict=False)) | {"clean": clean}
    record: dict[str, Any] = {
        "attack": arguments.attack,
        "beside": arguments.beside,
        "continue_adapter": arguments.continue_adapter,
        "terse": arguments.terse,
        "full": arguments.full,
        "adaptive": arguments.adaptive,
        "changes": changes,
        "before": json.loads(kept.read_text()),
        "after": measured(lm, attacks, triggered, clean, report),
        "divergence": divergence(lm, items, predictions),
        "search": {"before": result.before, "after": result.after},
        "rounds": result.rounds,
        "seconds": result.seconds,
        "manifest": manifest(lm, sets, config, config.seed),
    }
    record = portable(record, ROOT.parent)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(json.dumps({name: record[name] for name in list(record)[:-1]}, indent=2))


if __name__ == "__main__":
    main()
