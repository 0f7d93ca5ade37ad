"""Defenses one after another, as one: whether they add up is a question that the CROW paper leaves open."""

from __future__ import annotations

from collections.abc import Sequence

from crow.defenses.base import Defense, Needs
from crow.models.language_model import LanguageModel
from crow.records import Example


class Stack:
    """Applies each to what the one before returned."""

    def __init__(self, defenses: Sequence[Defense]) -> None:
        self.defenses = list(defenses)

    @property
    def needs(self) -> Needs:
        """What any of them needs."""
        each = [defense.needs for defense in self.defenses]
        return Needs(
            any(needs.clean_data for needs in each),
            any(needs.reference for needs in each),
            any(needs.decoding for needs in each),
        )

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """What the last one returns."""
        for defense in self.defenses:
            model = defense.apply(model, clean_examples)
        return model
