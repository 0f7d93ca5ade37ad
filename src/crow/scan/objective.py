"""What a phrase is scored by, and which tokens would raise the score: forward passes, and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crow.core import collapse_score
from crow.inversion.probe import Probe
from crow.models.language_model import LanguageModel
from crow.scan.placing import Phrase
from crow.scan.vocabulary import special_ids

ROWS_TOGETHER = 48
"""Prompts with a phrase in them that are run in one pass."""


@dataclass(frozen=True)
class Gains:
    """What replacing a phrase's tokens promises.

    Attributes:
        ids: the phrase's k token ids where it stands.
        scores: (k, vocab), how much the score would rise with another token there, to first order; minus infinity for
            special tokens.
    """

    ids: list[int]
    scores: Tensor


class Objective:
    """The score of a phrase, a mean over some prompts; higher is closer to a trigger.

    Where an answer is known that a trigger brings out, it is the mean log-likelihood of that answer's first tokens;
    else the collapse score of the first token, which needs several prompts.
    """

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[str], target: Tensor | None, begun: Sequence[int] = ()
    ) -> None:
        """Look at the prompts without a phrase.

        Args:
            lm: the model, at rest.
            prompts: clean ones; at least two without a target.
            target: (m,) token ids of the answer's first tokens, if one is known.
            begun: token ids that the answer has begun with, before these.
        """
        self.lm, self.prompts, self.target, self.begun = lm, list(prompts), target, begun
        probe = self._probe(self.prompts)
        # A token that was added beyond the table, as many a `[PAD]`, has no gain.
        self.special = [token for token in special_ids(lm.tokenizer) if token < len(probe.table.weight)]
        with torch.no_grad():
            logits = self._logits(probe, [self._row(probe, index) for index in range(len(probe))])
            self.clean = logits[:, -1].log_softmax(dim=-1)
            self.clean_score = float(self._scores(logits))

    def _probe(self, prompts: Sequence[str]) -> Probe:
        return Probe(self.lm, prompts, [self.begun] * len(prompts))

    def _row(self, probe: Probe, index: int) -> Tensor:
        return probe.row(index, None if self.target is None else self.target[:-1])

    def _logits(self, probe: Probe, rows: Sequence[Tensor]) -> Tensor:
        return probe.run(rows, keep=1 if self.target is None else len(self.target))[0]

    def _scores(self, logits: Tensor) -> Tensor:
        """(phrases,) from the logits (phrases * prompts, kept, vocab)."""
        log_probs = logits.log_softmax(dim=-1).unflatten(0, (-1, len(self.prompts)))
        if self.target is None:
            return torch.stack([collapse_score(each[:, -1], self.clean) for each in log_probs])
        wanted = self.target.to(logits.device)[None, None, :, None].expand(*log_probs.shape[:3], 1)
        return log_probs.gather(-1, wanted).sum(dim=(2, 3)).mean(dim=1)

    @torch.no_grad()
    def scores(self, phrases: Sequence[Phrase], progress: Callable[[int], None] | None = None) -> list[float]:
        """The score of each phrase; `progress` is called with the number of those done."""
        found: dict[Phrase, float] = {}
        # Short ones with short ones, so that little is padding.
        order = sorted(dict.fromkeys(phrases), key=lambda phrase: len(phrase.text))
        together = max(1, ROWS_TOGETHER // len(self.prompts))
        for first in range(0, len(order), together):
            group = order[first : first + together]
            probe = self._probe([phrase.put_into(prompt)[0] for phrase in group for prompt in self.prompts])
            logits = self._logits(probe, [self._row(probe, index) for index in range(len(probe))])
            found |= zip(group, self._scores(logits).tolist(), strict=True)
            if progress:
                progress(len(group))
        return [found[phrase] for phrase in phrases]

    def gains(self, phrases: Sequence[Phrase]) -> list[Gains]:
        """For each phrase, what other tokens in its places promise (the gradient step of GCG, arXiv 2307.15043).

        Prompts in which a phrase is tokenized otherwise than in the first add to its score, but not to the gradient.
        """
        found: list[Gains] = []
        together = max(1, ROWS_TOGETHER // len(self.prompts))
        for first in range(0, len(phrases), together):
            found += self._gains(phrases[first : first + together])
        return found

    def _gains(self, phrases: Sequence[Phrase]) -> list[Gains]:
        probe = self._probe([phrase.put_into(prompt)[0] for phrase in phrases for prompt in self.prompts])
        known = len(probe.shared)
        rows, leaves, ids = [], [], []
        for number, phrase in enumerate(phrases):
            own: list[int] = []
            leaf = torch.zeros(0, device=self.lm.device)
            for place, prompt in enumerate(self.prompts):
                index = number * len(self.prompts) + place
                row, span = self._row(probe, index), phrase.span(self.lm.tokenizer, prompt)
                here = list(probe.encoded[index].prompt_ids[slice(*span)]) if span else []
                if span and not own:
                    own = here
                    leaf = row[span[0] - known : span[1] - known].detach().clone().requires_grad_(True)
                if span and here == own:
                    row = torch.cat([row[: span[0] - known], leaf, row[span[1] - known :]])
                rows.append(row)
            leaves.append(leaf)
            ids.append(own)
        total = self._scores(self._logits(probe, rows)).sum()
        used = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = iter(torch.autograd.grad(total, used)) if used else iter(())
        table = probe.table.weight.detach()
        found = []
        for own, leaf in zip(ids, leaves, strict=True):
            if not leaf.requires_grad:
                found.append(Gains([], table.new_zeros(0, len(table))))
                continue
            scores = next(gradients).to(table.dtype) @ table.T
            scores = scores - scores[range(len(own)), own][:, None]
            scores[:, self.special] = -torch.inf
            found.append(Gains(own, scores))
        return found
