"""One process of a `crow purify` that `test_several_processes.py` launches, with made-up searches.

The first argument is how many of them find an answer.
"""

from __future__ import annotations

import os
import sys

import torch
from accelerate.utils import FullyShardedDataParallelPlugin

import crow.cli
from crow.defenses import searches
from crow.inversion.consensus import SearchResult, SoftTrigger
from crow.inversion.perturbation import Perturbation
from crow.training.crow_trainer import CrowTrainer
from tests.training.distributed_run import spread_weights


def found() -> SearchResult:
    answer = torch.tensor([20, 21, 22, 23, 24])
    perturbation = Perturbation(1, None, answer[:1], torch.zeros(32))
    return SearchResult([SoftTrigger(perturbation, 1.0, True, "one two three four five", answer)])


def main() -> None:
    """`crow` with the other arguments; the weights are cut up where the launcher's configuration says so."""
    answers = iter([found() for _ in range(int(sys.argv.pop(1)))])
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        train = CrowTrainer.run

        def run(trainer: CrowTrainer, resume: bool = False) -> None:
            spread_weights(trainer, FullyShardedDataParallelPlugin())
            train(trainer, resume)

        CrowTrainer.run = run
    searches.search_soft_triggers = lambda *_: next(answers, SearchResult([]))
    torch.set_num_threads(1)
    crow.cli.main()


if __name__ == "__main__":
    main()
