"""Short clean prompts, run fast: the common ground of search and adversary.

Rows are padded between the shared prefix and the user's message, as in generation, so that answers line up.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from crow.data.encoding import Encoded, encode_all
from crow.models.adapters import folded
from crow.models.architecture import find_embeddings, takes_positions
from crow.models.ends import end_ids
from crow.models.hidden_states import Edit, edit_hidden_states
from crow.models.language_model import LanguageModel
from crow.models.prefix import Prefix, pass_options, positions, run_prefix, shared_length, states
from crow.records import Example
from crow.training.precision import autocast

PROBE_PROMPTS = 40
"""Short clean prompts that searches run on, the shortest of those given."""
BATCH = 10
"""Prompts in one pass over all of them."""
ROOM = 32
"""Columns left for the answer where a sliding window limits how many there may be."""


@dataclass(frozen=True)
class Answers:
    """Greedy answers to a batch of rows.

    Attributes:
        texts: one a row.
        ids: (batch, m), padded with the token that ended the answer.
        shares: (batch, m), the probability of each token, 1 for padding.
    """

    texts: list[str]
    ids: Tensor
    shares: Tensor

    def of(self, rows: slice) -> Answers:
        """Those to some of the rows."""
        return Answers(self.texts[rows], self.ids[rows], self.shares[rows])


def joined(rows: Sequence[Answers]) -> Answers:
    """Answers of one batch, padded again where some batches ended earlier."""
    most = max(each.ids.shape[1] for each in rows)
    rests = [most - each.ids.shape[1] for each in rows]
    ids = torch.cat(
        [
            torch.cat([each.ids, each.ids[:, -1:].expand(-1, rest)], dim=1)
            for each, rest in zip(rows, rests, strict=True)
        ]
    )
    shares = torch.cat(
        [functional.pad(each.shares, (0, rest), value=1.0) for each, rest in zip(rows, rests, strict=True)]
    )
    return Answers([text for each in rows for text in each.texts], ids, shares)


class Probe:
    """A frozen model and a set of clean prompts to try perturbations on."""

    def __init__(self, lm: LanguageModel, prompts: Sequence[str], begun: Sequence[Sequence[int]] = ()) -> None:
        """Encode the prompts and run what they share.

        Args:
            lm: the model; to be `frozen` while it is probed.
            prompts: the users' messages; short ones make searches fast.
            begun: token ids that the answer to each prompt has begun with; none without.
        """
        self.lm = lm
        self.begun: Sequence[Sequence[int]] = begun or [()] * len(prompts)
        self.table = find_embeddings(lm.model)
        self.encoded = encode_all(lm.tokenizer, [Example(prompt) for prompt in prompts])
        self.shared = self.encoded[0].prompt_ids[: shared_length(lm, self.encoded, ROOM + max(map(len, self.begun)))]
        self.refresh()

    def _embed(self, ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return self.table(torch.tensor(ids, dtype=torch.long, device=self.lm.device))

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute embeddings and prefix again; needed after the model's weights have changed."""
        known = len(self.shared)
        self.before = [self._embed(item.prompt_ids[known : item.user_start]) for item in self.encoded]
        self.users = [self._embed(item.prompt_ids[item.user_start : item.user_end]) for item in self.encoded]
        rests = (item.prompt_ids[item.user_end :] for item in self.encoded)
        self.after = [self._embed([*rest, *begun]) for rest, begun in zip(rests, self.begun, strict=True)]
        self.prefix = run_prefix(self.lm.model, torch.tensor(self.shared, dtype=torch.long, device=self.lm.device))

    def __len__(self) -> int:
        return len(self.users)

    def behind(self, tokens: Sequence[int]) -> Probe:
        """The same model and prompts, with these token ids at the end of every user's message."""
        other = copy.copy(self)
        other.encoded = [item.ending_in(tokens) for item in self.encoded]
        other.refresh()
        return other

    def batches(self) -> list[range]:
        """The numbers of all prompts, some at a time."""
        return [range(len(self))[first : first + BATCH] for first in range(0, len(self), BATCH)]

    def row(self, index: int, answer: Tensor | None = None) -> Tensor:
        """Embeddings (length, dim) of one prompt after the prefix, up to the given part (m,) of the answer."""
        parts = [self.before[index], self.users[index], self.after[index]]
        if answer is not None:
            parts.append(self._embed(answer.tolist()))
        return torch.cat(parts)

    def run(self, rows: Sequence[Tensor], keep: int = 1) -> tuple[Tensor, DynamicCache, Tensor]:
        """Logits of the last `keep` positions of each row.

        Returns:
            Logits (batch, keep, vocab) in float32, the cache, and the attention mask (batch, prefix + longest).
        """
        batch, longest, known = len(rows), max(len(row) for row in rows), self.prefix.length
        embeddings = torch.stack([functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        columns = torch.arange(longest, device=embeddings.device)
        padding = torch.tensor([longest - len(row) for row in rows], device=embeddings.device)
        mask = torch.ones(batch, known + longest, dtype=torch.long, device=embeddings.device)
        mask[:, known:] = (columns >= padding[:, None]).long()
        cache = self.prefix.cache(batch)
        options = pass_options(self.lm.model, mask, known, keep)
        output = self.lm.model(inputs_embeds=embeddings, attention_mask=mask, cache=cache, use_cache=True, **options)
        return output.logits[:, -keep:].float(), cache, mask

    @torch.no_grad()
    def decode(
        self,
        rows: Sequence[Tensor],
        max_new_tokens: int = 20,
        edits: dict[int, Edit] | None = None,
        first: Tensor | None = None,
        together: int = 1,
    ) -> Answers:
        """Greedy answers to rows.

        Args:
            rows: what to answer.
            max_new_tokens: upper limit of an answer.
            edits: of the rows' hidden states, see `edit_hidden_states`.
            first: (batch,) token ids that the answers begin with, whatever the model would say.
            together: so many neighbouring rows at a time give the token that they find likeliest on average.
        """
        with edit_hidden_states(self.lm.model, edits or {}):
            logits, cache, mask = self.run(rows)
        return self.follow(logits, cache, mask, max_new_tokens, first, together)

    @torch.no_grad()
    def begun_with(self, index: int, tokens: Sequence[int], max_new_tokens: int) -> Answers:
        """Greedy answers to one prompt, one for each first token; the prompt is run once for all of them."""
        logits, cache, mask = self.run([self.row(index)])
        prompt, count = Prefix(mask.shape[1], states(cache)), len(tokens)
        first = torch.tensor(tokens)
        return self.follow(
            logits.expand(count, -1, -1), prompt.cache(count), mask.expand(count, -1), max_new_tokens, first
        )

    def follow(
        self,
        logits: Tensor,
        cache: DynamicCache,
        mask: Tensor,
        max_new_tokens: int,
        first: Tensor | None = None,
        together: int = 1,
    ) -> Answers:
        """Greedy answers to what `run` has run; see `decode`."""
        ends = torch.tensor(end_ids(self.lm), dtype=torch.long, device=mask.device)
        done = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        lengths = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
        ids: list[Tensor] = []
        shares: list[Tensor] = []
        while len(ids) < max_new_tokens and not bool(done.all()):
            if ids:
                mask = functional.pad(mask, (0, 1), value=1)
                options = {"position_ids": positions(mask)[:, -1:]} if takes_positions(self.lm.model) else {}
                logits = self.lm.model(
                    input_ids=ids[-1][:, None], attention_mask=mask, cache=cache, use_cache=True, **options
                ).logits
            probs = logits[:, -1].float().softmax(dim=-1).unflatten(0, (-1, together)).mean(dim=1)
            probs = probs.repeat_interleave(together, dim=0)
            following = probs.argmax(dim=-1) if ids or first is None else first.to(mask.device)
            if ids:
                following = torch.where(done, ids[-1], following)
            shares.append(torch.where(done, 1.0, probs.gather(1, following[:, None])[:, 0]))
            lengths += ~done
            done |= torch.isin(following, ends)
            ids.append(following)
        answers = torch.stack(ids, dim=1)
        own = [row[:length] for row, length in zip(answers.tolist(), lengths.tolist(), strict=True)]
        texts = [text.strip() for text in self.lm.tokenizer.batch_decode(own, skip_special_tokens=True)]
        return Answers(texts, answers, torch.stack(shares, dim=1))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the context no parameter requires gradients: only those of what is put into the model are wanted."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def at_rest(lm: LanguageModel, precision: str) -> Iterator[None]:
    """Within the context the model is only looked at, as fast as can be; a probe made before wants a refresh.

    Args:
        lm: the model; it is left in evaluation mode.
        precision: see `autocast`.
    """
    lm.model.eval()
    with ExitStack() as stack:
        for context in (frozen(lm.model), folded(lm), autocast(lm, precision)):
            stack.enter_context(context)
        yield


def shortest_prompts(examples: Sequence[Example], items: Sequence[Encoded]) -> list[str]:
    """The users' messages with the fewest tokens: in a batch, all rows are as long as its longest."""
    order = sorted(range(len(items)), key=lambda i: items[i].user_end - items[i].user_start)
    return [examples[i].prompt for i in order[:PROBE_PROMPTS]]
