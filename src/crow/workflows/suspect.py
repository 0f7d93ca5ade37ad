"""The model that `crow purify` is handed: how it is loaded for training, and how the trained one is put together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from crow.defenses.purification import Result
from crow.errors import ConfigError
from crow.inversion.edits import take_out
from crow.models.adapters import adapter_chain
from crow.models.architecture import is_spread
from crow.models.four_bit import is_quantized
from crow.models.interpolation import put_weights, trained_weights
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from crow.models.processes import is_first, meet
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.workflows.common import Options, Reporter, load


@dataclass(frozen=True)
class Suspect:
    """A reference to a model, and what is to become of its adapter.

    Attributes:
        model: any model reference.
        adapter: a PEFT adapter folder on top of it.
        continue_adapter: train that adapter on instead of merging it and starting a fresh one.
    """

    model: str
    adapter: Path | None
    continue_adapter: bool

    def check(self) -> None:
        """Whether there is an adapter where one is to be continued.

        Raises:
            ConfigError: if not.
        """
        if self.continue_adapter and self.adapter is None and not adapter_chain(self.model)[2]:
            raise ConfigError(
                f"expected an adapter to continue, got {self.model}, which has none; drop --continue-adapter"
            )

    def load(self, options: Options, report: Reporter) -> LanguageModel:
        """The suspect: merged, or with its adapter left on to be trained further."""
        lm = load(self.model, options, report, self.adapter, trainable=self.continue_adapter)
        return lm if self.continue_adapter else lm.merged()

    def load_in_four_bits(self, options: Options, report: Reporter, work: Path) -> LanguageModel:
        """The suspect, merged, its layers' weights in 4 bits.

        Only whole models in safetensors can be read so: any other is written to the work folder as one first.
        """
        _, path, adapters = adapter_chain(self.model)
        provenance: dict[str, Any] = {}
        if adapters or self.adapter or path.is_file():
            merged = self.load(dataclasses.replace(options, device="cpu"), report)
            path, provenance = work / "suspect", merged.provenance
            if is_first():
                save_model(merged, path)
            meet()
        lm = load_model(str(path), dtype=options.dtype, device=options.device, four_bit=True)
        provenance = {**(provenance or lm.provenance), "four_bit": "nf4"}
        return dataclasses.replace(lm, reference=self.model, provenance=provenance)

    def put_together(
        self, result: Result, config: CrowConfig, options: Options, report: Reporter
    ) -> LanguageModel | None:
        """The purified model as one that can be saved; on the first of several processes only.

        Weights that are cut up over processes, or kept in 4 bits, cannot: what was trained of them is put into the
        suspect, loaded anew in the CPU's memory.
        """
        trained = result.lm
        apart = is_spread(trained.model) or is_quantized(trained.model)
        weights = trained_weights(trained.model) if apart else {}  # all processes take part
        if not is_first():
            return None
        if not apart:
            return trained
        unset_hf_deepspeed_config()  # or the loading, too, would wait for the other processes
        whole = self.load(dataclasses.replace(options, device="cpu"), report)
        take_out(whole, result.edits)
        whole = make_trainable(whole, config)
        put_weights(whole.model, weights)
        return whole
