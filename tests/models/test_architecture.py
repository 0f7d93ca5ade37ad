from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from crow.errors import ArchitectureError
from crow.models.architecture import (
    embedding_rms,
    find_embeddings,
    find_layers,
    keeps_logits,
    model_type,
    unwrap,
)
from tests.pico import FAMILIES, HIDDEN, LAYERS, pico, pico_tokenizer

every_family = pytest.mark.parametrize("family", FAMILIES)


class MadeUp(nn.Module):
    """A model of a family that nobody knows."""

    def __init__(self, **parts: object) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="jabberwock")
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids


@every_family
def test_layers_and_embeddings_of_every_family_are_found(family):
    model = pico(family)
    layers, table = find_layers(model), find_embeddings(model)
    assert len(layers) == LAYERS
    assert len({type(layer) for layer in layers}) == 1
    assert table is model.get_input_embeddings()
    assert table.weight.shape == (len(pico_tokenizer()), HIDDEN)
    # All weights but embeddings, head and final norm are in the layers: nothing was mistaken for them.
    prefix = next(name for name, module in model.named_modules() if module is layers)
    outside = [name for name, _ in model.named_parameters() if not name.startswith(f"{prefix}.")]
    assert all(any(word in name for word in ("emb", "wte", "wpe", "head", "norm", "ln_f")) for name in outside)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:The following")
@every_family
def test_they_are_found_inside_wrappers(family):
    model = pico(family)
    layers, table = find_layers(model), find_embeddings(model)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    compiled = torch.compile(adapted)  # compiles at the first call, which does not come
    assert isinstance(compiled, nn.Module)
    for wrapper in (adapted, compiled):
        assert unwrap(wrapper) is model
        assert find_layers(wrapper) is layers
        assert find_embeddings(wrapper) is table
        assert model_type(unwrap(wrapper)) == model.config.model_type


def test_distributed_wrappers_are_seen_through():
    class DistributedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = pico("gpt2")
    assert unwrap(DistributedDataParallel(model)) is model


@pytest.mark.parametrize(
    "model",
    [
        MadeUp(),
        MadeUp(model=nn.ModuleDict({"layers": nn.ModuleList()})),  # the right place, but empty
        MadeUp(transformer=nn.ModuleDict({"h": nn.Sequential(nn.Linear(2, 2))})),
    ],
)
def test_missing_layers_give_an_error_that_names_the_model_type(model):
    with pytest.raises(ArchitectureError, match=r"layers of model type 'jabberwock'.*transformer\.h"):
        find_layers(model)


@pytest.mark.parametrize("answer", [None, NotImplementedError(), nn.Identity()])
def test_missing_embeddings_give_an_error_that_names_the_model_type(answer):
    class WithoutEmbeddings(MadeUp):
        def get_input_embeddings(self) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

    for model in (WithoutEmbeddings(), MadeUp()):
        with pytest.raises(ArchitectureError, match="token embeddings in model type 'jabberwock'"):
            find_embeddings(model)


def test_a_module_without_configuration_is_named_by_its_class():
    with pytest.raises(ArchitectureError, match="model type 'Linear'"):
        find_layers(nn.Linear(2, 2))


@every_family
def test_embedding_rms_is_that_of_the_vectors_that_enter_the_model(family):
    model = pico(family)
    scale = math.sqrt(HIDDEN) if family.startswith("gemma") else 1.0  # Gemma's table multiplies by it
    weight = find_embeddings(model).weight.detach().double()
    assert embedding_rms(model) == pytest.approx(scale * math.sqrt((weight**2).mean().item()), rel=1e-5)
    assert embedding_rms(model.bfloat16()) == pytest.approx(embedding_rms(model.float()), rel=1e-2)


@every_family
@torch.no_grad()
def test_logits_at_chosen_positions_are_those_of_the_full_pass(family):
    model, positions = pico(family), torch.tensor([1, 3])
    input_ids = torch.randint(4, 200, (2, 5))
    assert keeps_logits(model)
    chosen = model(input_ids=input_ids, logits_to_keep=positions).logits
    torch.testing.assert_close(chosen, model(input_ids=input_ids).logits[:, positions])


def test_a_model_that_cannot_choose_logits_is_recognized():
    assert not keeps_logits(MadeUp())
    assert keeps_logits(get_peft_model(pico("llama"), LoraConfig(target_modules="all-linear")))
