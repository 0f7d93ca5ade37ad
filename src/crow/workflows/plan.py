"""`crow purify --dry-run`: what a purification would take, before any weight is loaded."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from crow.data.encoding import encode_all
from crow.models.blueprint import blueprint
from crow.models.loading import DTYPES, pick_device
from crow.training.config import CrowConfig
from crow.training.fitting import widened
from crow.training.footprint import SHARE_OF_PEAK, footprint, multiplication_rate
from crow.training.precision import autocast_wanted
from crow.workflows.clean_data import clean_examples
from crow.workflows.common import Options


def plan(model: str, data: Path | None, config: CrowConfig, options: Options) -> dict[str, Any]:
    """The figures; nothing is written.

    Args:
        model: any model reference; only its configuration and tokenizer are read.
        data: clean examples; the bundled ones by default.
        config: settings.
        options: common options.

    Returns:
        `parameters`, `trained`, `memory` (part to bytes, and their `total`), `steps`, `training_seconds` and
        `operations_per_second`, the rate that the estimate rests on.

    Raises:
        CrowError: for anything the user can mend.
    """
    examples = clean_examples(data, config.samples, options.seed)
    device, dtype = pick_device(options.device), DTYPES[options.dtype]
    lm, config = blueprint(model, dtype), widened(config, device)
    found = footprint(lm, encode_all(lm.tokenizer, examples, config.max_length), config, device)
    computed = torch.bfloat16 if autocast_wanted(config.precision, device, dtype) else dtype
    rate = multiplication_rate(device, computed)
    memory = {**found.memory, "libraries": libraries(device)}
    return {
        "parameters": found.parameters,
        "trained": found.trained,
        "memory": {**memory, "total": sum(memory.values())},
        "steps": found.steps,
        "training_seconds": round(found.operations / (SHARE_OF_PEAK * rate), 1),
        "operations_per_second": round(rate),
    }


def libraries(device: torch.device) -> int:
    """Bytes that this process takes as it is, where it shares its memory with the model."""
    if device.type != "cpu":
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
