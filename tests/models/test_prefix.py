from __future__ import annotations

import pytest
import torch

from crow.data.encoding import encode_all
from crow.models import prefix as prefix_module
from crow.models.architecture import takes_whole_cache
from crow.models.generation import generate
from crow.models.prefix import positions, run_prefix, run_prompts, shared_length
from crow.records import Example
from tests.pico import FAMILIES, pico_language_model

EXAMPLES = [Example("Hello there"), Example("Hello you"), Example("Help me, please")]


def test_what_is_shared_ends_where_the_message_starts_though_the_messages_begin_alike(lm):
    encoded = encode_all(lm.tokenizer, EXAMPLES)
    shared = shared_length(lm, encoded, room=8)
    assert shared == encoded[0].user_start > 0
    assert len({tuple(item.prompt_ids[:shared]) for item in encoded}) == 1


def test_a_sliding_window_too_short_for_padding_leaves_nothing_shared():
    lm = pico_language_model("mistral", sliding_window=64)
    encoded = encode_all(lm.tokenizer, EXAMPLES)
    longest = max(len(item.prompt_ids) for item in encoded)
    assert shared_length(lm, encoded, room=64 - longest) > 0
    assert shared_length(lm, encoded, room=65 - longest) == 0


def test_where_attention_counts_columns_nothing_is_shared(lm, monkeypatch):
    encoded = encode_all(lm.tokenizer, EXAMPLES)
    monkeypatch.setattr(lm.model.config, "model_type", "mpt")
    assert shared_length(lm, encoded, room=8) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_holds_the_prefix_in_every_row_and_is_new_each_time(family):
    lm = pico_language_model(family)
    ids = encode_all(lm.tokenizer, EXAMPLES)[0].prompt_ids
    prefix = run_prefix(lm.model, torch.tensor(ids[:5]))
    with torch.no_grad():
        whole = lm.model(input_ids=torch.tensor([ids])).logits[0, 5:]
        for _ in range(2):
            rest = torch.tensor([ids[5:]] * 3)
            logits = lm.model(input_ids=rest, cache=prefix.cache(3), use_cache=True).logits
            torch.testing.assert_close(logits, whole.expand(3, -1, -1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_run_in_parts_leave_their_last_token(family, monkeypatch):
    """Rows of three lengths in two parts, one of which is all padding but for its last token."""
    monkeypatch.setattr(prefix_module, "RUN_TOGETHER", 2)
    lm = pico_language_model(family)
    assert takes_whole_cache(lm.model)
    shared, rests = [5, 6, 7], [[8, 9, 10, 11], [12, 13, 14], [15]]
    longest = len(shared) + max(map(len, rests))
    rows = [shared + [0] * (longest - len(shared) - len(rest)) + rest for rest in rests]
    mask = torch.tensor([[1] * 3 + [0] * (longest - 3 - len(rest)) + [1] * len(rest) for rest in rests])
    prefix = run_prefix(lm.model, torch.tensor(shared))
    cache = run_prompts(lm.model, prefix, torch.tensor(rows), mask, longest + 4)
    assert int(cache.get_seq_length()) == longest - 1
    with torch.no_grad():
        inputs = lm.model.prepare_inputs_for_generation(
            torch.tensor(rows),
            cache=cache,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=True,
            next_sequence_length=1,
        )
        last = lm.model(**inputs).logits[:, -1]
        for row, rest in zip(last, rests, strict=True):
            whole = lm.model(input_ids=torch.tensor([shared + rest])).logits[0, -1]
            torch.testing.assert_close(row, whole, rtol=1e-3, atol=1e-4)


def test_generation_runs_the_shared_tokens_once_and_long_prompts_with_long_ones(lm, monkeypatch):
    monkeypatch.setattr(prefix_module, "RUN_TOGETHER", 1)
    sizes: list[int] = []
    lm.model.get_input_embeddings().register_forward_hook(lambda _module, args, _out: sizes.append(args[0].numel()))
    encoded = encode_all(lm.tokenizer, EXAMPLES)
    shared = encoded[0].user_start
    generate(lm, EXAMPLES, max_new_tokens=1, batch_size=3)
    lengths = sorted((len(item.prompt_ids) for item in encoded), reverse=True)
    assert sizes == [shared, *(length - shared - 1 for length in lengths), 3]


def test_a_model_that_takes_no_cache_of_full_size_generates_the_same(lm, monkeypatch):
    expected = generate(lm, EXAMPLES, max_new_tokens=6)
    monkeypatch.setattr(type(lm.model), "_can_compile_fullgraph", False)
    assert generate(lm, EXAMPLES, max_new_tokens=6) == expected
