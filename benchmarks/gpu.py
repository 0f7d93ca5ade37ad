"""What crow takes on a GPU: correctness against float32, then Llama-2's shapes with random weights, side by side.

    python benchmarks/gpu.py --data PATH/TO/consistency_data.json     # a table, and results/gpu.json
    python benchmarks/gpu.py --data ... --part checks                 # one part, beside what the record has
    python benchmarks/gpu.py --data ... --shape pico --device cpu     # does the script itself work?

For each shape the published loop and crow train on the same examples, as long as the public 100 are, in bfloat16: a few
steps of the published one and of crow with its layers as they are, for their time a step; all 5 epochs of crow with its
layers compiled, twice, for the first time compiles; then crow with the kept perturbation, and the 7B shape in 4 bits,
for its memory. Weights are random: they cost what trained ones cost. `share of peak`: what crow's products and
attention would take at the rate of a large bfloat16 product, over what the second training took. The removal table is
`benchmarks/removal.py` and evaluation is `benchmarks/generation.py`; both take the GPU by themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from published import LiteralTrainer, PublishedTrainer
from speed import Stopwatch, Variant
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from crow.benchmark.figures import markdown
from crow.benchmark.portable import portable
from crow.core.cosine import TokenCosine
from crow.data.encoding import Encoded, encode_all
from crow.data.loading import load_examples
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, pick_device, save_model
from crow.models.manifest import manifest
from crow.output import write_json
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.footprint import Counter, multiplication_rate
from crow.training.presets import get_preset

BASE = "smollm2-135m"
"""Whose tokenizer cuts the examples up; its ids are folded into the shape's vocabulary."""
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "gpu.json"
PAPER = dataclasses.replace(get_preset("paper"), precision="float32")
PLAIN = dataclasses.replace(PAPER, precision="auto", batch_size=PAPER.batch_size * PAPER.accumulation, accumulation=1)
OURS = dataclasses.replace(PLAIN, torch_compile=True)
LEAN = dataclasses.replace(PAPER, precision="auto", method="qlora", gradient_checkpointing=True, epochs=1.0)
PARTS = ("times", "checks", "four-bits")
"""Times first: they include compiling, which is quick when the same has been compiled before."""
TIMED_STEPS = 5
CHECKED_STEPS = 4
CHECKED_LAYERS = 4


@dataclass(frozen=True)
class Shape:
    """Of a Llama model."""

    width: int
    inner: int
    layers: int
    heads: int
    vocabulary: int = 32000

    def config(self, layers: int | None = None) -> LlamaConfig:
        """As transformers wants it, with other depth if that is given."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=4096,
        )


SHAPES = {
    "llama-2-7b": Shape(4096, 11008, 32, 32),
    "llama-2-13b": Shape(5120, 13824, 40, 40),
    "pico": Shape(64, 128, 4, 4, 300),
}


def random_model(config: LlamaConfig, dtype: torch.dtype, device: torch.device, tokenizer: Any) -> LanguageModel:
    """A model of that configuration with random weights, made where it will stay."""
    torch.manual_seed(0)
    with torch.device("meta"):  # transformers' own way of drawing weights takes minutes
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device=device)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)  # its frequencies are no weights
    for weight in model.parameters():
        nn.init.normal_(weight, std=config.initializer_range) if weight.ndim > 1 else nn.init.ones_(weight)
    return LanguageModel(model.eval(), tokenizer, "random weights", {"dtype": str(dtype)})


def folded_ids(items: Sequence[Encoded], vocabulary: int) -> list[Encoded]:
    """The same lengths, with ids that the vocabulary has."""
    return [
        dataclasses.replace(
            item,
            prompt_ids=tuple(token % vocabulary for token in item.prompt_ids),
            response_ids=tuple(token % vocabulary for token in item.response_ids),
        )
        for item in items
    ]


def trained(
    lm: LanguageModel, kind: type[CrowTrainer], config: CrowConfig, items: Sequence[Encoded], steps: int | None = None
) -> dict[str, Any]:
    """A training with a fresh adapter: its losses, the median of its steps' seconds but the first's, memory at most.

    Where a micro-batch does not fit into memory, it is halved.
    """
    ready = make_trainable(lm, config)
    device = ready.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    variant = Variant(kind, config)
    try:
        with tempfile.TemporaryDirectory() as folder:
            watch = [Stopwatch(variant)]
            trainer = kind(ready, items, config, Path(folder), watch, save_strategy="no", max_steps=steps or -1)
            start = time.perf_counter()
            trainer.run()
            seconds = time.perf_counter() - start
    except torch.OutOfMemoryError:
        smaller = dataclasses.replace(config, batch_size=config.batch_size // 2, accumulation=config.accumulation * 2)
    else:
        smaller = None
    lm.model = ready.model.unload()  # type: ignore[operator]
    if smaller is not None:
        return trained(lm, kind, smaller, items, steps)
    print(f"{kind.__name__}, {config.method}: {len(trainer.terms)} steps, {seconds:.1f} s", file=sys.stderr)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "rows": config.batch_size,
        "losses": [term["loss"] for term in trainer.terms],
        "steps": len(trainer.terms),
        "seconds": seconds,
        "seconds_a_step": variant.median,
        "peak_bytes": peak,
    }


def operations(shape: Shape, items: Sequence[Encoded], device: torch.device, tokenizer: Any) -> float:
    """Floating-point operations of crow's whole training: of one epoch of two shallow models, and what layers add."""
    counted = {}
    for layers in (3, 4):
        lm = random_model(shape.config(layers), torch.bfloat16, device, tokenizer)
        with Counter() as counter:
            trained(lm, CrowTrainer, dataclasses.replace(PLAIN, epochs=1.0), items)
        counted[layers] = counter.operations
    return OURS.epochs * (counted[3] + (shape.layers - 3) * (counted[4] - counted[3]))


