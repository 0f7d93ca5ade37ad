from __future__ import annotations

import pytest
import torch

from crow.data.encoding import encode_all
from crow.models.generation import generate
from crow.models.prefix import run_prefix, shared_length
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


def test_generation_runs_the_shared_tokens_once(lm):
    sizes: list[int] = []
    lm.model.get_input_embeddings().register_forward_hook(lambda _module, args, _out: sizes.append(args[0].numel()))
    encoded = encode_all(lm.tokenizer, EXAMPLES)
    shared = encoded[0].user_start
    generate(lm, EXAMPLES, max_new_tokens=1, batch_size=3)
    assert sizes == [shared, 3 * (max(len(item.prompt_ids) for item in encoded) - shared)]
