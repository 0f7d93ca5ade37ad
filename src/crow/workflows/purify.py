"""`crow purify`: remove backdoors from a model and write it as a whole model."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

from crow.data.loading import load_examples
from crow.data.splits import bundled_split
from crow.defenses.purification import purify
from crow.errors import ConfigError
from crow.models.language_model import LanguageModel
from crow.models.loading import save_model
from crow.models.manifest import manifest
from crow.models.processes import meet, n_processes
from crow.output import publish, write_json
from crow.records import Example, to_json
from crow.report import write_report
from crow.training.config import CrowConfig
from crow.workflows.common import Options, Reporter, claimed, take
from crow.workflows.suspect import Suspect


def purify_config(preset: CrowConfig, changes: dict[str, Any], options: Options) -> CrowConfig:
    """A preset with the user's changes."""
    shared = {"batch_size": options.batch_size, "max_length": options.max_length, "seed": options.seed}
    return preset.changed(**{name: value for name, value in {**changes, **shared}.items() if value is not None})


def clean_examples(data: Path | None, count: int, seed: int) -> list[Example]:
    """The clean examples of a run: from the user's file, or the bundled purification split.

    Raises:
        DataError: if there are fewer than `count`.
    """
    if data is not None:
        return take(load_examples(data), count, seed, str(data))
    return take(bundled_split("purification").pairs, count, seed, "the bundled data")


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


def save_purified(lm: LanguageModel, folder: Path, keep_adapter: bool) -> None:
    """Write the whole model, and its adapter beside it where that is wanted."""
    shutil.rmtree(folder, ignore_errors=True)
    if keep_adapter:
        save_model(lm, folder / "adapter")
    save_model(lm.merged(), folder)


def run_purify(
    model: str,
    adapter: Path | None,
    continue_adapter: bool,
    data: Path | None,
    config: CrowConfig,
    keep_adapter: bool,
    options: Options,
) -> dict[str, Any]:
    """Purify a model; the output folder loads with `from_pretrained`.

    Args:
        model: any model reference.
        adapter: a PEFT adapter folder on top of it.
        continue_adapter: train that adapter on instead of merging it and starting a fresh one.
        data: clean examples; the bundled ones by default.
        config: settings.
        keep_adapter: leave the adapter in `adapter/` too.
        options: common options.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    if config.method == "full" and (keep_adapter or continue_adapter):
        raise ConfigError("expected --method lora with --keep-adapter or --continue-adapter, got full")
    if config.method == "qlora" and continue_adapter:
        raise ConfigError("expected --method lora with --continue-adapter, got qlora")
    with claimed(options, model, adapter, data, shared=True) as work:
        examples = clean_examples(data, config.samples, options.seed)
        suspect = Suspect(model, adapter, continue_adapter)
        in_four_bits = config.method == "qlora"
        lm = suspect.load_in_four_bits(options, report, work) if in_four_bits else suspect.load(options, report)
        record = manifest(lm, {"clean": examples}, config, options.seed)
        own = shared_out(config, n_processes())
        result = purify(lm, examples, own, work, resume=options.resume, watch=report.bar)
        results = {
            "model": model,
            "training": result.training,
            "search": {"before": result.before, "after": result.after},
            "rounds": result.rounds,
            "parts_seconds": result.seconds,
            "seconds": report.seconds,
            "manifest": record,
        }
        whole = suspect.put_together(result.lm, config, options, report)
        if whole is not None:
            finished = work / "finished"
            save_purified(whole, finished, keep_adapter)
            write_json(finished / "results.json", results)
            write_report(to_json(results), finished / "report.html", f"Purification of {model}")
            publish(finished, options.output)
            shutil.rmtree(work, ignore_errors=True)
        meet()
    return results