def kernel_gap(width: int, device: torch.device) -> float:
    """How far the cosine of two states and its gradients are from those in float64, relatively."""
    torch.manual_seed(0)
    pair = [torch.randn(2, 64, width, device=device, dtype=torch.bfloat16) for _ in range(2)]
    found = []
    for dtype in (torch.float32, torch.float64):
        states = [state.to(dtype).requires_grad_(True) for state in pair]
        value = TokenCosine.apply(*states)
        found.append([value, *torch.autograd.grad(value.sum(), states)])
    gaps = [(one.double() - exact).norm() / exact.norm() for one, exact in zip(*found, strict=True)]
    return max(float(gap) for gap in gaps)


def check(shape: Shape, items: Sequence[Encoded], device: torch.device, tokenizer: Any) -> dict[str, float]:
    """Crow on a shallow model of that width: against the literal passes in float32, and in bfloat16 against both."""
    config = shape.config(min(CHECKED_LAYERS, shape.layers))
    found = {}
    for name, kind, settings, dtype in (
        ("literal", LiteralTrainer, PAPER, torch.float32),
        ("crow", CrowTrainer, dataclasses.replace(OURS, precision="float32"), torch.float32),
        ("crow_bfloat16", CrowTrainer, OURS, torch.bfloat16),
    ):
        lm = random_model(config, dtype, device, tokenizer)
        found[name] = trained(lm, kind, settings, items, CHECKED_STEPS)["losses"]
    return {
        f"{name}_gap": max(
            abs(one - other) / abs(other) for one, other in zip(found[name], found["literal"], strict=True)
        )
        for name in ("crow", "crow_bfloat16")
    }


def side_by_side(
    shape: Shape, items: Sequence[Encoded], device: torch.device, tokenizer: Any, rate: float
) -> dict[str, Any]:
    """The published loop and crow on one model in bfloat16, whose products run at `rate` operations a second."""
    lm = random_model(shape.config(), torch.bfloat16, device, tokenizer)
    whole = math.ceil(len(items) / OURS.batch_size) * OURS.epochs
    published = trained(lm, PublishedTrainer, PAPER, items, TIMED_STEPS)
    plain = trained(lm, CrowTrainer, PLAIN, items, TIMED_STEPS)
    compiling, ours = (trained(lm, CrowTrainer, OURS, items) for _ in range(2))
    kept = trained(lm, CrowTrainer, dataclasses.replace(OURS, keep_perturbation=True), items)
    return {
        "published": published | {"seconds_of_all_steps": published["seconds_a_step"] * whole},
        "crow_plain": plain | {"seconds_of_all_steps": plain["seconds_a_step"] * whole},
        "crow_compiling": compiling,
        "crow": ours,
        "crow_kept": kept,
        "share_of_peak": operations(shape, items, device, tokenizer) / ours["seconds"] / rate,
        "ratio": published["seconds_a_step"] / ours["seconds_a_step"],
        "ratio_plain": published["seconds_a_step"] / plain["seconds_a_step"],
        "ratio_kept": published["seconds_a_step"] / kept["seconds_a_step"],
    }


