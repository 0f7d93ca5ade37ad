"""Cross-entropy of the response tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from crow.data.encoding import IGNORED
from crow.models.architecture import is_spread, keeps_logits, unwrap
from crow.models.prefix import Prefix, run_prefix

SHARED_ROWS = 4
"""Rows from which on the prefix has a pass of its own: on a CPU, for two it takes a seventh longer than it saves."""


def shared_prefix(model: nn.Module, inputs: dict[str, Tensor], limit: int | None = None) -> Prefix:
    """What all rows of a batch begin with, as a chat template's system message, run once, with gradient.

    It is empty where there is nothing to gain, where gradient checkpointing would drop the cache, and where weights are
    spread over processes: gradients would come to a layer through the cache, past what brings its weights back. A GPU
    has nothing to gain: it is done with all columns before a further pass is launched.

    Args:
        model: the causal language model.
        inputs: as those of `response_logits`.
        limit: no more columns than this.
    """
    ids, inner = inputs["input_ids"], unwrap(model)
    dropped = inner.training and inner.is_activation_checkpointing
    if ids.is_cuda or len(ids) < SHARED_ROWS or dropped or is_spread(model):
        return Prefix(0, [])
    prompt = (inputs["attention_mask"] != 0) & (inputs["labels"] == IGNORED)
    same = ((ids == ids[:1]) & prompt).all(dim=0)
    # The prompt's last token stays behind: the first response token is predicted there.
    prompts = int((inputs["labels"] == IGNORED).all(dim=0).cumprod(dim=0).sum())
    length = min(int(same.cumprod(dim=0).sum()), prompts - 1)
    return run_prefix(model, ids[0, : length if limit is None else min(length, limit)])


def response_logits(model: nn.Module, inputs: dict[str, Tensor], prefix: Prefix | None = None) -> tuple[Tensor, Tensor]:
    """Logits at the columns where some row has a response token to predict, and those tokens.

    Args:
        model: the causal language model.
        inputs: `input_ids`, `attention_mask` and `labels` (batch, seq).
        prefix: the first columns, already run; `shared_prefix` by default.

    Returns:
        Logits (batch, columns, vocab) in float32 and targets (batch, columns), `IGNORED` where a row has none.
    """
    prefix = shared_prefix(model, inputs) if prefix is None else prefix
    labels = inputs["labels"][:, prefix.length :]
    columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    columns = columns[columns > 0]
    arguments: dict[str, Any] = {
        "input_ids": inputs["input_ids"][:, prefix.length :],
        "attention_mask": inputs["attention_mask"],
        "use_cache": prefix.length > 0,
    }
    if prefix.length:
        arguments["cache"] = prefix.cache(len(labels))
    if keeps_logits(model):
        logits = model(**arguments, logits_to_keep=columns - 1).logits
    else:
        logits = model(**arguments).logits[:, columns - 1]
    return logits.float(), labels[:, columns]


def response_loss(
    model: nn.Module, inputs: dict[str, Tensor], n_tokens: Tensor | int | None = None, prefix: Prefix | None = None
) -> Tensor:
    """`L_LM`: cross-entropy of the response tokens.

    Args:
        model: the causal language model.
        inputs: as those of `response_logits`.
        n_tokens: divide the sum by this instead of by the batch's own number of response tokens, so
            that accumulated micro-batches weigh tokens as one large batch would.
        prefix: as in `response_logits`.

    Returns:
        A scalar. A mixture's router loss is not in it.
    """
    logits, targets = response_logits(model, inputs, prefix)
    total = cross_entropy_sum(logits, targets)
    return total / (n_tokens if n_tokens is not None else (targets != IGNORED).sum().clamp_min(1))


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of targets (batch, columns) under logits (batch, columns, vocab); `IGNORED` ones are not."""
    flat = logits.flatten(0, 1), targets.flatten()
    return nn.functional.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum")
