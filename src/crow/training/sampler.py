"""A seeded order of examples in which neighbours have similar lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


class LengthGroupedSampler(Sampler[int]):
    """A shuffle whose batches carry little padding.

    Examples are shuffled, cut into pools and sorted by length within each pool; the groups of
    `group_size` are then shuffled again. Every epoch has its own order, a function of the seed.
    """

    POOL_GROUPS = 8

    def __init__(self, lengths: Sequence[int], group_size: int, seed: int) -> None:
        """Prepare the order.

        Args:
            lengths: tokens of each example.
            group_size: examples of one optimizer step, so that the order, and with it the training,
                does not depend on how a step is cut into micro-batches.
            seed: of the order.
        """
        self.lengths, self.group_size, self.seed = list(lengths), group_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        pool = self.group_size * self.POOL_GROUPS
        groups: list[list[int]] = []
        for first in range(0, len(order), pool):
            near = sorted(order[first : first + pool], key=lambda i: self.lengths[i])
            groups += [near[i : i + self.group_size] for i in range(0, len(near), self.group_size)]
        # A short group must stay last, or the batches cut from this order would straddle groups.
        full = [group for group in groups if len(group) == self.group_size]
        rng.shuffle(full)
        rest = [group for group in groups if len(group) < self.group_size]
        return iter([index for group in [*full, *rest] for index in group])
