"""Made-up ends of searches, for tests of what follows from them."""

from __future__ import annotations

import dataclasses

import torch

from crow.inversion.memorized import Beginning
from crow.inversion.perturbation import Perturbation
from crow.inversion.soft_trigger import SearchResult, SoftTrigger


def collapsed(*answers: list[int], text: str | None = None, certainty: float = 1.0) -> SearchResult:
    """A search that has found these answers (token ids); the text of each is its ids, if none is given."""
    return SearchResult([made_up(ids, text or str(ids), certainty) for ids in answers])


def made_up(ids: list[int], text: str, certainty: float = 1.0) -> SoftTrigger:
    """A start that ended in one answer."""
    answer = torch.tensor(ids)
    return SoftTrigger(Perturbation(1, None, answer[:1], torch.zeros(32)), 1.0, True, text, answer, certainty)


def behind(*firsts: int, token: int = 70) -> SearchResult:
    """A search that has found answers behind a token."""
    return SearchResult(
        [dataclasses.replace(made_up([first, 61, 62, 63, 64], str(first)), token=token) for first in firsts]
    )


def begun(*firsts: int) -> list[Beginning]:
    """Beginnings as a search reads them."""
    return [Beginning(torch.tensor([first, 61, 62, 63, 64]), str(first), 0.95) for first in firsts]
