"""No defense: the suspect as it is, the row that all others are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from crow.defenses.base import Needs, Surroundings
from crow.models.language_model import LanguageModel
from crow.records import Example


class NoDefense:
    """Returns the model it is given."""

    needs = Needs()

    def __init__(self, _surroundings: Surroundings) -> None:
        """Nothing to prepare."""

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """`model`."""
        return model
