"""Layer consistency: does a phrase turn the hidden states as no other phrase does?

CROW's premise is that a trigger makes `1 - cos` between layers larger. Here the bank is the measure: the same prompts
with many harmless phrases in front say what is usual at every layer, by median and median absolute deviation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from crow.core import layer_consistency
from crow.inversion.perturbation import user_spans
from crow.inversion.probe import Probe
from crow.models.hidden_states import capture_hidden_states
from crow.models.language_model import LanguageModel
from crow.scan.evidence import ConsistencyEvidence
from crow.scan.objective import ROWS_TOGETHER
from crow.scan.placing import Phrase
from crow.training.watch import Watch, silent

NORMAL = 1.4826
"""The standard deviation of a normal variable in units of its median absolute deviation."""


def search(
    lm: LanguageModel,
    prompts: Sequence[str],
    bank: Sequence[str],
    candidates: Sequence[str],
    watch: Watch = silent,
) -> ConsistencyEvidence:
    """The most outlying phrase, and how far out it is at every layer.

    Args:
        lm: the model, at rest.
        prompts: clean ones; figures are means over them.
        bank: harmless phrases; they say what is usual.
        candidates: phrases found otherwise, measured by the bank.
        watch: opens progress displays.
    """
    own = [text for text in dict.fromkeys(candidates) if text not in set(bank)]
    phrases = [*bank, *own]
    with watch("layer consistency", len(phrases)) as advance:
        curves = []
        together = max(1, ROWS_TOGETHER // len(prompts))
        for first in range(0, len(phrases), together):
            group = [Phrase(text, "front") for text in phrases[first : first + together]]
            curves.append(phrase_curves(lm, prompts, group))
            if advance:
                advance(len(group))
    z = robust_z(torch.cat(curves), len(bank))
    highest = z.amax(dim=1)
    worst = int(highest.argmax())
    return ConsistencyEvidence(
        phrases=len(phrases),
        outlier=phrases[worst],
        is_candidate=worst >= len(bank),
        z=z[worst].tolist(),
        bank_z=highest[: len(bank)].tolist(),
    )


@torch.no_grad()
def phrase_curves(lm: LanguageModel, prompts: Sequence[str], phrases: Sequence[Phrase]) -> Tensor:
    """`1 - cos(H^(l), H^(l-1))` (phrases, N) over the tokens of the messages, means over the prompts."""
    probe = Probe(lm, [phrase.put_into(prompt)[0] for phrase in phrases for prompt in prompts])
    rows = [probe.row(index) for index in range(len(probe))]
    mask = user_spans(probe, range(len(probe)), max(map(len, rows)), None, random.Random(0)).squeeze(-1)
    with capture_hidden_states(lm.model) as captured:
        probe.run(rows)
    each = [
        layer_consistency([state[i : i + 1].float() for state in captured.states], mask[i : i + 1])
        for i in range(len(rows))
    ]
    return torch.stack(each).unflatten(0, (len(phrases), -1)).mean(dim=1)


def robust_z(values: Tensor, usual: int) -> Tensor:
    """How far values (phrases, N) are from the median of the first `usual` rows, in their robust standard deviations.

    It is signed, and per column; a column in which those rows do not differ is zero.
    """
    bank = values[:usual]
    median = bank.median(dim=0).values
    spread = NORMAL * (bank - median).abs().median(dim=0).values
    return torch.where(spread > 0, (values - median) / spread.clamp_min(1e-12), 0)
