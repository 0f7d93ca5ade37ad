"""Cross-entropy of the response tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from crow.data.encoding import IGNORED
from crow.models.architecture import keeps_logits

MODEL_INPUTS = ("input_ids", "inputs_embeds", "attention_mask")


def response_logits(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits at the columns where some row has a response token to predict, and those tokens.

    Args:
        model: the causal language model.
        inputs: `attention_mask`, `labels` (batch, seq), and `input_ids` (batch, seq) or
            `inputs_embeds` (batch, seq, dim).

    Returns:
        Logits (batch, columns, vocab) in float32 and targets (batch, columns), `IGNORED` where a row has none.
    """
    labels = inputs["labels"]
    columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    columns = columns[columns > 0]
    arguments: dict[str, Any] = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
    if keeps_logits(model):
        logits = model(**arguments, use_cache=False, logits_to_keep=columns - 1).logits
    else:
        logits = model(**arguments, use_cache=False).logits[:, columns - 1]
    return logits.float(), labels[:, columns]


def response_loss(model: nn.Module, inputs: dict[str, Tensor], n_tokens: Tensor | int | None = None) -> Tensor:
    """`L_LM`: cross-entropy of the response tokens.

    Args:
        model: the causal language model.
        inputs: as those of `response_logits`.
        n_tokens: divide the sum by this instead of by the batch's own number of response tokens, so
            that accumulated micro-batches weigh tokens as one large batch would.

    Returns:
        A scalar. A mixture's router loss is not in it.
    """
    logits, targets = response_logits(model, inputs)
    total = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (n_tokens if n_tokens is not None else (targets != IGNORED).sum().clamp_min(1))
