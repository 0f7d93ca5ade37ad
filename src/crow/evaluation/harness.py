"""Tasks of the lm-evaluation-harness (EleutherAI; extra `crow-llm[eval]`), run on a model that is already loaded."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crow.errors import ConfigError, DataError, unknown_name
from crow.inversion.latent import evaluating
from crow.models.language_model import LanguageModel


def find_tasks(names: Sequence[str], folder: Path | None = None) -> Any:
    """The harness's task manager, once every name is known to it.

    Args:
        names: of tasks, groups or tags.
        folder: of further tasks, as the harness's YAML files; they go before its own.

    Raises:
        ConfigError: without the harness, or for an unknown name, with the closest known one.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415 an extra
    except ImportError:
        raise ConfigError("expected lm-evaluation-harness, found none; pip install 'crow-llm[eval]'") from None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"expected a folder of tasks, got {folder}")
    if folder is not None:
        manager = TaskManager(include_path=folder, include_defaults=False)
        if set(names) <= set(manager.all_subtasks):
            return manager  # to read the harness's own thousands takes ten seconds
    manager = TaskManager(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            raise unknown_name("task", name, manager.all_tasks)
    return manager


def run_tasks(
    lm: LanguageModel, names: Sequence[str], manager: Any, limit: int | None = None, batch_size: int = 8, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Task to metric to `{value, stderr}`, and `n`, the number of its documents.

    Args:
        lm: the model.
        names: of the tasks.
        manager: from `find_tasks`.
        limit: documents of each task; all by default.
        batch_size: sequences in one forward pass.
        seed: of few-shot examples and bootstraps.

    Raises:
        DataError: if a task's data cannot be had.
    """
    import lm_eval  # noqa: PLC0415 an extra
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    evaluate: Any = lm_eval.simple_evaluate  # typed through a decorator that hides its parameters
    try:
        with evaluating(lm.model):  # the harness leaves a model so
            harness = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size)  # type: ignore[arg-type]
            found = evaluate(harness, tasks=list(names), task_manager=manager, limit=limit, log_samples=False, **seeds)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Dataset scripts" not in str(error):
            raise
        raise DataError(f"the data of {', '.join(names)} cannot be had: {' '.join(str(error).split())[:300]}") from None
    counts = found["n-samples"]
    return {name: _figures(values, counts.get(name)) for name, values in found["results"].items()}


def _figures(values: dict[str, Any], counts: dict[str, int] | None) -> dict[str, Any]:
    """The harness's `metric,filter` and `metric_stderr,filter` side by side."""
    figures: dict[str, Any] = {"n": counts["effective"]} if counts else {}
    for key, value in values.items():
        metric, _, chain = key.partition(",")
        if not chain or metric.endswith("_stderr") or isinstance(value, str):
            continue
        error = values.get(f"{metric}_stderr,{chain}")
        name = metric if chain == "none" else f"{metric} ({chain})"
        known = isinstance(error, int | float) and math.isfinite(error)
        figures[name] = {"value": float(value), "stderr": float(error) if known else None}  # type: ignore[arg-type]
    return figures
