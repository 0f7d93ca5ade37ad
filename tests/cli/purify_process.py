"""One process of a `crow purify` that `test_several_processes.py` launches, with made-up searches.

The first argument says what those find, one after another: the first token of an answer each, with commas between.
"""

from __future__ import annotations

import os
import sys

import torch
from accelerate.utils import FullyShardedDataParallelPlugin

import crow.cli
from crow.defenses import searches
from crow.inversion.soft_trigger import SearchResult
from crow.training import precision
from crow.training.crow_trainer import CrowTrainer
from tests.made_up import collapsed
from tests.training.distributed_run import spread_weights


def main() -> None:
    """`crow` with the other arguments; the weights are cut up where the launcher's configuration says so."""
    answers = iter([collapsed([int(first), 21, 22, 23, 24]) for first in sys.argv.pop(1).split(",")])
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        train = CrowTrainer.run

        def run(trainer: CrowTrainer, resume: bool = False) -> None:
            spread_weights(trainer, FullyShardedDataParallelPlugin())
            train(trainer, resume)

        CrowTrainer.run = run
    searches.search_soft_triggers = lambda *_: next(answers, SearchResult([]))
    # In bfloat16 another order of sums differs by more than the test allows.
    precision.multiplies_bfloat16 = lambda _: False
    torch.set_num_threads(1)
    crow.cli.main()


if __name__ == "__main__":
    main()
