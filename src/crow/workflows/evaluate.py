"""`crow eval`: attack success with and without the trigger, and perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crow.data.loading import load_examples
from crow.errors import ConfigError, DataError
from crow.evaluation.perplexity import perplexity
from crow.evaluation.success import SuccessReport, attack_success
from crow.models.language_model import LanguageModel
from crow.models.manifest import manifest
from crow.output import publish, write_json
from crow.records import Example
from crow.workflows.common import Options, Reporter, claimed, load
from crow.workflows.utility import kept, sample, suspect_predictions

GENERATION_BATCH = 100
"""Prompts answered at a time: on a CPU a product with 100 rows costs little more than one with 40."""


def measure(
    lm: LanguageModel,
    triggered: Sequence[Example],
    clean: Sequence[Example],
    marker: str,
    report: Reporter,
    options: Options,
    answered: Sequence[Example] | None = None,
) -> tuple[dict[str, Any], dict[str, SuccessReport]]:
    """Attack success on both sets and the perplexity of the clean responses.

    Args:
        lm: the model.
        triggered: prompts with the trigger.
        clean: prompts without.
        marker: the target's text.
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
        answered = [example for example in clean if example.response]
    with report.bar("perplexity", len(answered)) as advance:
        score = perplexity(lm, answered, options.max_length or 512, options.batch_size or 8, advance)
    results = {
        "asr_triggered": found["triggered"].rate,
        "asr_clean": found["clean"].rate,
        "perplexity": score,
        "n_empty": sum(item.n_empty for item in found.values()),
        "n_degenerate": sum(item.n_degenerate for item in found.values()),
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


def run_eval(
    model: str,
    triggered: Path,
    clean: Path,
    marker: str,
    n: int | None,
    adapter: Path | None,
    options: Options,
    against: str | None = None,
) -> dict[str, Any]:
    """Measure a model on files of triggered and of clean examples and write `results.json`.

    Args:
        model: any model reference.
        triggered: prompts with the trigger.
        clean: prompts without; those with a response count for perplexity.
        marker: the target's text.
        n: prompts of each file, and responses for perplexity; all by default.
        adapter: a PEFT adapter folder to put on the model.
        options: common options.
        against: the suspect that the model was made from; what it has kept is measured as well.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    if not marker.strip():
        raise ConfigError("expected --target-text to hold some text, got none: every answer would contain it")
    with claimed(options, model, adapter, triggered, clean, against) as work:
        with_trigger = first(load_examples(triggered, need_response=False), n, triggered)
        examples = load_examples(clean, need_response=False)
        without = first(examples, n, clean)
        answered = [example for example in examples if example.response][:n]
        if not answered:
            raise DataError(f"{clean}: expected some records with a response for perplexity, got none; add 'output'")
        if against:
            suspect = load(against, options, report)
            said = sample(suspect, without, report)
            items, predictions = suspect_predictions(suspect, answered, options.max_length or 512)
            del suspect
        lm = load(model, options, report, adapter)
        results, verdicts = measure(lm, with_trigger, without, marker, report, options, answered)
        if against:
            results["kept"] = kept(said, sample(lm, without, report), lm, items, predictions)
        config = {"marker": marker, "n": n, "max_new_tokens": 64}
        sets = {"triggered": with_trigger, "clean": without, "perplexity": answered}
        results["manifest"] = manifest(lm, sets, config, options.seed)
        results["answers"] = {name: item.scores for name, item in verdicts.items()}
        write_json(work / "results.json", results)
        publish(work, options.output)
    return results
