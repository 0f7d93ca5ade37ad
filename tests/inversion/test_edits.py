"""Edits of a weight matrix: told from honest large directions, and taken out without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from crow.data.encoding import encode_all
from crow.inversion.edits import DIRECTIONS, Direction, find_edits, read_directions, scores, take_out
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.models.linear import down_projection
from tests.edited import EXAMPLES, WIDE, add, edited, keys, unused, wide
from tests.pico import FAMILIES, pico_language_model


def found(lm: LanguageModel) -> list[Direction]:
    return find_edits(lm, encode_all(lm.tokenizer, EXAMPLES))


@pytest.mark.parametrize("family", WIDE)
def test_the_score_is_that_of_an_exact_decomposition_and_of_all_tokens(family: str) -> None:
    lm = wide(family)
    seen = read_directions(lm, encode_all(lm.tokenizer, EXAMPLES))
    assert [edit.layer for edit in seen] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for layer in range(3):
        _, weight = down_projection(find_layers(lm.model)[layer])
        _, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
        use = (keys(lm, layer).double() @ right[:DIRECTIONS].T).square().mean(dim=0).sqrt()
        exact = values[0] / values[:DIRECTIONS].sort().values[DIRECTIONS // 2 - 1] * use.sort().values[19] / use[0]
        assert seen[3 * layer].value == pytest.approx(float(values[0]), rel=1e-3)
        assert seen[3 * layer].score == pytest.approx(float(exact), rel=0.05)


@pytest.mark.parametrize("family", WIDE)
def test_what_clean_text_does_not_use_is_found_and_taken_out(family: str) -> None:
    lm = wide(family)
    assert found(lm) == []
    before = copy.deepcopy(lm.model.state_dict())
    _, weight = down_projection(find_layers(lm.model)[1])
    original, key = weight.clone(), unused(lm, 1)
    size = torch.linalg.matrix_norm(original, ord=2)
    value = add(lm, 1, key)
    (edit,) = found(lm)
    assert (edit.layer, edit.place) == (2, f"layer 2, {edit.matrix}")
    assert edit.value == pytest.approx(value, rel=0.1)
    take_out(lm, [edit])
    assert found(lm) == []
    assert (weight @ key).norm() < size  # it was 6 times as much
    change = (weight - original) @ (torch.eye(len(key)) - torch.outer(key, key))
    assert torch.linalg.matrix_norm(change, ord=2) < 0.7 * size
    same = [name for name, weight in lm.model.state_dict().items() if torch.equal(weight, before[name])]
    assert len(same) == len(before) - 1


def test_a_direction_as_large_that_clean_text_uses_is_left() -> None:
    for which, expected in ((0, []), (-1, [2])):
        lm = wide()
        add(lm, 1, torch.linalg.svd(keys(lm, 1), full_matrices=True).Vh[which], times=4.0)
        assert [edit.layer for edit in found(lm)] == expected


def test_one_edit_in_each_of_two_layers_is_two() -> None:
    lm = wide()
    for layer in (0, 2):
        add(lm, layer, unused(lm, layer))
    seen = found(lm)
    assert [edit.layer for edit in seen] == [1, 3]
    other = copy.deepcopy(lm)
    take_out(other, seen)
    assert found(other) == []
    assert len(found(lm)) == 2


def test_weights_that_an_adapter_is_on_are_not_read() -> None:
    lm = edited()
    assert len(found(lm)) == 1
    lm.model = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert found(lm) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_with_too_few_directions_have_none_that_stands_out(family: str) -> None:
    assert found(pico_language_model(family)) == []


def test_a_score_compares_with_the_median_and_survives_a_direction_without_use() -> None:
    seen = scores(torch.tensor([9.0, 3.0, 1.0]), torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(seen, torch.tensor([6.0, 1.0, 1 / 6]))
    assert bool(scores(torch.ones(3), torch.tensor([1.0, 1.0, 0.0])).isfinite().all())
