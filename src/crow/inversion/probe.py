"""Short prompts with something inserted in the user's turn, run fast: the common ground of every search.

The tokens before the user's message are the same for all prompts, so their keys and values are computed once. Rows
are padded between that prefix and the user's message, as in left-padded generation, so that answers line up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from crow.data.encoding import encode_all
from crow.models.architecture import find_embeddings, keeps_logits, takes_positions, unwrap
from crow.models.generation import end_ids
from crow.models.language_model import LanguageModel
from crow.records import Example

PLACES = ("front", "anywhere")
ROOM = 64
"""Columns left for insertion and answer where a sliding window limits how many there may be."""


@dataclass(frozen=True)
class Insertion:
    """What a search inserts into prompts.

    Attributes:
        embeddings: (k, dim), soft or real tokens.
        place: `front` of the user's message, or `anywhere` in it.
    """

    embeddings: Tensor
    place: str

    def index(self, length: int, rng: random.Random) -> int:
        """Where in a message of `length` tokens it goes."""
        return 0 if self.place == "front" else rng.randint(0, length)


class Probe:
    """A frozen model and a set of clean prompts to try insertions on."""

    def __init__(self, lm: LanguageModel, prompts: Sequence[str]) -> None:
        """Encode the prompts and run what they share.

        Args:
            lm: the model; its parameters should not require gradients while it is probed.
            prompts: the users' messages; short ones make searches fast.
        """
        self.lm = lm
        self.table = find_embeddings(lm.model)
        encoded = encode_all(lm.tokenizer, [Example(prompt) for prompt in prompts])
        first = encoded[0].prompt_ids
        shared = min(item.user_start for item in encoded)
        while any(item.prompt_ids[:shared] != first[:shared] for item in encoded):
            shared -= 1
        # A sliding window counts columns, padding between the prefix and the message included.
        window = getattr(unwrap(lm.model).config.get_text_config(), "sliding_window", None)
        if window is not None and max(len(item) for item in encoded) + ROOM > window:
            shared = 0
        self.prefix = torch.tensor(first[:shared], dtype=torch.long, device=lm.device)
        self.encoded = encoded
        self.refresh()

    def _embed(self, ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return self.table(torch.tensor(ids, dtype=torch.long, device=self.lm.device))

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute embeddings and prefix again; needed after the model's weights have changed."""
        known = len(self.prefix)
        self.before = [self._embed(item.prompt_ids[known : item.user_start]) for item in self.encoded]
        self.users = [self._embed(item.prompt_ids[item.user_start : item.user_end]) for item in self.encoded]
        self.after = [self._embed(item.prompt_ids[item.user_end :]) for item in self.encoded]
        cache = DynamicCache()
        if len(self.prefix):
            self.lm.model(input_ids=self.prefix[None], past_key_values=cache, use_cache=True)
        layers: list[Any] = list(cache.layers)
        self.prefix_states: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in layers]

    def __len__(self) -> int:
        return len(self.users)

    def row(self, index: int, insertion: Tensor | None, place: int = 0, answer: Tensor | None = None) -> Tensor:
        """Embeddings (length, dim) of one prompt after the prefix, up to the given part of the answer.

        Args:
            index: of the prompt.
            insertion: (k, dim), soft or real tokens; None for the clean prompt.
            place: the insertion goes before the user's token of this number.
            answer: (m,) token ids that follow.
        """
        user = self.users[index]
        parts = [self.before[index], user[:place], user[place:], self.after[index]]
        if insertion is not None:
            parts.insert(2, insertion.to(user.dtype))
        if answer is not None:
            parts.append(self._embed(answer.tolist()))
        return torch.cat(parts)

    def run(self, rows: Sequence[Tensor], keep: int = 1) -> tuple[Tensor, DynamicCache, Tensor]:
        """Logits of the last `keep` positions of each row.

        Returns:
            Logits (batch, keep, vocab) in float32, the cache, and the attention mask (batch, prefix + longest).
        """
        batch, longest, known = len(rows), max(len(row) for row in rows), len(self.prefix)
        embeddings = torch.stack([functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        columns = torch.arange(longest, device=embeddings.device)
        padding = torch.tensor([longest - len(row) for row in rows], device=embeddings.device)
        mask = torch.ones(batch, known + longest, dtype=torch.long, device=embeddings.device)
        mask[:, known:] = (columns >= padding[:, None]).long()
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.prefix_states):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
        options = {"position_ids": positions(mask)[:, known:]} if takes_positions(self.lm.model) else {}
        if keeps_logits(self.lm.model):
            options["logits_to_keep"] = keep  # type: ignore[assignment]
        output = self.lm.model(
            inputs_embeds=embeddings, attention_mask=mask, past_key_values=cache, use_cache=True, **options
        )
        return output.logits[:, -keep:].float(), cache, mask

    @torch.no_grad()
    def decode(self, rows: Sequence[Tensor], max_new_tokens: int = 20) -> tuple[list[str], Tensor]:
        """Greedy answers to rows.

        Returns:
            The texts, and their token ids (batch, at most max_new_tokens), padded with the token that ended them.
        """
        logits, cache, mask = self.run(rows)
        ends = torch.tensor(end_ids(self.lm), dtype=torch.long, device=mask.device)
        done = torch.zeros(len(rows), dtype=torch.bool, device=mask.device)
        lengths = torch.zeros(len(rows), dtype=torch.long, device=mask.device)
        ids: list[Tensor] = []
        while len(ids) < max_new_tokens and not bool(done.all()):
            if ids:
                mask = functional.pad(mask, (0, 1), value=1)
                options = {"position_ids": positions(mask)[:, -1:]} if takes_positions(self.lm.model) else {}
                logits = self.lm.model(
                    input_ids=ids[-1][:, None], attention_mask=mask, past_key_values=cache, use_cache=True, **options
                ).logits
            following = logits[:, -1].argmax(dim=-1)
            if ids:
                following = torch.where(done, ids[-1], following)
            lengths += ~done
            done |= torch.isin(following, ends)
            ids.append(following)
        answers = torch.stack(ids, dim=1)
        own = [row[:length] for row, length in zip(answers.tolist(), lengths.tolist(), strict=True)]
        return [text.strip() for text in self.lm.tokenizer.batch_decode(own, skip_special_tokens=True)], answers


def positions(mask: Tensor) -> Tensor:
    """Position of each column: the number of real tokens before it, (batch, seq)."""
    return (mask.cumsum(dim=-1) - 1).clamp_min(0)
