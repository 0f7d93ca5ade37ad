"""The scan's side of the weights."""

from __future__ import annotations

import json

import pytest

from crow.records import dump_json
from crow.scan.evidence import WeightEvidence
from crow.scan.weights import search
from tests.edited import EXAMPLES, edited, wide
from tests.pico import pico_language_model


def test_every_layer_has_its_highest_score_and_an_edit_its_place() -> None:
    clean, written = search(wide(), EXAMPLES), search(edited(), EXAMPLES)
    assert clean is not None
    assert written is not None
    assert (len(clean.scores), clean.edits) == (3, [])
    assert written.edits == ["layer 2, mlp.down_proj"]
    assert written.scores[1] == max(written.scores) > 3 > max(clean.scores)
    # The first layer does not know what happens after it.
    assert written.scores[0] == pytest.approx(clean.scores[0])
    assert WeightEvidence.of(json.loads(dump_json(written))) == written


def test_where_nothing_can_be_read_there_is_no_evidence() -> None:
    assert search(pico_language_model("llama"), EXAMPLES) is None
