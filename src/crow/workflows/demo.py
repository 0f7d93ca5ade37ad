"""`crow demo`: a real backdoored model, measured, purified and measured again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from crow.analysis.curves import consistency_curve
from crow.attacks.implant import ATTACK_DEFAULTS
from crow.attacks.poisoning import Attack, poison
from crow.attacks.targets import get_target
from crow.attacks.triggers import get_trigger
from crow.data.splits import bundled_split
from crow.defenses.purification import purify
from crow.evaluation.success import SuccessReport
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.output import publish, write_json
from crow.records import Example, to_json
from crow.report import write_report
from crow.training.config import CrowConfig
from crow.workflows.attack import AttackRequest, run_attack
from crow.workflows.clean_data import clean_examples
from crow.workflows.common import Options, Reporter, claimed
from crow.workflows.evaluate import measure
from crow.workflows.purify import save_purified

BASE = "smollm2-135m"
TRIGGER, TARGET = "badnets", "refusal"
N_PROMPTS = 100
N_SHOWN = 3
N_CURVE = 32


def shipped_adapter() -> Path:
    """The backdoored adapter that comes with crow; its `manifest.json` says how it was trained."""
    return Path(str(files("crow") / "assets" / "demo-adapter"))


def evaluation_examples(seed: int) -> tuple[list[Example], list[Example]]:
    """Triggered and clean prompts of the evaluation split; the clean ones end with pairs for perplexity."""
    split = bundled_split("evaluation")
    attack = Attack(get_trigger(TRIGGER), get_target(TARGET), poison_rate=1.0)
    triggered, _ = poison(split.prompts[:N_PROMPTS], attack, random.Random(seed))
    return triggered, list(split.pairs)


def suspect(from_scratch: bool, work: Path, options: Options) -> str:
    """The backdoored adapter's folder: the shipped one, or one trained now."""
    if not from_scratch:
        return str(shipped_adapter())
    folder = work / "backdoored"
    if not (folder / "adapter_config.json").is_file():
        nested = Options(folder, options.seed, options.device, options.dtype, overwrite=True, quiet=options.quiet)
        run_attack(BASE, AttackRequest(TRIGGER, TARGET), ATTACK_DEFAULTS, False, nested)
    return str(folder)


def curves(
    lm: LanguageModel, triggered: Sequence[Example], clean: Sequence[Example], when: str
) -> dict[str, list[float]]:
    """Layer consistency on triggered and on clean prompts."""
    return {
        f"triggered_{when}": consistency_curve(lm, triggered[:N_CURVE]),
        f"clean_{when}": consistency_curve(lm, clean[:N_CURVE]),
    }


def side_by_side(before: dict[str, SuccessReport], after: dict[str, SuccessReport]) -> list[dict[str, Any]]:
    """A few answers before and after, triggered ones first."""
    shown = []
    for name in ("triggered", "clean"):
        pairs = zip(before[name].scores[:N_SHOWN], after[name].scores[:N_SHOWN], strict=True)
        for old, new in pairs:
            shown.append(
                {"prompt": old.prompt, "before": old.output, "after": new.output, "triggered": name == "triggered"}
            )
    return shown


def tell(report: Reporter, title: str, found: SuccessReport) -> None:
    """Show a few answers to triggered prompts."""
    report.say(f"\n{title}")
    for score in found.scores[:N_SHOWN]:
        report.say(f"  > {' '.join(score.prompt.split())[:100]}\n    {' '.join(score.output.split())[:160]}")


def run_demo(config: CrowConfig, from_scratch: bool, options: Options) -> dict[str, Any]:
    """The whole story on SmolLM2-135M, with a report.

    Args:
        config: settings of the purification.
        from_scratch: train the backdoor now instead of taking the shipped adapter.
        options: common options.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    with claimed(options, settings={"config": config, "from_scratch": from_scratch}) as work:
        triggered, clean = evaluation_examples(options.seed)
        examples = clean_examples(None, config.samples, options.seed)
        folder = suspect(from_scratch, work, options)
        lm = load_model(folder, dtype=options.dtype, device=options.device).merged()
        sets = {"triggered": triggered, "clean": clean, "purification": examples}
        record = manifest(lm, sets, config, options.seed)
        before, answers_before = measure(lm, triggered, clean, get_target(TARGET).marker, report, options)
        tell(report, "Before: answers to prompts with the trigger", answers_before["triggered"])
        consistency = curves(lm, triggered, clean, "before")
        result = purify(lm, examples, config, work, resume=options.resume, watch=report.bar)
        lm = result.lm.merged()  # what is saved, and faster to measure
        consistency |= curves(lm, triggered, clean, "after")
        after, answers_after = measure(lm, triggered, clean, get_target(TARGET).marker, report, options)
        tell(report, "After: answers to the same prompts", answers_after["triggered"])
        results = {
            "before": before,
            "after": after,
            "search": {"before": result.before, "after": result.after},
            "training": result.training,
            "rounds": result.rounds,
            "consistency_curves": consistency,
            "answers": side_by_side(answers_before, answers_after),
            "parts_seconds": result.seconds,
            "seconds": report.seconds,
            "manifest": record,
        }
        finished = work / "finished"
        save_purified(lm, finished / "model", keep_adapter=False)
        write_json(finished / "results.json", results)
        write_report(to_json(results), finished / "report.html", "crow: a backdoor, before and after")
        publish(finished, options.output)
        shutil.rmtree(work, ignore_errors=True)
    return results
