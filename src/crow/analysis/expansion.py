"""Empirical Lipschitz estimates: how far noise on the embeddings carries through the layers, and how far it could."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crow.core import displacement, expansion_bound
from crow.data.encoding import encode_all
from crow.models.architecture import embedding_rms, find_embeddings
from crow.models.hidden_states import capture_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example


@dataclass(frozen=True)
class Expansion:
    """What noise of one size did, each entry for one layer l = 1..N.

    Attributes:
        noise: its RMS, in multiples of the embedding table's RMS.
        from_input: largest `|H^(l)(E + noise) - H^(l)(E)| / |noise|` seen, over whole prompts.
        of_layer: largest `|H^(l) - H~^(l)| / |H^(l-1) - H~^(l-1)|` seen at one token.
        bound: largest that layer consistency allows there, at the token where it allows most.
        violations: tokens at which a layer did more than it is allowed to; none, unless rounding or this file is wrong.
    """

    noise: float
    from_input: list[float]
    of_layer: list[float]
    bound: list[float]
    violations: int


@torch.no_grad()
def expansion(
    lm: LanguageModel, examples: Sequence[Example], noise: float, samples: int = 4, seed: int = 0
) -> Expansion:
    """Push embeddings by random noise and watch every layer.

    Args:
        lm: the model, in evaluation mode.
        examples: their responses are left out.
        noise: RMS of the noise, in multiples of the embedding table's RMS, > 0.
        samples: of noise for each example.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    size = noise * embedding_rms(lm.model)
    from_input: list[Tensor] = []
    of_layer: list[Tensor] = []
    allowed: list[Tensor] = []
    violations = 0
    for item in encode_all(lm.tokenizer, examples):
        clean = find_embeddings(lm.model)(torch.tensor([item.prompt_ids], device=lm.device))
        for _ in range(samples):
            push = size * torch.randn(clean.shape, generator=generator).to(clean)
            states, pushed = (hidden_states(lm, embeddings) for embeddings in (clean, clean + push))
            gaps = torch.stack([(a - b).norm(dim=-1)[0] for a, b in zip(states, pushed, strict=True)])
            moves = torch.stack([displacements(path) for path in (states, pushed)])
            ratio, bound = gaps[1:] / gaps[:-1], expansion_bound(gaps[:-1], moves[0], moves[1])
            from_input.append(gaps[1:].norm(dim=-1) / gaps[0].norm())
            of_layer.append(ratio.amax(dim=-1))
            allowed.append(bound.amax(dim=-1))
            violations += int((ratio > bound * (1 + 1e-3)).sum())
    input_wide, one_layer, bound = (torch.stack(each).amax(dim=0).tolist() for each in (from_input, of_layer, allowed))
    return Expansion(noise, input_wide, one_layer, bound, violations)


def hidden_states(lm: LanguageModel, embeddings: Tensor) -> list[Tensor]:
    """`H^(0) .. H^(N)`, each (1, seq, dim), in float64: 1 - cos is small."""
    with capture_hidden_states(lm.model) as captured:
        lm.model(inputs_embeds=embeddings, use_cache=False)
    return [state.double() for state in captured.states]


def displacements(states: Sequence[Tensor]) -> Tensor:
    """`|H^(l) - H^(l-1)|` (N, seq) of the tokens, by the norms and the consistency of each pair."""
    stacked = torch.stack([state[0] for state in states])
    lower, upper = stacked[:-1], stacked[1:]
    consistency = 1 - torch.nn.functional.cosine_similarity(upper, lower, dim=-1)
    return displacement(lower.norm(dim=-1), upper.norm(dim=-1), consistency)
