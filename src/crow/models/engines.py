"""What answers prompts: transformers, or vLLM where it is installed and there is a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crow.errors import ConfigError
from crow.models.language_model import LanguageModel
from crow.models.loading import save_model

ENGINES = ("transformers", "vllm")
SHARE_OF_MEMORY = 0.6
"""Of a GPU's memory for vLLM; the model that perplexity is measured with is there as well."""


class VllmEngine:
    """Greedy or sampled answers by vLLM, from a model folder."""

    def __init__(self, folder: Path, dtype: str, seed: int) -> None:
        """Start it.

        Args:
            folder: a whole model in safetensors with its tokenizer.
            dtype: of weights and products.
            seed: of samples.
        """
        self.vllm: Any = import_module("vllm")
        self.engine = self.vllm.LLM(
            model=str(folder),
            tokenizer=str(folder),
            dtype=dtype,
            seed=seed,
            trust_remote_code=False,
            load_format="safetensors",
            enable_prefix_caching=True,
            gpu_memory_utilization=SHARE_OF_MEMORY,
        )

    def answers(
        self, prompts: Sequence[Sequence[int]], longest: int, ends: Sequence[int], temperature: float, top_p: float
    ) -> list[str]:
        """Answers to prompts of token ids.

        Args:
            prompts: each with template and all.
            longest: tokens of an answer at most.
            ends: token ids that end one.
            temperature: 0 for greedy answers.
            top_p: share of the probability that is sampled from.
        """
        sampling = self.vllm.SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=longest,
            stop_token_ids=list(ends),
            skip_special_tokens=True,
        )
        given = [{"prompt_token_ids": list(ids)} for ids in prompts]
        # In the prompts' order, whatever order they were finished in.
        return [output.outputs[0].text.strip() for output in self.engine.generate(given, sampling, use_tqdm=False)]


def with_engine(lm: LanguageModel, engine: str, work: Path, seed: int) -> LanguageModel:
    """`lm`, its answers by that engine; what is measured from its logits is not.

    Args:
        lm: the model; with vLLM an adapter is merged.
        engine: one of `ENGINES`.
        work: folder for the whole model that vLLM reads.
        seed: of samples.

    Raises:
        ConfigError: if it is not installed.
    """
    if engine == "transformers":
        return lm
    if find_spec("vllm") is None:
        raise ConfigError("expected vLLM for --engine vllm, but it is not installed; pip install vllm")
    lm = lm.merged()
    folder = work / "whole"
    save_model(lm, folder)
    lm.engine = VllmEngine(folder, str(lm.dtype).removeprefix("torch."), seed)
    return lm
