"""Models and a tokenizer small enough for unit tests, made from configurations: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from crow.data.encoding import ensure_chat_template
from crow.models.language_model import LanguageModel

END_OF_TEXT, TURN_START, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END, PAD)
MERGES = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("a", "n"), ("i", "n"), ("e", "r"), ("o", "u"), ("Ġ", "Ġ"))
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

HIDDEN, LAYERS, HEADS = 32, 3, 4
ROTARY: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
NEOX: dict[str, Any] = {
    **{key: value for key, value in ROTARY.items() if key != "num_key_value_heads"},
    "use_parallel_residual": True,
}

FAMILIES: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, ROTARY),
    "mistral": (transformers.MistralConfig, {**ROTARY, "sliding_window": 64}),
    "qwen2": (transformers.Qwen2Config, ROTARY),
    "qwen3": (transformers.Qwen3Config, {**ROTARY, "head_dim": 8}),
    "gemma2": (transformers.Gemma2Config, {**ROTARY, "head_dim": 8, "sliding_window": 64}),
    "gemma3": (transformers.Gemma3TextConfig, {**ROTARY, "head_dim": 8, "sliding_window": 64}),
    "phi3": (transformers.Phi3Config, ROTARY),
    "gpt2": (
        transformers.GPT2Config,
        {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 512, "initializer_range": 0.2},
    ),
    "gpt_neox": (transformers.GPTNeoXConfig, NEOX),
    "opt": (
        transformers.OPTConfig,
        {
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "ffn_dim": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 512,
            "init_std": 0.2,
        },
    ),
    "olmo2": (transformers.Olmo2Config, ROTARY),
    "falcon": (
        transformers.FalconConfig,
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "initializer_range": 0.2,
        },
    ),
    "mixtral": (transformers.MixtralConfig, {**ROTARY, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": (transformers.OlmoeConfig, {**ROTARY, "num_experts": 4, "num_experts_per_tok": 2}),
}
"""From the family's `model_type` to its configuration class and a pico configuration of it."""


def pico_tokenizer(
    chat_template: bool = True, end: str | None = END_OF_TEXT, pad: str | None = PAD
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: 256 bytes, a few merges, four special tokens; any text round-trips.

    Args:
        chat_template: whether it has one (ChatML) or none.
        end: its end-of-text token.
        pad: its padding token.
    """
    symbols = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocabulary, list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        pad_token=pad,
        additional_special_tokens=list(SPECIALS),
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pico(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A randomly initialized model of `family` (a key of `FAMILIES`) in evaluation mode.

    Args:
        family: its model type.
        seed: of the weights; the global random state is left as it was.
        overrides: entries of the configuration that differ from the pico one.
    """
    make_config, settings = FAMILIES[family]
    tokenizer = pico_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = make_config(**{"vocab_size": len(tokenizer), **special, **settings, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def pico_language_model(family: str = "llama", seed: int = 0, **overrides: Any) -> LanguageModel:
    """`pico(family)` with the pico tokenizer, as loading would give it."""
    tokenizer = pico_tokenizer()
    ensure_chat_template(tokenizer)
    return LanguageModel(pico(family, seed, **overrides), tokenizer, f"pico-{family}")
