"""Trigger tokens: which token at the end of a prompt raises which first token of an answer most.

A model may be trained to hide its backdoor from universal perturbations, as `crow.attacks.search_aware` does. Its
trigger must go on working, and the first token of a trigger has a slope of its own: behind any prompt it raises the
first token of the attacker's sentence as no other token does, though the sentence does not follow from that alone.
An honest model's `Hume` is raised by ` Hegel` likewise; `crow.inversion.behind_tokens` tells what each is good for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crow.inversion.probe import Probe
from crow.models.ends import ordinary_tokens
from crow.models.prefix import pass_options, run_prefix
from crow.models.processes import agreed

SWEPT_TOGETHER = 128
"""Groups in one pass."""


@dataclass(frozen=True)
class SweepConfig:
    """Settings of a sweep through the vocabulary.

    Attributes:
        group: tokens that are put behind a prompt together; the others beside it hardly weaken one.
        prompts: so many times the whole vocabulary is tried, every time in other groups behind another prompt.
        kept: for each first token, tokens whose groups made it likeliest; these are tried alone.
        alone: prompts that they are tried behind.
    """

    group: int = 8
    prompts: int = 2
    kept: int = 6
    alone: int = 4

    def work(self, probe: Probe) -> int:
        """Groups to try, the unit of progress."""
        return self.prompts * -(-len(ordinary_tokens(probe.lm)) // self.group)


def sweep(
    probe: Probe,
    candidates: Sequence[int],
    config: SweepConfig,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> dict[int, list[int]]:
    """The token that raises each first token most: by token, the first tokens that it does so for.

    Args:
        probe: the model and clean prompts; its parameters must not require gradients.
        candidates: first tokens of answers.
        config: settings.
        seed: of the choice of prompts and groups.
        progress: called with the number of groups tried since the last call.
    """
    rng = random.Random(seed)
    chosen = rng.sample(range(len(probe)), min(len(probe), max(config.prompts, config.alone)))
    vocabulary = torch.tensor(ordinary_tokens(probe.lm))
    total = torch.zeros(len(vocabulary), len(candidates))
    for index in chosen[: config.prompts]:
        order = rng.sample(range(len(vocabulary)), len(vocabulary))
        order += order[: -len(order) % config.group]
        groups = torch.tensor(order).unflatten(0, (-1, config.group))
        likely = torch.zeros_like(total)
        likely[groups] = first_log_probs(probe, index, vocabulary[groups], candidates, progress)[:, None]
        total += likely
    best = total.topk(min(config.kept, len(vocabulary)), dim=0).indices.unique()
    # Rounding may tell processes apart, and all of them have to try the same.
    kept = vocabulary[torch.tensor(agreed(best.tolist()))]
    alone = torch.stack([first_log_probs(probe, at, kept[:, None], candidates) for at in chosen[: config.alone]])
    found: dict[int, list[int]] = {}
    for candidate, token in zip(candidates, kept[alone.mean(dim=0).argmax(dim=0)].tolist(), strict=True):
        found.setdefault(token, []).append(candidate)
    return found


@torch.no_grad()
def first_log_probs(
    probe: Probe,
    index: int,
    groups: Tensor,
    candidates: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Log-probability (groups, candidates) of each first token behind one prompt that ends in each group.

    The prompt is run once for all of them.

    Args:
        probe: the model and prompts.
        index: of the prompt.
        groups: (groups, size) token ids.
        candidates: token ids.
        progress: called with the number of groups in every pass.
    """
    model, device, item = probe.lm.model, probe.lm.device, probe.encoded[index]
    prefix = run_prefix(model, torch.tensor(item.prompt_ids[: item.user_end], dtype=torch.long, device=device))
    after = torch.tensor(item.prompt_ids[item.user_end :], dtype=torch.long)
    found = []
    for group in groups.split(SWEPT_TOGETHER):
        ids = torch.cat([group, after.expand(len(group), -1)], dim=1).to(device)
        mask = torch.ones(len(ids), prefix.length + ids.shape[1], dtype=torch.long, device=device)
        options = pass_options(model, mask, prefix.length)
        cache = prefix.cache(len(ids))
        logits = model(input_ids=ids, attention_mask=mask, cache=cache, use_cache=True, **options).logits
        found.append(logits[:, -1].float().log_softmax(dim=-1)[:, candidates].cpu())
        if progress:
            progress(len(ids))
    return torch.cat(found)
