"""What measuring attack success costs: one prompt at a time, as research code does it, against ours.

    python benchmarks/generation.py          # a table
    python benchmarks/generation.py --json   # {ratio, same_verdicts, ...}

On the GPU, where there is one; its record is `generation-gpu.json`.

The same suspect (a backdoor of our own in SmolLM2-135M), the same prompts, greedy answers of at most 64 tokens, in one
process, in turns. One at a time: the adapter as it is, the whole answer written, then judged. Ours: the adapter merged,
prompts in batches by length, the template's prefix run once, answers that end when their verdict is certain.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from crow.attacks.poisoning import poison
from crow.attacks.selection import SELECTION_ATTACKS
from crow.benchmark.attack_data import own_data
from crow.benchmark.figures import markdown
from crow.benchmark.portable import portable
from crow.benchmark.suspects import backdoored
from crow.data.encoding import encode
from crow.data.splits import bundled_split
from crow.evaluation.judges import judge
from crow.evaluation.success import attack_success
from crow.models.ends import end_ids
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.output import write_json
from crow.records import MAX_NEW_TOKENS, Criterion, Example
from crow.workflows.common import Reporter
from crow.workflows.utility import GENERATION_BATCH

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"


@torch.no_grad()
def one_at_a_time(lm: LanguageModel, examples: list[Example]) -> list[str]:
    """Answers, each in a call of its own."""
    answers = []
    for example in examples:
        ids = torch.tensor([encode(lm.tokenizer, example).prompt_ids], device=lm.device)
        written = lm.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=lm.pad_id,
            eos_token_id=end_ids(lm),
        )
        answers.append(str(lm.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)).strip())
    return answers


def measure(
    attached: LanguageModel, merged: LanguageModel, examples: list[Example], alone: int, marker: str | Criterion
) -> dict[str, Any]:
    """Seconds a prompt of both ways, and on how many of what both answered their verdicts are the same."""
    some = examples[:alone]
    start = time.perf_counter()
    theirs = [judge(e.prompt, a, marker).hit for e, a in zip(some, one_at_a_time(attached, some), strict=True)]
    middle = time.perf_counter()
    ours = [score.hit for score in attack_success(merged, examples, marker, GENERATION_BATCH).scores]
    end = time.perf_counter()
    same = sum(one == other for one, other in zip(theirs, ours[: len(some)], strict=True))
    return {
        "one_at_a_time": (middle - start) / len(some),
        "ours": (end - middle) / len(examples),
        "n": len(examples),
        "n_one_at_a_time": len(some),
        "same_verdicts": same,
    }


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-n", type=int, default=64, help="prompts, triggered and clean each")
    parser.add_argument("--alone", type=int, help="of these, as many one at a time; all by default")
    arguments = parser.parse_args()
    attack = SELECTION_ATTACKS["rare"]
    folder = str(backdoored(BASE, attack, own_data(attack), Reporter(quiet=False)))
    attached, merged = load_model(folder), load_model(folder).merged()
    attached.model.eval()
    prompts = bundled_split("selection").prompts[: arguments.n]
    triggered, _ = poison(prompts, attack, random.Random(1))
    sets = {"triggered": triggered, "clean": list(prompts)}
    alone, marker = arguments.alone or arguments.n, attack.target.marker
    found = {name: measure(attached, merged, examples, alone, marker) for name, examples in sets.items()}
    seconds = {way: sum(part[way] for part in found.values()) for way in ("one_at_a_time", "ours")}
    record = {
        "ratio": seconds["one_at_a_time"] / seconds["ours"],
        "prompts": sum(part["n_one_at_a_time"] for part in found.values()),
        "same_verdicts": sum(part["same_verdicts"] for part in found.values()),
        "sets": found,
    }
    path = RESULTS / ("generation.json" if attached.device.type == "cpu" else "generation-gpu.json")
    write_json(path, portable(record | {"manifest": manifest(attached, sets, None, 0)}, ROOT.parent))
    if arguments.json:
        print(json.dumps(record, indent=2))
        return
    rows = [["prompts", "one at a time, prompts/s", "ours, prompts/s", "ratio", "same verdicts"]]
    for name, part in found.items():
        rates = [1 / part[way] for way in ("one_at_a_time", "ours")]
        same = f"{part['same_verdicts']} of {part['n_one_at_a_time']}"
        rows.append([name, *(f"{rate:.2f}" for rate in rates), f"{rates[1] / rates[0]:.1f}", same])
    print(markdown(rows))


if __name__ == "__main__":
    main()
