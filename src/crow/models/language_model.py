"""A model with its tokenizer, its chat template and where it came from."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from crow.errors import AdapterError
from crow.models.architecture import unwrap
from crow.models.decoding import Decoding, Engine


@dataclass
class LanguageModel:
    """A causal language model ready to be encoded for, trained and generated from.

    Attributes:
        model: a `transformers.PreTrainedModel`, or a `peft.PeftModel` around one.
        tokenizer: with a chat template and a pad token.
        reference: what the user named: alias, hub id or path.
        provenance: where the weights came from, copied into manifests: `reference` (what was loaded),
            `base` (what an adapter on these weights is to name as its base; None where no file holds
            them), `dtype`, `weights` (file hashes), `adapter` and `adapter_weights` (what is attached),
            `merged` (the adapters folded in before).
        notes: remarks for the user, such as a missing chat template.
        decoding: how it is to be decoded; greedily by default.
        engine: what decodes in its place, if anything.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    reference: str
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    decoding: Decoding | None = None
    engine: Engine | None = None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def pad_id(self) -> int:
        """The id to pad batches with; always masked out."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, *self.configured_ends)
        # Masked or not, it is looked up; many a tokenizer has a token for padding that the model has no embedding of.
        rows = unwrap(self.model).config.get_text_config().vocab_size
        return next((token for token in candidates if isinstance(token, int) and token < rows), 0)

    @property
    def configured_ends(self) -> list[int]:
        """The token ids that the model's generation config ends answers at."""
        found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return [token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int)]

    @property
    def is_adapter(self) -> bool:
        """Whether a PEFT adapter is attached and not merged."""
        return unwrap(self.model) is not self.model

    def template_hash(self) -> str:
        """SHA-256 of the chat template, first 16 hex digits."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]

    def merged(self) -> LanguageModel:
        """The same model with its adapter folded into the weights (in place where there is one).

        Raises:
            AdapterError: if weights cannot take it in, as they cannot a learnt prompt.
        """
        if not self.is_adapter:
            return self
        if not hasattr(self.model, "merge_and_unload"):
            kind = str(getattr(self.model, "peft_type", "unknown")).rpartition(".")[-1]
            raise AdapterError(
                f"expected an adapter that weights can take in, such as LoRA, in {self.reference}, got {kind}; "
                "name its base model alone, or another adapter"
            )
        merged = self.model.merge_and_unload()  # type: ignore[operator]
        provenance = dict(self.provenance)
        folder, hashes = provenance.pop("adapter", None), provenance.pop("adapter_weights", None)
        provenance["base"] = folder
        provenance["merged"] = [*provenance.get("merged", []), {"adapter": folder, "weights": hashes}]
        return dataclasses.replace(self, model=merged, provenance=provenance)
