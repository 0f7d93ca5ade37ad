"""What a step of training costs: the published loop, plain finetuning, crow and its options, side by side.

    python benchmarks/speed.py             # a table
    python benchmarks/speed.py --json      # the same as ratios
    python benchmarks/speed.py --whole     # also whole purifications and the search; tens of minutes more

One process, one model (SmolLM2-135M), the same examples, as many examples an optimizer step. Variants take turns, round
after round; times are medians over all steps but the first of each turn. Memory is what a step's operations had
allocated at most, as the dispatcher counts it, and the weights. `share of peak`: the floating-point operations of a
turn's steps, on average, over what a large matrix product on the same machine would have done in the median time,
measured before each turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from published import LiteralTrainer, PublishedTrainer, Ungrouped
from torch import Tensor
from transformers import TrainerCallback

from crow.attacks.selection import SELECTION_ATTACKS
from crow.benchmark.attack_data import own_data
from crow.benchmark.portable import portable
from crow.benchmark.suspects import backdoored
from crow.data.encoding import Encoded, encode_all
from crow.data.splits import bundled_split
from crow.defenses.purification import purify
from crow.inversion import consensus
from crow.inversion.consensus import search_soft_triggers
from crow.inversion.probe import Probe, frozen, shortest_prompts
from crow.inversion.soft_trigger import SearchConfig
from crow.models.hardware import multiplies_bfloat16
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.models.prefix import Prefix
from crow.output import write_json
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.footprint import CPU, Counter, multiplication_rate, size_of
from crow.training.presets import get_preset
from crow.training.trainer import ResponseTrainer
from crow.workflows.common import Reporter

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "speed.json"
OURS = dataclasses.replace(get_preset("paper"), precision="float32", epochs=1.0)
STEP = OURS.batch_size * OURS.accumulation
"""Examples of an optimizer step: the published settings, micro-batches of two."""
WIDE = dataclasses.replace(OURS, batch_size=STEP, accumulation=1)
"""All of them in one pass: the trajectory is the same. On a CPU they no longer fit into its caches."""


class SeparateTrainer(CrowTrainer):
    """crow without what it shares: the FGSM step has a pass of its own."""

    def answers_and_consistency(self, model: Any, inputs: Any, n_tokens: Any) -> tuple[Tensor, Tensor]:
        """The two terms in three passes."""
        return self.answer_loss(model, inputs, n_tokens), self.perturbed_consistency(model, inputs)


class UngroupedTrainer(Ungrouped, CrowTrainer):
    """crow on batches in random order."""


class WholePrefixTrainer(ResponseTrainer):
    """Plain finetuning that runs the template's system message in every row."""

    def answer_loss(self, model: Any, inputs: Any, n_tokens: Any, prefix: Prefix | None = None) -> Tensor:
        """The answers' loss."""
        return super().answer_loss(model, inputs, n_tokens, Prefix(0, []))


@dataclass
class Variant:
    """One way to train."""

    kind: type[ResponseTrainer]
    config: CrowConfig
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    operations: float = 0
    losses: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)


def variants() -> dict[str, Variant]:
    """By name; the letters are those of the table."""
    kept = dataclasses.replace(OURS, keep_perturbation=True)
    half = {
        "d, bfloat16 autocast": Variant(CrowTrainer, dataclasses.replace(OURS, precision="bfloat16")),
        "e kept perturbation, bfloat16": Variant(CrowTrainer, dataclasses.replace(kept, precision="bfloat16")),
    }
    return {
        "a published loop": Variant(PublishedTrainer, OURS),
        "b the same, masks right": Variant(LiteralTrainer, OURS),
        "c plain finetuning": Variant(ResponseTrainer, OURS),
        "d crow, published objective": Variant(CrowTrainer, OURS),
        "c in one pass": Variant(ResponseTrainer, WIDE),
        "c, system message in every row": Variant(WholePrefixTrainer, OURS),
        "d in one pass": Variant(CrowTrainer, WIDE),
        "d, FGSM in a pass of its own": Variant(SeparateTrainer, OURS),
        "d, batches in random order": Variant(UngroupedTrainer, OURS),
        "d, gradient checkpointing": Variant(CrowTrainer, dataclasses.replace(OURS, gradient_checkpointing=True)),
        "e kept perturbation": Variant(CrowTrainer, kept),
        **(half if multiplies_bfloat16(CPU) else {}),  # emulated, it would be slower than float32
    }


