"""Layer consistency along the depth of a model, for a set of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crow.core import layer_consistency
from crow.data.encoding import collate, encode_all, length_batches
from crow.models.hidden_states import capture_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example


@torch.no_grad()
def consistency_curve(lm: LanguageModel, examples: Sequence[Example], batch_size: int = 16) -> list[float]:
    """`1 - cos(H^(l), H^(l-1))` for l = 1..N, averaged over all prompt tokens of the examples.

    Args:
        lm: the model.
        examples: their responses are left out.
        batch_size: prompts at a time.
    """
    prompts = [Example(example.prompt, "", example.history) for example in examples]
    encoded = encode_all(lm.tokenizer, prompts)
    total: torch.Tensor | None = None
    n_tokens = 0
    for rows in length_batches([len(item) for item in encoded], batch_size):
        batch = collate([encoded[i] for i in rows], lm.pad_id)
        mask = batch["attention_mask"].to(lm.device)
        with capture_hidden_states(lm.model) as captured:
            lm.model(input_ids=batch["input_ids"].to(lm.device), attention_mask=mask, use_cache=False)
        here = int(mask.sum())
        part = layer_consistency(captured.states, mask) * here
        total = part if total is None else total + part
        n_tokens += here
    return [] if total is None else (total / n_tokens).tolist()