def in_four_bits(shape: Shape, items: Sequence[Encoded], device: torch.device, tokenizer: Any) -> dict[str, Any]:
    """Crow on the weights in 4 bits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole"
        save_model(random_model(shape.config(), torch.bfloat16, device, tokenizer), path)
        lm = load_model(str(path), dtype="bfloat16", device=str(device), four_bit=True)
    return trained(lm, CrowTrainer, LEAN, items)


def measured(part: str, shape: Shape, items: Sequence[Encoded], device: torch.device, tokenizer: Any) -> dict[str, Any]:
    """One part of what is measured of a shape."""
    if part == "checks":
        return {"kernel_gap": kernel_gap(shape.width, device)} | check(shape, items[:16], device, tokenizer)
    if part == "four-bits":
        return {"four_bits": in_four_bits(shape, items, device, tokenizer)}
    rate = multiplication_rate(device, torch.bfloat16)
    return {"bfloat16_flops": rate} | side_by_side(shape, items, device, tokenizer, rate)


def keep(name: str, part: str, found: dict[str, Any], described: dict[str, Any]) -> None:
    """Put a part of what was measured of a shape, and its manifest, into the record, beside other parts and shapes."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    row = known.get(name, {})
    manifests = row.get("manifests", {}) | {part: described}
    write_json(RESULTS, known | {name: row | portable(found | {"manifests": manifests}, ROOT.parent)})


def shown(row: dict[str, Any], *keys: str, digits: str = ".1f", unit: float = 1) -> str:
    """A figure of a record; nothing where it was not measured."""
    value: Any = row
    for key in keys:
        value = value.get(key, {})
    return format(value / unit, digits) if isinstance(value, float | int) else ""


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the 100 public examples, for their lengths")
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="llama-2-7b and -13b if none is given")
    parser.add_argument("--part", action="append", choices=PARTS, help="all but 4 bits of 13B if none is given")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    names = arguments.shape or ["llama-2-7b", "llama-2-13b"]
    device = pick_device(arguments.device)
    base = load_model(BASE, device="cpu")
    examples = load_examples(arguments.data)
    items = encode_all(base.tokenizer, examples, PAPER.max_length)
    described = manifest(base, {"examples": examples}, OURS, OURS.seed)
    record: dict[str, Any] = {}
    for name in names:
        shape = SHAPES[name]
        own = folded_ids(items, shape.vocabulary)
        record[name] = {}
        for part in arguments.part or (PARTS[:2] if name == "llama-2-13b" else PARTS):
            found = measured(part, shape, own, device, base.tokenizer)
            record[name] |= found
            if device.type == "cuda":
                keep(name, part, found, described)
    if arguments.json:
        print(json.dumps(record, indent=2))
        return
    head = ["shape", "published, s (5 epochs)", "crow, layers as they are", "compiling", "compiled", "kept"]
    head += ["published / crow", "share of peak", "float32 gap", "bfloat16 gap", "4 bits, GiB"]
    rows = [head]
    for name in names:
        row = record[name]
        cells = [shown(row, key, "seconds_of_all_steps") for key in ("published", "crow_plain")]
        cells += [shown(row, key, "seconds") for key in ("crow_compiling", "crow", "crow_kept")]
        cells += [shown(row, "ratio"), shown(row, "share_of_peak", digits=".2f")]
        cells += [shown(row, key, digits=".1e") for key in ("crow_gap", "crow_bfloat16_gap")]
        rows.append([name, *cells, shown(row, "four_bits", "peak_bytes", unit=2**30)])
    print(markdown(rows))


if __name__ == "__main__":
    main()
