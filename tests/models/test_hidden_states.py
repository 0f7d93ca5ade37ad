from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from crow.core import consistency_loss
from crow.errors import ArchitectureError
from crow.models.architecture import find_embeddings, find_layers
from crow.models.hidden_states import capture_hidden_states, edit_hidden_states
from tests.pico import FAMILIES, LAYERS, pico

FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "falcon": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
}
"""Where the norm after the last layer is; `model.norm` in all other families."""

every_family = pytest.mark.parametrize("family", FAMILIES)


def batch() -> dict[str, torch.Tensor]:
    """Random tokens, the second row with padding on the right."""
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    return {"input_ids": torch.randint(4, 200, (2, 6)), "attention_mask": mask}


def hooks(model: torch.nn.Module) -> int:
    """How many forward hooks are registered anywhere in the model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@every_family
@torch.no_grad()
def test_captured_states_are_those_of_transformers_but_the_last_which_is_raw(family):
    model, inputs = pico(family), batch()
    with capture_hidden_states(model) as captured:
        theirs = model(**inputs, output_hidden_states=True).hidden_states
    assert len(captured.states) == len(theirs) == LAYERS + 1
    for ours, expected in zip(captured.states[:-1], theirs[:-1], strict=True):
        assert torch.equal(ours, expected)
    raw = captured.states[-1]
    assert not torch.allclose(raw, theirs[-1])
    norm = model.get_submodule(FINAL_NORM.get(family, "model.norm"))
    torch.testing.assert_close(norm(raw), theirs[-1])


@every_family
def test_gradients_reach_the_embeddings_from_every_state(family):
    model, inputs = pico(family), batch()
    embeddings = find_embeddings(model)(inputs["input_ids"]).detach().requires_grad_(True)
    with capture_hidden_states(model) as captured:
        model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
    for state in captured.states:
        (slope,) = torch.autograd.grad(state[inputs["attention_mask"] == 1].sin().sum(), embeddings, retain_graph=True)
        assert slope.isfinite().all()
        assert slope.abs().sum() > 0


def test_a_later_pass_replaces_the_states_and_leaving_removes_the_hooks():
    model, inputs = pico("llama"), batch()
    with capture_hidden_states(model) as captured:
        model(**inputs)
        first = captured.states
        model(input_ids=inputs["input_ids"][:1, :3])
        assert captured.states[0].shape[:2] == (1, 3)
        assert len(captured.states) == len(first) == LAYERS + 1
    kept = captured.states
    model(**inputs)
    assert captured.states is kept
    assert hooks(model) == 0


@pytest.mark.parametrize("context", [capture_hidden_states, lambda model: edit_hidden_states(model, {0: torch.neg})])
def test_hooks_are_removed_when_the_pass_fails(context):
    model = pico("llama")
    beyond_the_vocabulary = torch.tensor([[10**6]])
    with pytest.raises(IndexError), context(model):
        model(input_ids=beyond_the_vocabulary)
    assert hooks(model) == 0
    with context(model):
        assert hooks(model) > 0


def test_states_of_an_adapter_include_its_effect():
    model, inputs = pico("llama"), batch()
    with torch.no_grad(), capture_hidden_states(model) as before:
        model(**inputs)
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad(), capture_hidden_states(wrapped) as after:
        wrapped(**inputs)
    assert torch.equal(before.states[0], after.states[0])
    assert not torch.allclose(before.states[1], after.states[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_states_and_gradients(use_reentrant):
    model, inputs = pico("llama").train(), batch()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        with capture_hidden_states(model) as captured:
            model(**inputs, use_cache=False)
            loss = consistency_loss(captured.states, inputs["attention_mask"])
            loss.backward()
        weight = find_layers(model)[0].get_parameter("mlp.down_proj.weight")
        assert weight.grad is not None
        results.append((len(captured.states), loss.item(), weight.grad.clone()))
    assert results[0][:2] == results[1][:2]
    torch.testing.assert_close(results[0][2], results[1][2])


@every_family
@torch.no_grad()
def test_editing_with_the_identity_changes_nothing(family):
    model, inputs = pico(family), batch()
    expected = model(**inputs).logits
    with edit_hidden_states(model, {layer: lambda state: state for layer in range(LAYERS)}):
        assert torch.equal(model(**inputs).logits, expected)


@every_family
@torch.no_grad()
def test_an_edit_is_read_by_the_layer_above_and_by_none_below(family):
    model, inputs = pico(family), batch()
    with capture_hidden_states(model) as clean:
        model(**inputs)
    with edit_hidden_states(model, {1: lambda state: state + 1}), capture_hidden_states(model) as edited:
        model(**inputs)
    assert torch.equal(edited.states[0], clean.states[0])
    assert torch.equal(edited.states[1], clean.states[1])  # H^(1) as layer 1 left it; layer 2 read the edit
    assert not torch.allclose(edited.states[2], clean.states[2])


@torch.no_grad()
def test_editing_layer_zero_is_perturbing_the_embeddings():
    model, inputs = pico("llama"), batch()
    embeddings = find_embeddings(model)(inputs["input_ids"])
    delta = torch.randn_like(embeddings)
    expected = model(inputs_embeds=embeddings + delta, attention_mask=inputs["attention_mask"]).logits
    with edit_hidden_states(model, {0: lambda state: state + delta}):
        assert torch.equal(model(**inputs).logits, expected)
    assert hooks(model) == 0


def test_a_module_without_layers_is_refused():
    with pytest.raises(ArchitectureError), capture_hidden_states(torch.nn.Linear(2, 2)):
        pass
