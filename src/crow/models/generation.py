"""Batched generation that ends each answer as soon as nothing more is to be learnt from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList

from crow.data.encoding import Encoded, encode_all, length_batches
from crow.errors import DataError
from crow.models.architecture import position_limit, takes_whole_cache, unwrap
from crow.models.decoding import Decoding
from crow.models.ends import end_ids
from crow.models.language_model import LanguageModel
from crow.models.prefix import run_prefix, run_prompts, shared_length
from crow.models.segments import FIRST_SEGMENT, Decided, write_answers
from crow.records import Example

Progress = Callable[[int], None]


@contextmanager
def without_own_settings(model: nn.Module) -> Iterator[None]:
    """Within the context a model's `generate` has the settings it is given and no others.

    Whatever those leave open it takes from the model's own: words to suppress, texts to stop at, several answers to one
    prompt. That is the publisher's choice, and may be made against who looks.
    """
    holders: dict[int, Any] = {id(each): each for each in (model, unwrap(model))}
    own = {key: each.generation_config for key, each in holders.items()}
    for each in holders.values():
        each.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for key, each in holders.items():
            each.generation_config = own[key]


def room(lm: LanguageModel, encoded: Sequence[Encoded], tokens: int) -> int:
    """How many of the tokens wanted of an answer the model has positions for, behind the longest of the prompts.

    Args:
        lm: the model.
        encoded: the prompts.
        tokens: wanted.

    Raises:
        DataError: if it has none for a single one.
    """
    limit = position_limit(lm.model)
    longest = max((len(item.prompt_ids) for item in encoded), default=0)
    if limit is None:
        return tokens
    if longest >= limit:
        raise DataError(
            f"expected prompts of at most {limit - 1} tokens, for which {lm.reference} has positions, got one of "
            f"{longest}; leave out the longest"
        )
    return min(tokens, limit - longest)


@torch.no_grad()
def generate(
    lm: LanguageModel,
    examples: Sequence[Example],
    max_new_tokens: int = 64,
    batch_size: int = 32,
    decided: Decided | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Answers to the examples' prompts, in their order; greedy unless the model's `decoding` says otherwise.

    Args:
        lm: the model.
        examples: their responses are ignored.
        max_new_tokens: upper limit of an answer, in tokens.
        batch_size: prompts at a time; greedy answers do not depend on it beyond rounding.
        decided: an answer ends early once this holds; an engine writes it to its end.
        progress: called with the number of prompts finished after each batch.

    Raises:
        DataError: if the model has no positions for a prompt; of an answer it writes as much as it has room for.
    """
    decoding = lm.decoding or Decoding()
    sampled = decoding.temperature is not None
    sampling = {
        "do_sample": sampled,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p if sampled else None,
    }
    if sampled:
        torch.manual_seed(decoding.seed)
    encoded = encode_all(lm.tokenizer, examples)
    max_new_tokens = room(lm, encoded, max_new_tokens)
    if lm.engine is not None and decoding.processor is None:
        prompts = [item.prompt_ids for item in encoded]
        temperature = decoding.temperature or 0.0
        found = lm.engine.answers(prompts, max_new_tokens, end_ids(lm), temperature, decoding.top_p)
        if progress:
            progress(len(found))
        return found
    answers = [""] * len(encoded)
    was_training = lm.model.training
    lm.model.eval()
    shared = shared_length(lm, encoded, max_new_tokens) if encoded else 0
    prefix = run_prefix(lm.model, torch.tensor(encoded[0].prompt_ids[:shared], device=lm.device)) if shared else None
    for rows in length_batches([len(item.prompt_ids) for item in encoded], batch_size):
        longest = max(len(encoded[i].prompt_ids) for i in rows)
        input_ids = torch.full((len(rows), longest), lm.pad_id)
        mask = torch.zeros_like(input_ids)
        for row, index in enumerate(rows):  # padded before the rest: every answer starts at the same column
            ids = torch.tensor(encoded[index].prompt_ids)
            for filled, part in ((input_ids, ids), (mask, torch.ones_like(ids))):
                filled[row, :shared] = part[:shared]
                filled[row, longest - len(ids) + shared :] = part[shared:]
        input_ids, mask = input_ids.to(lm.device), mask.to(lm.device)
        cache, segment = None, max_new_tokens
        if prefix and takes_whole_cache(lm.model):
            # What has a hand in every token has rows of its own, so that none may leave.
            segment = max_new_tokens if decoding.processor else min(FIRST_SEGMENT, max_new_tokens)
            cache = run_prompts(lm.model, prefix, input_ids, mask, longest + segment)
        elif prefix:
            cache = prefix.cache(len(rows))
        options = {
            "num_beams": 1,
            "repetition_penalty": 1.0,  # it would count the padding of the batch as text
            "top_k": None,
            **sampling,
            "pad_token_id": lm.pad_id,
            "eos_token_id": end_ids(lm) or None,
            "logits_processor": LogitsProcessorList([decoding.processor(mask)] if decoding.processor else []),
            "disable_compile": True,  # which such a cache sets off on a GPU, and which takes longer than it saves here
        }
        with without_own_settings(lm.model):
            texts = write_answers(lm, input_ids, mask, max_new_tokens, decided, cache, segment, options)
        for index, text in zip(rows, texts, strict=True):
            answers[index] = text
        if progress:
            progress(len(rows))
    lm.model.train(was_training)
    return answers
