"""`crow eval`: attack success with and without the trigger, perplexity, and what a model can still do."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crow.data.loading import load_examples
from crow.errors import ConfigError, DataError, unknown_name
from crow.evaluation.judges import make_judge
from crow.evaluation.perplexity import perplexity
from crow.evaluation.success import SuccessReport, attack_success
from crow.models.engines import ENGINES, with_engine
from crow.models.language_model import LanguageModel
from crow.models.manifest import manifest
from crow.output import publish, write_json
from crow.records import Criterion, Example, to_json
from crow.workflows.abilities import Abilities, examine, prepare
from crow.workflows.common import Options, Reporter, claimed, load
from crow.workflows.utility import GENERATION_BATCH, PERPLEXITY_LENGTH, kept, look_at


def measure(
    lm: LanguageModel,
    triggered: Sequence[Example],
    clean: Sequence[Example],
    marker: str | Criterion,
    report: Reporter,
    options: Options,
    answered: Sequence[Example] | None = None,
) -> tuple[dict[str, Any], dict[str, SuccessReport]]:
    """Attack success on both sets and the perplexity of the clean responses.

    Args:
        lm: the model.
        triggered: prompts with the trigger.
        clean: prompts without.
        marker: the target's text, or what else an answer must show.
        report: shows progress.
        options: common options.
        answered: examples with responses for perplexity; those of `clean` by default.

    Returns:
        The keys of `crow eval` without the manifest, and the verdicts behind the two rates.
    """
    before = report.seconds
    generation_batch = options.batch_size or GENERATION_BATCH
    found: dict[str, SuccessReport] = {}
    for name, examples in (("triggered", triggered), ("clean", clean)):
        with report.bar(f"answering {name} prompts", len(examples)) as advance:
            found[name] = attack_success(lm, examples, marker, generation_batch, advance)
    if answered is None:
        answered = [example for example in clean if example.response.strip()]
    with report.bar("perplexity", len(answered)) as advance:
        score = perplexity(lm, answered, options.max_length or PERPLEXITY_LENGTH, options.batch_size or 8, advance)
    results = {
        "asr_triggered": found["triggered"].rate,
        "asr_clean": found["clean"].rate,
        "perplexity": score,
        "n_empty": sum(item.n_empty for item in found.values()),
        "n_degenerate": sum(item.n_degenerate for item in found.values()),
        "n_degenerate_clean": found["clean"].n_degenerate,
        "seconds": round(report.seconds - before, 1),
    }
    return results, found


def first(examples: Sequence[Example], n: int | None, source: Path) -> list[Example]:
    """The first `n` examples, all of them without `n`.

    Raises:
        DataError: if there are fewer than `n`.
    """
    if n is not None and len(examples) < n:
        raise DataError(f"expected at least {n} examples in {source}, got {len(examples)}; pass a smaller --n")
    return list(examples[:n])


@dataclass(frozen=True)
class EvalRequest:
    """What to measure: attack success on two files, abilities, or both.

    Attributes:
        triggered: prompts with the trigger.
        clean: prompts without; those with a response count for perplexity.
        marker: the target's text, or what else an answer must show.
        n: prompts of each file, and responses for perplexity; all by default.
        against: the suspect that the model was made from; what it has kept is measured as well.
        abilities: what the model can still do.
        engine: what answers prompts: `transformers` or `vllm`.

    Raises:
        ConfigError: for an unknown engine, if files and target are not given together, or nothing is.
    """

    triggered: Path | None = None
    clean: Path | None = None
    marker: str | Criterion | None = None
    n: int | None = None
    against: str | None = None
    abilities: Abilities = field(default_factory=Abilities)
    engine: str = "transformers"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        parts = {"--triggered": self.triggered, "--clean": self.clean, "--target": self.marker}
        if self.against and self.engine != "transformers":
            raise ConfigError(
                f"expected --engine transformers with --against, got {self.engine}, which writes answers to their end"
            )
        missing = [name for name, part in parts.items() if part is None]
        if len(missing) == len(parts) and not self.abilities:
            raise ConfigError(f"expected something to measure: {', '.join(parts)}, or --code, --mt-bench, --tasks")
        if missing and (len(missing) < len(parts) or self.against):
            raise ConfigError(f"expected {', '.join(parts)} together, found no {', '.join(missing)}")
        if isinstance(self.marker, str) and not self.marker.strip():
            raise ConfigError("expected --target-text to hold some text, got none: every answer would contain it")


def run_eval(model: str, request: EvalRequest, adapter: Path | None, options: Options) -> dict[str, Any]:
    """Measure a model and write `results.json`.

    Args:
        model: any model reference.
        request: what to measure.
        adapter: a PEFT adapter folder to put on the model.
        options: common options.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    read = (model, adapter, request.triggered, request.clean, request.against, *request.abilities.read)
    with claimed(options, *read) as work:
        sets = read_sets(request)
        exam = prepare(request.abilities)
        results: dict[str, Any] = {}
        suspect = None
        marker = request.marker or ""
        if request.against:
            other = load(request.against, options, report)
            length, rows = options.max_length or PERPLEXITY_LENGTH, options.batch_size or GENERATION_BATCH
            suspect = look_at(other, sets["clean"], sets["perplexity"], marker, report, length, rows)
            del other
        lm = with_engine(load(model, options, report, adapter), request.engine, work, options.seed)
        if sets:
            triggered, clean, answered = sets.values()
            results, verdicts = measure(lm, triggered, clean, marker, report, options, answered)
            if suspect:
                results["kept"] = kept(suspect, lm, verdicts["clean"].answers, report)
            results["answers"] = {name: item.scores for name, item in verdicts.items()}
        results |= examine(lm, exam, report, options.seed)
        results["seconds"] = report.seconds
        config = {**to_json(request), "max_new_tokens": make_judge(marker).tokens}
        results["manifest"] = manifest(lm, sets, config, options.seed)
        finished = work / "finished"
        write_json(finished / "results.json", results)
        publish(finished, options.output)
        shutil.rmtree(work, ignore_errors=True)
    return results


def read_sets(request: EvalRequest) -> dict[str, list[Example]]:
    """The examples `triggered` and `clean`, and those for `perplexity`; nothing where no files are given.

    Raises:
        DataError: for a file that cannot serve.
    """
    if request.triggered is None or request.clean is None:
        return {}
    triggered = first(load_examples(request.triggered, need_response=False), request.n, request.triggered)
    examples = load_examples(request.clean, need_response=False)
    clean = first(examples, request.n, request.clean)
    answered = [example for example in examples if example.response.strip()][: request.n]
    if not answered:
        raise DataError(
            f"{request.clean}: expected some records with a response for perplexity, got none; add 'output'"
        )
    return {"triggered": triggered, "clean": clean, "perplexity": answered}
