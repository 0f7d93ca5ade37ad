"""CleanGen: a token that the suspect finds far likelier than a clean reference does is replaced by the reference's.

Li et al., "CleanGen: Mitigating Backdoor Attacks for Generation Tasks in Large Language Models", arXiv 2406.12257. With
its horizon at one token: the published code checks four drafted tokens at once to save passes of the reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from crow.defenses.base import Needs, Surroundings
from crow.errors import ConfigError
from crow.models.decoding import Decoding
from crow.models.language_model import LanguageModel
from crow.models.prefix import pass_options
from crow.records import Example

THRESHOLD = 20.0
"""The suspicion score `p_suspect / p_reference` above which a token is replaced (the paper's alpha)."""


class CompareWithReference(LogitsProcessor):
    """Forces the reference's token wherever the suspect's own is suspicious."""

    def __init__(self, reference: LanguageModel, mask: Tensor, threshold: float) -> None:
        """Start a batch.

        Args:
            reference: runs beside the suspect, with a cache of its own.
            mask: (batch, longest), 0 at padding.
            threshold: of the suspicion score.
        """
        self.reference, self.mask, self.threshold = reference, mask, threshold
        self.cache = DynamicCache()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Scores (batch, vocab) of the next token after `input_ids` (batch, seq)."""
        known = self.cache.get_seq_length()
        new = input_ids.shape[1] - self.mask.shape[1]
        mask = torch.nn.functional.pad(self.mask, (0, new), value=1)
        model = self.reference.model
        options = pass_options(model, mask, known)
        output = model(input_ids=input_ids[:, known:], attention_mask=mask, cache=self.cache, use_cache=True, **options)
        log_reference = output.logits[:, -1].float().log_softmax(dim=-1)
        log_suspect = scores.float().log_softmax(dim=-1)
        own = scores.argmax(dim=-1, keepdim=True)
        suspicion = (log_suspect.gather(1, own) - log_reference.gather(1, own)).exp()
        chosen = torch.where(suspicion > self.threshold, log_reference.argmax(dim=-1, keepdim=True), own)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


class CleanGen:
    """Decodes with a clean reference of the same vocabulary beside the suspect."""

    needs = Needs(reference=True, decoding=True)

    def __init__(self, surroundings: Surroundings) -> None:
        self.reference = surroundings.reference

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The same weights, decoded under the reference's eyes.

        Raises:
            ConfigError: if there is no reference, or one of another vocabulary.
        """
        reference = self.reference
        if reference is None:
            raise ConfigError("expected a clean reference model for cleangen, got none; name one as 'reference'")
        if reference.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            raise ConfigError(
                f"expected a reference with the vocabulary of {model.reference}, but {reference.reference} has another"
            )
        reference.model.eval()

        def watch(mask: Tensor) -> CompareWithReference:
            return CompareWithReference(reference, mask, THRESHOLD)

        return dataclasses.replace(model, decoding=Decoding(processor=watch))
