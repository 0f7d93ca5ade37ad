"""What a step of training costs: the published loop, plain finetuning, crow and its options, side by side.

    python benchmarks/speed.py             # a table
    python benchmarks/speed.py --json      # the same as ratios
    python benchmarks/speed.py --whole     # also whole purifications and the search; tens of minutes more
    python benchmarks/speed.py --table     # what has been measured, into docs/performance.md

One process, one model (SmolLM2-135M), the same examples, as many examples an optimizer step. Variants take turns, round
after round; times are medians over all steps but the first of each turn. Memory is what a step's operations had
allocated at most, as the dispatcher counts it, and the weights. `share of peak`: the floating-point operations of a
turn's steps, on average, over what a large matrix product on the same machine would have done in the median time,
measured before each turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pages import write_table
from transformers import TrainerCallback
from variants import OURS, STEP, Variant, variants

from crow.attacks.selection import SELECTION_ATTACKS
from crow.benchmark.attack_data import own_data
from crow.benchmark.figures import markdown
from crow.benchmark.portable import portable
from crow.benchmark.suspects import backdoored
from crow.data.encoding import Encoded, encode_all
from crow.data.splits import bundled_split
from crow.defenses.purification import purify
from crow.inversion import consensus
from crow.inversion.consensus import search_soft_triggers
from crow.inversion.probe import Probe, frozen, shortest_prompts
from crow.inversion.soft_trigger import SearchConfig
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.output import write_json
from crow.training.adapter import make_trainable
from crow.training.footprint import CPU, Counter, multiplication_rate, size_of
from crow.training.presets import get_preset
from crow.workflows.common import Reporter

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "speed.json"
PAGE = ROOT.parent / "docs" / "performance.md"


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


ASKED = (
    (
        "crow's losses against the literal passes', relative, the largest of a training",
        "largest_loss_gap_to_literal",
        "at most",
        1e-4,
    ),
    ("crow, published objective: tokens/s over the published loop's", "ratio_vs_literal", "at least", 2.2),
    ("its time over plain finetuning's", "ratio_vs_finetuning", "at most", 2.3),
    ("its memory over plain finetuning's", "peak_memory_ratio", "at most", 1.25),
    ("its share of a large product's rate", "matmul_share", "at least", 0.6),
    ("perturbation kept, bfloat16: tokens/s over the published loop's", "ratio_vs_literal_fastest", "at least", 4),
    ("its time over plain finetuning's", "ratio_vs_finetuning_fastest", "at most", 1.25),
    (
        "a whole default purification's time over five epochs of the published loop",
        "whole_vs_published",
        "at most",
        0.33,
    ),
    ("the search: one start after another over several in a batch, same scores", "search_ratio", "at least", 3),
)
"""What was asked: in words, its name in the record, and the bound."""


def asked_table(record: dict[str, Any]) -> str:
    """What was asked beside what was measured, what misses in bold."""
    rows = [["", "wanted", "measured"]]
    for label, name, bound, wanted in ASKED:
        value = record.get(name)
        met = value is not None and (value <= wanted if bound == "at most" else value >= wanted)
        shown = "not measured" if value is None else f"{value:.2g}" if value < 0.01 else f"{value:.2f}"
        rows.append([label, f"{bound} {wanted:g}", shown if met else f"**{shown}**"])
    return markdown(rows)


def steps_table(record: dict[str, Any]) -> str:
    """What each way to train costs a step, beside plain finetuning."""
    base = record["variants"]["c plain finetuning"]
    rows = [["", "seconds a step (range)", "tokens/s", "time / c", "memory / c", "of a large product's rate"]]
    for name, each in record["variants"].items():
        seconds = f"{each['seconds_a_step']:.1f} ({each['fastest']:.1f} to {each['slowest']:.1f})"
        beside = [f"{each[key] / base[key]:.2f}" for key in ("seconds_a_step", "peak_bytes")]
        rows.append([name, seconds, f"{each['tokens_a_second']:.0f}", *beside, f"{each['share_of_peak']:.2f}"])
    return markdown(rows)


def floor_table(record: dict[str, Any]) -> str:
    """What each way's arithmetic would take at the rate of a large matrix product."""
    rate = record["matmul_gflops"]
    rows = [["", "GFLOP a step", f"at {rate:.0f} GFLOP/s", "measured", "over the floor"]]
    for name, each in record["variants"].items():
        if "bfloat16" in name:
            continue  # which has a rate of its own
        operations, seconds = each["operations_a_step"] / 1e9, each["seconds_a_step"]
        floor = operations / rate
        rows.append([name, f"{operations:.0f}", f"{floor:.1f} s", f"{seconds:.1f} s", f"x {seconds / floor:.2f}"])
    return markdown(rows)


TABLES = {"asked": asked_table, "steps": steps_table, "floor": floor_table}


def show(record: dict[str, Any], as_json: bool) -> None:
    """Write the tables into the page, and print one, or the record."""
    for name, table in TABLES.items():
        write_table(PAGE, name, table(record))
    told = {key: value for key, value in record.items() if key != "manifest"}
    print(json.dumps(told, indent=2) if as_json else f"\n{steps_table(record)}")


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--whole", action="store_true", help="also whole purifications and the search")
    parser.add_argument("--table", action="store_true", help="measure nothing, show what has been measured")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of a turn")
    arguments = parser.parse_args()
    if arguments.table:
        show(json.loads(RESULTS.read_text(encoding="utf-8")), arguments.json)
        return
    lm = load_model(BASE)
    examples = bundled_split("purification").pairs
    items = encode_all(lm.tokenizer, examples, 256)
    chosen = variants()
    tokens, rates = measure(chosen, items, arguments.rounds, arguments.steps)
    record = summary(chosen, rates, tokens)
    if arguments.whole:
        record |= whole(items, chosen["a published loop"])
    record["manifest"] = manifest(lm, {"examples": examples}, OURS, OURS.seed)
    record = portable(record, ROOT.parent)
    write_json(RESULTS, record)
    show(record, arguments.json)


if __name__ == "__main__":
    main()
