from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pico import FAMILIES, pico_language_model
from torch import Tensor

from crow.data.encoding import encode_all
from crow.defenses.base import Surroundings
from crow.defenses.fine_pruning import SHARE, FinePruning, cut, down_projection
from crow.defenses.pruning import MagnitudePruning, WandaPruning, keep_largest
from crow.errors import ArchitectureError, ConfigError
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.models.linear import matrices
from crow.records import Example

EXAMPLES = [Example(f"say {word}", f"{word} and {word} again") for word in ("one", "two", "three four", "five")]
HERE = Surroundings(Path("unused"))


def copies(lm: LanguageModel) -> list[dict[str, Tensor]]:
    return [{m.name: m.weight.clone() for m in matrices(layer)} for layer in find_layers(lm.model)]


def test_half_of_every_row_stays_and_it_is_the_larger_half() -> None:
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert keep_largest(scores, None).tolist() == [[True, False, True, False], [False, False, True, True]]
    assert keep_largest(scores, None, sparsity=0.25).sum().item() == 6


def test_a_pattern_keeps_so_many_of_every_group_and_what_is_left_over() -> None:
    scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0, 0.1, 0.2]])
    kept = [True, True, False, False, False, False, True, True, True, True]
    assert keep_largest(scores, (2, 4)).tolist() == [kept]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_magnitude_pruning_zeroes_half_of_every_matrix_of_every_family(family: str) -> None:
    lm = pico_language_model(family)
    before = copies(lm)
    MagnitudePruning(HERE).apply(lm, [])
    for layer, old in zip(find_layers(lm.model), before, strict=True):
        for matrix in matrices(layer):
            zero = matrix.weight == 0
            assert zero.float().mean() == pytest.approx(0.5, abs=0.01)
            assert torch.equal(matrix.weight[~zero], old[matrix.name][~zero])
            assert old[matrix.name][zero].abs().max() > 0


def watched_inputs(lm: LanguageModel, layer: int, examples: list[Example]) -> dict[str, Tensor]:
    """Slowly, one example at a time: the norm of each input of a layer's linear modules over all real tokens."""
    found: dict[str, list[Tensor]] = {}
    chosen = [m for m in matrices(find_layers(lm.model)[layer]) if m.module is not None]

    def keep(name: str) -> Any:
        return lambda _module, args: found.setdefault(name, []).append(args[0].detach().reshape(-1, args[0].shape[-1]))

    handles = [m.module.register_forward_pre_hook(keep(m.name)) for m in chosen if m.module]
    with torch.no_grad():
        for item in encode_all(lm.tokenizer, examples):
            lm.model(input_ids=torch.tensor([[*item.prompt_ids, *item.response_ids]]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "olmoe"])
def test_wanda_is_its_slow_self_layer_after_layer(family: str, pattern: tuple[int, int] | None) -> None:
    slow, fast = pico_language_model(family), pico_language_model(family)
    for number, layer in enumerate(find_layers(slow.model)):
        inputs = watched_inputs(slow, number, EXAMPLES)  # what the layers pruned before hand over
        for matrix in matrices(layer):
            norms = inputs[matrix.name].norm(dim=0) if matrix.name in inputs else 1.0
            matrix.weight.mul_(keep_largest(matrix.weight.abs() * norms, pattern))
    WandaPruning(HERE, pattern).apply(fast, EXAMPLES)
    for expected, found in zip(copies(slow), copies(fast), strict=True):
        for name, weight in expected.items():
            assert ((weight == 0) == (found[name] == 0)).float().mean() > 0.999  # ties in rounding
    assert not any(layer._forward_pre_hooks for layer in find_layers(fast.model))


def test_wanda_needs_something_to_measure_on() -> None:
    with pytest.raises(ConfigError, match="clean examples"):
        WandaPruning(HERE).apply(pico_language_model("llama"), [])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "falcon"])
def test_fine_pruning_cuts_the_neurons_that_clean_examples_excite_least(family: str) -> None:
    lm = pico_language_model(family)
    layers = find_layers(lm.model)
    wanted = []
    for number, layer in enumerate(layers):
        name = down_projection(lm, layer).name
        sizes = watched_inputs(lm, number, EXAMPLES)[name].abs().sum(dim=0)
        wanted.append(set(sizes.argsort()[: round(SHARE * len(sizes))].tolist()))
    cut(lm, FinePruning(HERE).dormant(lm, EXAMPLES))
    for layer, dormant in zip(layers, wanted, strict=True):
        gone = (down_projection(lm, layer).weight == 0).all(dim=0).nonzero().flatten().tolist()
        assert len(dormant) > 5
        assert set(gone) == dormant


def test_neurons_that_were_cut_stay_so_in_the_finetuning(tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    before = [down_projection(lm, layer).weight.clone() for layer in find_layers(lm.model)]
    lm = FinePruning(Surroundings(tmp_path)).apply(lm, EXAMPLES)
    after = [down_projection(lm, layer).weight for layer in find_layers(lm.model)]
    for one, other in zip(before, after, strict=True):
        assert int((other == 0).all(dim=0).sum()) == round(SHARE * one.shape[1])
    assert not torch.equal(before[-1][after[-1] != 0], after[-1][after[-1] != 0])  # it was trained


def test_fine_pruning_says_where_it_cannot_work() -> None:
    with pytest.raises(ArchitectureError, match="mixtral"):
        FinePruning(HERE).apply(pico_language_model("mixtral"), EXAMPLES)
    lm = pico_language_model("mixtral")
    for layer in find_layers(lm.model):  # as of families with an expert that all tokens go through
        layer.shared = torch.nn.Linear(64, lm.model.config.hidden_size)
    with pytest.raises(ArchitectureError, match="mixtral"):
        FinePruning(HERE).dormant(lm, EXAMPLES)
