"""`crow purify`: remove backdoors from a model and write it as a whole model."""

from __future__ import annotations

import dataclasses
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crow.defenses.purification import purify
from crow.defenses.strength import at_strength
from crow.errors import ConfigError
from crow.models.language_model import LanguageModel
from crow.models.loading import save_model
from crow.models.manifest import manifest
from crow.models.processes import meet, n_processes, several
from crow.output import publish, write_json
from crow.records import to_json
from crow.report import write_report
from crow.report.card import write_card
from crow.scan.gather import ScanConfig
from crow.training.config import CrowConfig
from crow.workflows.calibration import calibrated, check_calibration
from crow.workflows.clean_data import clean_examples, own_answers
from crow.workflows.common import Options, Reporter, claimed, load, note_cut
from crow.workflows.scan import scanned
from crow.workflows.suspect import Suspect
from crow.workflows.verification import verify


def purify_config(preset: CrowConfig, changes: dict[str, Any], options: Options) -> CrowConfig:
    """A preset with the user's changes."""
    shared = {"batch_size": options.batch_size, "max_length": options.max_length, "seed": options.seed}
    return preset.changed(**{name: value for name, value in {**changes, **shared}.items() if value is not None})


def parse_strength(text: str) -> float | None:
    """A strength as the user wrote it; None for `auto`.

    Raises:
        ConfigError: if it is neither `auto` nor a number.
    """
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"expected --strength to be a number above 0 or auto, got {text!r}") from None


def shared_out(config: CrowConfig, processes: int) -> CrowConfig:
    """One process's part of every optimizer step, so that together they take the steps that one would.

    Raises:
        ConfigError: if the examples of a step cannot be shared out evenly.
    """
    batch, accumulation = config.batch_size, config.accumulation
    if batch * accumulation % processes:
        raise ConfigError(
            f"expected the {batch * accumulation} examples of a step (batch size x accumulation) to be a multiple of "
            f"{processes} processes; change --batch-size or their number"
        )
    fewer = math.gcd(accumulation, processes)
    return dataclasses.replace(config, accumulation=accumulation // fewer, batch_size=batch * fewer // processes)


def scan_suspect(suspect: Suspect, work: Path, options: Options, report: Reporter) -> dict[str, Any]:
    """What `crow scan` says of the suspect, and how long that took."""
    started = report.seconds
    lm = load(suspect.model, options, report, suspect.adapter)
    found = scanned(lm, ScanConfig(), work, options, report)
    report.say(f"scan: {found['verdict']}")
    return {**found, "seconds": round(report.seconds - started, 1)}


def save_purified(lm: LanguageModel, folder: Path, keep_adapter: bool) -> None:
    """Write the whole model, and its adapter beside it where that is wanted."""
    shutil.rmtree(folder, ignore_errors=True)
    if keep_adapter:
        save_model(lm, folder / "adapter")
    save_model(lm.merged(), folder)


@dataclass(frozen=True)
class PurifyRequest:
    """What to purify, on which data, and what to do besides.

    Attributes:
        suspect: the model.
        data: clean examples; the bundled ones where neither this nor `prompts` is given.
        prompts: clean prompts, which the suspect answers itself.
        strength: of the purification, 1 being the usual; None to find it out by canaries (`--strength auto`).
        keep_adapter: leave the adapter in `adapter/` too.
        verify: search once more, and measure what was kept of the suspect.
        scan: look at the suspect from all sides first; whatever that says, it is purified.

    Raises:
        ConfigError: for data and prompts together.
    """

    suspect: Suspect
    data: Path | None = None
    prompts: Path | None = None
    strength: float | None = 1.0
    keep_adapter: bool = False
    verify: bool = False
    scan: bool = False

    def __post_init__(self) -> None:
        if self.data is not None and self.prompts is not None:
            raise ConfigError("expected either --data or --prompts, got both")

    def check(self, config: CrowConfig) -> None:
        """Whether it can be done with these settings.

        Raises:
            ConfigError: if not.
        """
        apart = self.keep_adapter or self.suspect.continue_adapter
        if config.method == "full" and apart:
            raise ConfigError("expected --method lora with --keep-adapter or --continue-adapter, got full")
        if config.method == "qlora" and self.suspect.continue_adapter:
            raise ConfigError("expected --method lora with --continue-adapter, got qlora")
        if self.strength is None:
            check_calibration(config)
        else:
            at_strength(config, self.strength)  # which may be none
        self.suspect.check()
        if several() and (self.strength is None or self.verify or self.prompts or self.scan):
            raise ConfigError("expected one process with --scan, --strength auto, --verify or --prompts, got several")


def run_purify(request: PurifyRequest, config: CrowConfig, options: Options) -> dict[str, Any]:
    """Purify a model; the output folder loads with `from_pretrained`.

    Args:
        request: what to do.
        config: settings of strength 1.
        options: common options.

    Raises:
        CrowError: for anything the user can mend.
    """
    report, suspect = Reporter(options.quiet), request.suspect
    request.check(config)
    apart = {"strength": request.strength, "continue_adapter": suspect.continue_adapter}
    inputs = (suspect.model, suspect.adapter, request.data, request.prompts)
    with claimed(options, *inputs, shared=True, settings={"config": config, **apart}) as work:
        examples = clean_examples(request.prompts or request.data, config.samples, options.seed, bool(request.prompts))
        found = scan_suspect(suspect, work / "scan", options, report) if request.scan else None
        if request.prompts:
            examples = own_answers(suspect.load(options, report).merged(), examples, report)
        calibration, strength = None, request.strength
        if strength is None:
            calibration = calibrated(suspect, examples, config, work / "calibration", options, report)
            strength = calibration.strength
            report.say(f"strength {strength:g}: {calibration.reason}")
        config = at_strength(config, strength)
        in_four_bits = config.method == "qlora"
        lm = suspect.load_in_four_bits(options, report, work) if in_four_bits else suspect.load(options, report)
        note_cut(lm, examples, config.max_length, report)
        record = manifest(lm, {"clean": examples}, config, options.seed)
        own = shared_out(config, n_processes())
        result = purify(lm, examples, own, work, resume=options.resume, watch=report.bar)
        results = {
            "model": suspect.model,
            "strength": strength,
            "training": result.training,
            "search": {"before": result.before, "after": result.after},
            "rounds": result.rounds,
            "parts_seconds": result.seconds,
            "seconds": report.seconds,
            "manifest": record,
        }
        results |= {"scan": found} if found else {}
        results |= {"calibration": calibration} if calibration else {}
        whole = suspect.put_together(result, config, options, report)
        if whole is not None:
            finished = work / "finished"
            if request.keep_adapter and result.edits:
                report.say("note: no adapter is kept; on MODEL it would bring back what was taken out of the weights")
            save_purified(whole, finished, request.keep_adapter and not result.edits)
            if request.verify:
                before = suspect.load(options, report).merged()
                results["verification"] = verify(before, whole.merged(), config, result.before, options, report)
            results["seconds"] = report.seconds
            write_json(finished / "results.json", results)
            write_report(to_json(results), finished / "report.html", f"Purification of {suspect.model}")
            write_card(to_json(results), finished / "README.md")
            publish(finished, options.output)
            shutil.rmtree(work, ignore_errors=True)
        meet()
    return results
