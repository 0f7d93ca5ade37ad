from __future__ import annotations

import pytest
import torch
from tests.pico import FAMILIES, pico_language_model

from crow.analysis.jacobian import jacobian_norms, layer_functions, spectral_norm
from crow.models.hidden_states import capture_hidden_states
from crow.records import Example

EXAMPLES = [Example("Name a tree"), Example("1 + 1")]


def test_the_norm_of_a_matrix_is_its_largest_singular_value():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(7, 4, generator=generator)
    found = spectral_norm(lambda x: matrix @ x, torch.randn(4, generator=generator), generator)
    assert found == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-2)
    assert spectral_norm(lambda x: 0 * x, torch.ones(3), generator) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon", "mixtral"])
def test_the_norm_is_that_of_the_whole_jacobian(family):
    lm = pico_language_model(family)
    norms = jacobian_norms(lm, EXAMPLES[:1])[0]
    for (layer, at), norm in zip(layer_functions(lm, EXAMPLES[0]), norms, strict=True):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            whole = torch.autograd.functional.jacobian(layer, at).reshape(at.numel(), at.numel())
        assert norm == pytest.approx(float(torch.linalg.svdvals(whole)[0]), rel=2e-2)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_layers_as_functions_are_the_models_layers(family):
    lm = pico_language_model(family)
    functions = layer_functions(lm, EXAMPLES[0])
    ids = lm.tokenizer.apply_chat_template(
        EXAMPLES[0].messages(), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    with capture_hidden_states(lm.model) as captured, torch.no_grad():
        lm.model(input_ids=ids, use_cache=False)
    for number, (layer, at) in enumerate(functions):
        torch.testing.assert_close(at, captured.states[number])
        torch.testing.assert_close(layer(at), captured.states[number + 1], atol=1e-5, rtol=1e-4)


def test_the_weights_can_be_trained_afterwards():
    lm = pico_language_model("llama")
    lm.model.requires_grad_(True)
    jacobian_norms(lm, EXAMPLES[:1])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in lm.model.parameters())
