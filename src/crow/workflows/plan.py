"""`crow purify --dry-run`: what a purification would take, before any weight is loaded."""

from __future__ import annotations

import dataclasses
import resource
import sys
from typing import Any

import torch

from crow.data.encoding import encode_all
from crow.defenses.strength import at_strength
from crow.models.adapters import check_adapter_path
from crow.models.blueprint import blueprint
from crow.models.loading import DTYPES, pick_device
from crow.training.config import CrowConfig
from crow.training.fitting import widened
from crow.training.footprint import SHARE_OF_PEAK, footprint, multiplication_rate
from crow.training.precision import autocast_wanted
from crow.workflows.clean_data import ANSWER_TOKENS, clean_examples
from crow.workflows.common import Options
from crow.workflows.purify import PurifyRequest


def plan(request: PurifyRequest, config: CrowConfig, options: Options) -> dict[str, Any]:
    """The figures, at strength 1 where canaries are to say it; nothing is written.

    Args:
        request: what is to be purified; only the model's configuration and tokenizer are read.
        config: settings of strength 1.
        options: common options.

    Returns:
        `parameters`, `trained`, `memory` (part to bytes, and their `total`), `steps`, `training_seconds` and
        `operations_per_second`, the rate that the estimate rests on.

    Raises:
        CrowError: for anything the user can mend.
    """
    request.check(config)
    if request.suspect.adapter is not None:
        check_adapter_path(request.suspect.adapter)
    examples = clean_examples(request.prompts or request.data, config.samples, options.seed, bool(request.prompts))
    if request.prompts:  # the suspect's answers are at most so long
        examples = [dataclasses.replace(example, response=" a" * ANSWER_TOKENS) for example in examples]
    device, dtype = pick_device(options.device), DTYPES[options.dtype]
    config = widened(at_strength(config, request.strength or 1.0), device)
    lm = blueprint(request.suspect.model, dtype)
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
