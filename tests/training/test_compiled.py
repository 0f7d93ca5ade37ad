"""Compiled layers train what the layers as they are train; one compilation serves all layers, batches and lengths."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.training import compiled
from crow.training.adapter import make_trainable
from crow.training.compiled import compiled_layers, padded_columns
from tests.pico import pico_language_model
from tests.training.test_trainer import CROW, trainable, trained

COMPILED = dataclasses.replace(CROW, torch_compile=True)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The graphs compiled in a test, by a fake compiler that runs them as they are: the real one takes a minute."""
    found: list[int] = []

    def fake(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append(len(inputs))
        return graph.forward

    use(fake, monkeypatch)
    return found


def use(compiler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have that compiler compile."""
    torch.compiler.reset()
    monkeypatch.setattr(compiled.torch, "compile", functools.partial(torch.compile, backend=compiler))


@pytest.mark.parametrize("kept", [False, True])
def test_the_trajectory_is_that_of_the_layers_as_they_are(graphs: list[int], tmp_path: Path, kept: bool) -> None:
    plain = trained(dataclasses.replace(CROW, keep_perturbation=kept), tmp_path / "plain")
    assert not graphs
    ours = trained(dataclasses.replace(COMPILED, keep_perturbation=kept), tmp_path / "compiled")
    assert len(graphs) == 1
    for one, other in zip(ours.terms, plain.terms, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for name, weight in trainable(plain).items():
        torch.testing.assert_close(trainable(ours)[name], weight, rtol=1e-3, atol=1e-5)


def test_layers_are_as_before_afterwards(graphs: list[int]) -> None:
    lm = make_trainable(pico_language_model("llama"), CROW)
    layers = find_layers(lm.model)
    with suppress(ValueError), compiled_layers(lm.model):
        assert all("forward" in vars(layer) for layer in layers)
        raise ValueError
    assert not any("forward" in vars(layer) for layer in layers)


def forward(lm: LanguageModel) -> None:
    """A pass."""
    lm.model(input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=False)


def test_passes_without_gradients_are_not_compiled(graphs: list[int]) -> None:
    lm = make_trainable(pico_language_model("llama"), CROW)
    with compiled_layers(lm.model):
        with torch.no_grad():
            forward(lm)
        assert not graphs
        forward(lm)
        assert graphs


def test_layers_below_those_trained_get_no_gradient(graphs: list[int]) -> None:
    lm = make_trainable(pico_language_model("llama"), dataclasses.replace(CROW, trained_from=0.5))
    seen: list[bool] = []
    layers = find_layers(lm.model)
    for layer in layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    with compiled_layers(lm.model):
        forward(lm)
    untouched = round(0.5 * len(layers))
    assert seen == [False] * untouched + [True] * (len(layers) - untouched)


def test_columns_are_a_multiple_with_room() -> None:
    assert [padded_columns(longest) for longest in (1, 7, 8, 9, 16)] == [8, 8, 16, 16, 24]
