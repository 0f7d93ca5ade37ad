"""What every defense is: something that is handed a suspect model and clean examples and returns a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from crow.models.language_model import LanguageModel
from crow.records import Example, SearchRecord
from crow.training.watch import Watch, silent


@dataclass(frozen=True)
class Needs:
    """What a defense cannot do without, shown beside its results.

    Attributes:
        clean_data: clean examples with responses.
        reference: another model that is taken to be clean.
        decoding: a hand in decoding every answer; the weights stay as they are.
    """

    clean_data: bool = False
    reference: bool = False
    decoding: bool = False

    def __str__(self) -> str:
        names = {"clean data": self.clean_data, "clean reference": self.reference, "decoding": self.decoding}
        return ", ".join(name for name, needed in names.items() if needed) or "nothing"


class Defense(Protocol):
    """Any mitigation."""

    @property
    def needs(self) -> Needs:
        """What it cannot do without."""
        ...

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The defended model.

        Args:
            model: the suspect, a whole model without adapter; it may be changed in place.
            clean_examples: examples with responses; those that need none ignore them.
        """
        ...


@dataclass(frozen=True)
class Surroundings:
    """What a defense is made in.

    Attributes:
        work: folder for checkpoints.
        seed: of everything random.
        reference: a model that is taken to be clean, where the user has one.
        watch: opens progress displays.
        searches: filled by a defense that searches the model: what its searches saw, `before` and `after`.
    """

    work: Path
    seed: int = 0
    reference: LanguageModel | None = None
    watch: Watch = silent
    searches: dict[str, SearchRecord | None] = field(default_factory=dict)


MakeDefense = Callable[[Surroundings], Defense]
