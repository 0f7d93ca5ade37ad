"""Two processes, each with half of every step, take the steps that one takes alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crow.models.interpolation import trained_weights
from tests.training.distributed_run import CONFIGS, trained

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_two_processes_give_the_losses_and_weights_of_one(kind: str, way: str, tmp_path: Path) -> None:
    alone = trained(kind, "alone", 1, tmp_path / "alone")
    file = tmp_path / "two.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = [*launch, "-m", "tests.training.distributed_run", kind, way, str(file)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    two = torch.load(file, weights_only=True)
    assert bool(two["spread"]) == (way == "fsdp")  # the weights were indeed cut up, or were not
    for one, both in zip(alone.terms, two["terms"], strict=True):
        assert one.keys() == both.keys()
        for name in one.keys() - {"epoch", "total_flos"}:
            assert both[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    expected = trained_weights(alone.lm.model)
    assert expected.keys() == two["weights"].keys()
    for name, weight in expected.items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-3, atol=1e-5)
