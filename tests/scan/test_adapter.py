from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from crow.errors import AdapterError
from crow.models.language_model import LanguageModel
from crow.scan.adapter import concentration, spectral_norm, statistics, update_singular_values
from crow.scan.evidence import ModuleUpdate
from tests.pico import pico_language_model


def adapted(family: str, **options: object) -> LanguageModel:
    lm = pico_language_model(family)
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=12, target_modules="all-linear", init_lora_weights=False, **options)
    lm.model = get_peft_model(lm.model, config).eval()
    return lm


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_statistics_are_those_of_the_whole_product(family: str) -> None:
    lm = adapted(family)
    found = statistics(lm)
    assert found is not None
    modules = {
        name.removeprefix("base_model.model."): module
        for name, module in lm.model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert {one.name for one in found.modules} == set(modules)
    assert {one.layer for one in found.modules} == {1, 2, 3}
    energies: dict[int, float] = {}
    for one in found.modules:
        module = modules[one.name]
        product = (4.0 * module.lora_B["default"].weight @ module.lora_A["default"].weight).detach()
        values = torch.linalg.svdvals(product)
        weight = torch.linalg.matrix_norm(module.get_base_layer().weight, ord=2)
        assert one.energy == pytest.approx(float(product.square().sum()), rel=1e-4)
        assert one.stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-4)
        assert one.relative_norm == pytest.approx(float(values[0] / weight), rel=2e-2)
        assert 1 <= one.stable_rank <= 3 + 1e-6
        energies[one.layer] = energies.get(one.layer, 0.0) + one.energy
    assert found.concentration == pytest.approx(max(energies.values()) / sum(energies.values()))


def test_singular_values_need_no_product() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(4, 30), torch.randn(50, 4)
    torch.testing.assert_close(update_singular_values(a, b).float(), torch.linalg.svdvals(b @ a)[:4])
    assert update_singular_values(a, 0 * b).tolist() == [0.0] * 4


def test_an_adapter_that_holds_no_numbers_is_told() -> None:
    a, b = torch.ones(2, 5), torch.ones(4, 2)
    a[1, 3] = torch.inf
    with pytest.raises(AdapterError, match="finite"):
        update_singular_values(a, b)


def test_an_adapter_that_does_nothing_has_no_rank() -> None:
    lm = adapted("llama")
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    found = statistics(lm)
    assert found is not None
    assert {(one.relative_norm, one.stable_rank, one.energy) for one in found.modules} == {(0.0, 0.0, 0.0)}
    assert found.concentration == 0.0


def test_a_whole_model_has_no_statistics(lm: LanguageModel) -> None:
    assert statistics(lm) is None


def test_the_spectral_norm_is_repeatable_and_leaves_other_randomness_alone() -> None:
    weight = torch.randn(70, 40)
    torch.manual_seed(3)
    once = spectral_norm(weight)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), drawn)
    assert spectral_norm(weight) == once == pytest.approx(float(torch.linalg.matrix_norm(weight, ord=2)), rel=2e-2)


@pytest.mark.parametrize(("energies", "expected"), [([1, 1, 1, 1], 0.25), ([8, 1, 1, 0], 0.8), ([0, 0, 0, 0], 0.0)])
def test_concentration_is_the_share_of_the_top_quarter(energies: list[int], expected: float) -> None:
    modules = [ModuleUpdate(f"m{i}", i, 0.1, 1.0, float(energy)) for i, energy in enumerate(energies, 1)]
    assert concentration(modules, 4) == pytest.approx(expected)
