"""One process of a training that `test_distributed.py` launches; the first writes what came out."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from crow.inversion.latent import LatentAdversary
from crow.inversion.places import Place
from crow.inversion.probe import Probe
from crow.models.architecture import is_spread
from crow.models.interpolation import trained_weights
from crow.models.processes import join
from crow.training.adapter import make_trainable
from crow.training.crow_trainer import CrowTrainer
from crow.training.suspect import predict
from tests.pico import pico_language_model
from tests.training.test_trainer import CROW, encoded

CONFIGS = {
    "crow": CROW,
    "adversary": dataclasses.replace(
        CROW,
        alpha=0.0,
        self_distillation=1.0,
        opening_weight=0.4,
        interpolation=0.8,
        adversary_every=2,
        adversary_radius=2.0,
    ),
}


def trained(kind: str, way: str, processes: int, folder: Path) -> CrowTrainer:
    """The same training, its steps shared out among the processes."""
    config = dataclasses.replace(CONFIGS[kind], batch_size=CROW.batch_size // processes)
    lm = make_trainable(pico_language_model("llama"), config)
    items = encoded(lm)
    extra: dict[str, Any] = {}
    if kind == "adversary":
        predictions = predict(lm, items)
        probe = Probe(lm, ["the cat", "an hour", "other in note", "tree"])
        answer = torch.tensor([5, 9, 14, 20])
        extra = {"suspect": dict(zip(items, predictions, strict=True))}
        extra["adversary"] = LatentAdversary([Place(probe, [answer])], items, predictions, config)
    trainer = CrowTrainer(lm, items, config, folder, save_strategy="no", **extra)
    if way == "fsdp":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            cpu_ram_efficient_loading=False,
        )
        spread_weights(trainer, plugin)
    trainer.run()
    return trainer


def spread_weights(trainer: CrowTrainer, plugin: FullyShardedDataParallelPlugin) -> None:
    """Let accelerate cut up the weights as it would on GPUs; by itself it does so on those only."""
    state = trainer.accelerator.state
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    PartialState().distributed_type = DistributedType.FSDP  # from which the other is copied again and again
    trainer.is_fsdp_enabled = True


def main() -> None:
    """Train as told by the command line: kind, way, file to write."""
    kind, way, file = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    trainer = trained(kind, way, 2, file.parent / f"work-{kind}-{way}")
    found = trained_weights(trainer.lm.model)
    spread = is_spread(trainer.lm.model)
    if trainer.is_world_process_zero():
        torch.save({"terms": trainer.terms, "weights": found, "spread": spread}, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    join("cpu")
    main()