class Stopwatch(TrainerCallback):
    """Times optimizer steps; the first of a turn is left out."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        if state.global_step > 1:
            self.variant.seconds.append(time.perf_counter() - self.start)


def turn(variant: Variant, items: Sequence[Encoded], counted: bool) -> None:
    """One training on the items, timed; or counted, which is slower."""
    lm = make_trainable(load_model(BASE), variant.config)
    with tempfile.TemporaryDirectory() as folder:
        watch: list[TrainerCallback] = [] if counted else [Stopwatch(variant)]
        trainer = variant.kind(lm, items, variant.config, Path(folder), watch, save_strategy="no")
        if counted:
            with Counter() as counter:
                trainer.run()
            variant.peak, variant.operations = counter.peak, counter.operations / len(trainer.terms)
            variant.peak += sum(size_of(parameter) for parameter in lm.model.parameters())
        else:
            trainer.run()
            variant.losses = [term["loss"] for term in trainer.terms]


def measure(chosen: dict[str, Variant], items: Sequence[Encoded], rounds: int, steps: int) -> tuple[float, list[float]]:
    """All variants in turn, `rounds` times, on examples enough for that many steps.

    Returns:
        The tokens of a step, and the rates of a large product before each turn.
    """
    count = STEP * steps
    spread = [items[len(items) * i // count] for i in range(count)]
    rates = []
    for number in range(rounds):
        for name, variant in chosen.items():
            if not number:
                turn(variant, spread, counted=True)
            rates.append(multiplication_rate(CPU, torch.float32))
            turn(variant, spread, counted=False)
            print(f"round {number + 1}: {name}: {variant.median:.2f} s a step", flush=True)
    return sum(map(len, spread)) / steps, rates


def summary(chosen: dict[str, Variant], rates: list[float], tokens: float) -> dict[str, Any]:
    """The ratios that matter."""
    rate = statistics.median(rates)
    literal, right, plain, ours = (chosen[name] for name in list(chosen)[:4])
    kept = [variant for name, variant in chosen.items() if name.startswith("e ")]
    fastest = min(kept, key=lambda variant: variant.median)
    gaps = [abs(one - other) / abs(other) for one, other in zip(ours.losses, right.losses, strict=True)]
    shares = {name: variant.operations / variant.median / rate for name, variant in chosen.items()}
    return {
        "ratio_vs_literal": literal.median / ours.median,
        "ratio_vs_finetuning": ours.median / plain.median,
        "ratio_vs_literal_fastest": literal.median / fastest.median,
        "ratio_vs_finetuning_fastest": fastest.median / plain.median,
        "peak_memory_ratio": ours.peak / plain.peak,
        "matmul_share": shares["d crow, published objective"],
        "largest_loss_gap_to_literal": max(gaps),
        "examples_a_step": STEP,
        "matmul_gflops": rate / 1e9,
        "matmul_gflops_range": [min(rates) / 1e9, max(rates) / 1e9],
        "variants": {
            name: {
                "seconds_a_step": variant.median,
                "operations_a_step": variant.operations,
                "fastest": min(variant.seconds),
                "slowest": max(variant.seconds),
                "tokens_a_second": tokens / variant.median,
                "peak_bytes": variant.peak,
                "share_of_peak": shares[name],
                "steps_timed": len(variant.seconds),
            }
            for name, variant in chosen.items()
        },
    }


def whole(items: Sequence[Encoded], published: Variant) -> dict[str, Any]:
    """A whole default purification of a suspect against five epochs of the published loop, by its time a step."""
    report = Reporter(quiet=False)
    attack = SELECTION_ATTACKS["rare"]
    folder = str(backdoored(BASE, attack, own_data(attack), report))
    examples = bundled_split("purification").pairs
    lm = load_model(folder).merged()
    probe = Probe(lm, shortest_prompts(examples, items))
    with frozen(lm.model):
        together, found = timed_search(probe)
        with patch.multiple(consensus, DIRECTED_TOGETHER=1, SCREENED_TOGETHER=1, FOLLOWED_TOGETHER=1, READ_TOGETHER=1):
            alone, same = timed_search(probe)
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        result = purify(lm, examples, get_preset("default"), Path(work) / "run", watch=report.bar)
        ours = time.perf_counter() - start
    theirs = published.median * 5 * len(examples) / STEP
    return {
        "whole_vs_published": ours / theirs,
        "whole_seconds": ours,
        "whole_parts": {**result.seconds, "rounds": result.rounds, "steps": len(result.training)},
        "published_seconds": theirs,
        "search_ratio": alone / together,
        "search_scores": [found, same],
    }


def timed_search(probe: Probe) -> tuple[float, list[float]]:
    """Seconds of a search, and how far answers became one in each start."""
    start = time.perf_counter()
    result = search_soft_triggers(probe, SearchConfig(), 0)
    return time.perf_counter() - start, [trigger.identity for trigger in result.triggers]


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--whole", action="store_true", help="also whole purifications and the search")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of a turn")
    arguments = parser.parse_args()
    lm = load_model(BASE)
    examples = bundled_split("purification").pairs
    items = encode_all(lm.tokenizer, examples, 256)
    chosen = variants()
    tokens, rates = measure(chosen, items, arguments.rounds, arguments.steps)
    record = summary(chosen, rates, tokens)
    if arguments.whole:
        record |= whole(items, chosen["a published loop"])
    record["manifest"] = manifest(lm, {"examples": examples}, OURS, OURS.seed)
    write_json(RESULTS, portable(record, ROOT.parent))
    if arguments.json:
        print(json.dumps({key: value for key, value in record.items() if key != "manifest"}, indent=2))
        return
    base = chosen["c plain finetuning"]
    print("\n| variant | s a step (min to max) | tokens/s | time / c | memory / c | share of peak |")
    print("| --- " * 6 + "|")
    for name, variant in chosen.items():
        shown = record["variants"][name]
        print(
            f"| {name} | {variant.median:.2f} ({shown['fastest']:.2f} to {shown['slowest']:.2f}) "
            f"| {shown['tokens_a_second']:.0f} | {variant.median / base.median:.2f} "
            f"| {variant.peak / base.peak:.2f} | {shown['share_of_peak']:.2f} |"
        )


if __name__ == "__main__":
    main()
