"""Weights: did somebody write something into a matrix without training? See `crow.inversion.edits`.

An honest edit of a fact looks the same as a backdoor: a key that clean text has not, and what to say then.
"""

from __future__ import annotations

from collections.abc import Sequence

from crow.data.encoding import encode_all
from crow.inversion.edits import EXAMPLES, read_directions
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.scan.evidence import WeightEvidence
from crow.training.watch import Watch, silent


def search(lm: LanguageModel, examples: Sequence[Example], watch: Watch = silent) -> WeightEvidence | None:
    """The score of every layer's direction that looks most like an editor's, and those that count as such.

    Args:
        lm: the model, without adapter.
        examples: clean ones with responses.
        watch: opens progress displays.

    Returns:
        None where weights cannot be read; see `read_directions`.
    """
    found = read_directions(lm, encode_all(lm.tokenizer, examples[:EXAMPLES]), watch)
    layers = sorted({each.layer for each in found})
    highest = [max(each.score for each in found if each.layer == layer) for layer in layers]
    return WeightEvidence(highest, [each.place for each in found if each.is_edit]) if found else None
