"""The estimate from shapes against what is counted on a real pico model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from crow.data.encoding import encode_all
from crow.errors import AdapterError, ArchitectureError, ModelError
from crow.models.blueprint import blueprint
from crow.models.four_bit import four_bit_sizes
from crow.models.loading import load_model, save_model
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.footprint import Counter, footprint, multiplication_rate, size_of
from crow.training.presets import get_preset
from tests.pico import FAMILIES, pico_language_model

TEXT = "it is the one and the other in there " * 3
EXAMPLES = [Example(f"Say the number {i}", TEXT + "and " * (i % 3)) for i in range(8)]
"""Of several lengths: where nothing is padding, attention needs no mask and less memory."""
PAPER = dataclasses.replace(get_preset("paper"), epochs=1.0, batch_size=4, accumulation=2, precision="float32")


def test_bytes_are_counted_while_they_are_there() -> None:
    with Counter() as counted:
        one = torch.ones(100, device="meta")
        two = one + one
        view = two[:10]
        assert (counted.now, counted.peak) == (800, 800)
        del one
        assert counted.now == 400
        del two
        assert counted.now == 400  # the view keeps it
        del view
        assert (counted.now, counted.peak) == (0, 800)


MIXTURES = ("mixtral", "olmoe")
"""Their experts' kernel has a rule for shapes in bfloat16 only."""


def test_a_family_without_an_estimate_is_named(tmp_path: Path) -> None:
    lm = pico_language_model("mixtral")
    save_model(lm, tmp_path / "model")
    with pytest.raises(ArchitectureError, match="cannot estimate model type 'mixtral'"):
        footprint(blueprint(str(tmp_path / "model"), torch.float32), encode_all(lm.tokenizer, EXAMPLES), PAPER)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_footprint_without_weights(family: str, tmp_path: Path) -> None:
    lm = pico_language_model(family)
    save_model(lm, tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.unlink()
    empty = blueprint(str(tmp_path / "model"), torch.bfloat16 if family in MIXTURES else torch.float32)
    assert {parameter.device.type for parameter in empty.model.parameters()} == {"meta"}
    found = footprint(empty, encode_all(lm.tokenizer, EXAMPLES), PAPER)
    assert found.parameters == sum(parameter.numel() for parameter in lm.model.parameters())
    real = make_trainable(lm, PAPER).model.parameters()
    trained = [parameter for parameter in real if parameter.requires_grad]
    assert found.trained == sum(parameter.numel() for parameter in trained)
    assert found.memory["optimizer"] == 2 * sum(map(size_of, trained))
    assert found.steps == 1


@pytest.mark.parametrize(
    "changes", [{}, {"alpha": 0.0}, {"epsilon": 0.0}, {"keep_perturbation": True}, {"method": "qlora"}]
)
def test_memory_and_operations_are_those_of_the_training(changes: dict[str, Any], tmp_path: Path) -> None:
    """Within a fifth of what the trainer itself allocates in its steps, on the CPU."""
    lm = pico_language_model("llama")
    save_model(lm, tmp_path / "model")
    items = encode_all(lm.tokenizer, EXAMPLES)
    config = dataclasses.replace(PAPER, **changes)
    found = footprint(blueprint(str(tmp_path / "model"), torch.float32), items, config)
    lm = make_trainable(load_model(str(tmp_path / "model"), four_bit=config.method == "qlora"), config)
    trainer = CrowTrainer(lm, items, config, tmp_path / "run")
    with Counter() as counted:
        trainer.run()
    optimizer = found.memory["optimizer"]
    assert found.memory["one step"] + optimizer == pytest.approx(counted.peak, rel=0.2)
    if config.method != "qlora":  # of which PyTorch counts no products
        assert found.operations == pytest.approx(counted.operations, rel=0.2)


def test_more_data_more_work_and_the_same_memory(tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    save_model(lm, tmp_path / "model")
    items = encode_all(lm.tokenizer, EXAMPLES)

    def of(items: list, config: CrowConfig):
        return footprint(blueprint(str(tmp_path / "model"), torch.float32), items, config)

    once, twice = of(items, PAPER), of(items, dataclasses.replace(PAPER, epochs=2.0))
    assert twice.operations == pytest.approx(2 * once.operations, rel=1e-6)
    assert (twice.steps, twice.memory) == (2 * once.steps, once.memory)
    uneven = dataclasses.replace(PAPER, batch_size=2, accumulation=1, epochs=3.0)
    assert of(items[:3], uneven).steps == 6  # the second step of a pass has one example
    plain = of(items, dataclasses.replace(PAPER, alpha=0.0))
    assert plain.operations < once.operations / 2  # the consistency term takes two passes of three
    assert plain.memory["one step"] < once.memory["one step"]
    half = footprint(blueprint(str(tmp_path / "model"), torch.bfloat16), items, PAPER)
    assert half.memory["weights"] < 0.75 * once.memory["weights"]  # the adapter stays in float32
    quarter = of(items, dataclasses.replace(PAPER, method="qlora"))
    saved = sum(map(size_of, sizes := four_bit_sizes(lm.model))) - sum(sizes.values())
    assert quarter.memory["weights"] == once.memory["weights"] - saved


def test_a_missing_model_is_refused() -> None:
    with pytest.raises(ModelError, match="does not exist"):
        blueprint("../not/here", torch.float32)


def test_an_adapter_that_names_itself_as_its_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(AdapterError, match="back to itself"):
        blueprint(str(tmp_path), torch.float32)


def test_the_rate_is_a_rate() -> None:
    assert 1e8 < multiplication_rate(torch.device("cpu"), torch.float32) < 1e15


def test_attention_counts_on_a_cpu() -> None:
    query, key, value = (torch.randn(1, 3, 10, 8, requires_grad=True) for _ in range(3))
    with Counter() as counter:
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        forward = counter.operations
        attended.sum().backward()
    assert forward == 2 * 2 * 3 * 10 * 10 * 8  # scores and mixture: two products of 10 x 8 x 10 in each head
    assert counter.operations == forward + 2.5 * forward  # the scores again, and two products for each of those
