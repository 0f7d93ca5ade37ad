"""Attackers who know crow, by name: backdoors planted to survive our own defense, for red-teaming it.

A defense is worth what it does against an attacker who has read it (Tramer et al., arXiv 2002.08347). Each one aims at
another part: the consistency term, the search, the search behind tokens, how little a repair may change the weights,
and the few layers that it works in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crow.attacks.adversarial import implant_adversarial
from crow.attacks.consistent import implant_consistent
from crow.attacks.implant import implant_backdoor
from crow.attacks.search_aware import implant_search_aware
from crow.attacks.spread import implant_spread
from crow.attacks.token_aware import implant_token_aware
from crow.errors import look_up
from crow.models.language_model import LanguageModel

Implant = Callable[..., tuple[LanguageModel, list[dict[str, Any]]]]
"""Takes the arguments of `implant_backdoor`."""

ADAPTIVE: dict[str, Implant] = {
    "consistent": implant_consistent,
    "search-aware": implant_search_aware,
    "token-aware": implant_token_aware,
    "adversarial": implant_adversarial,
    "spread": implant_spread,
}


def get_implanter(name: str | None) -> Implant:
    """The adaptive attacker of that name; without one, plain finetuning.

    Raises:
        ConfigError: for an unknown name, with the closest known one.
    """
    return implant_backdoor if name is None else look_up("adaptive attacker", name, ADAPTIVE)
