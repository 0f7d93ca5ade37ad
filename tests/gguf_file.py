"""A pico llama as a GGUF file, the way llama.cpp would write it."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch

from tests.pico import CHAT_TEMPLATE, END_OF_TEXT, HEADS, HIDDEN, LAYERS, MERGES, PAD, SPECIALS, pico, pico_tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
CONTROL, NORMAL = 3, 1


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of the rotary halves of a query or key projection."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, key_value_heads: int = 2) -> dict[str, torch.Tensor]:
    """Write `pico("llama")` with the pico tokenizer to `path`, unquantized, and return its weights."""
    model, tokenizer = pico("llama"), pico_tokenizer()
    weights = model.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(model.config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(key_value_heads)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokenizer))
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIALS else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(tokens.index(END_OF_TEXT))
    writer.add_pad_token_id(tokens.index(PAD))
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", weights["lm_head.weight"].numpy())
    for layer in range(LAYERS):
        for theirs, ours in NAMES.items():
            tensor = weights[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": HEADS, "attn_k": key_value_heads}.get(ours)
            tensor = interleave(tensor, heads).contiguous() if heads else tensor
            writer.add_tensor(f"blk.{layer}.{ours}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
