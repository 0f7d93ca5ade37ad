"""Progress of a training, told to whoever shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from transformers import TrainerCallback

from crow.training.config import FinetuneConfig

Watch = Callable[[str, int | None], AbstractContextManager[Callable[[int], None] | None]]
"""Opens a progress display: from a title and a total to a context that yields what advances it."""


def silent(_title: str, _total: int | None) -> AbstractContextManager[None]:
    """No progress display."""
    return nullcontext()


class StepCallback(TrainerCallback):
    """Advances a progress display at each optimizer step."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer; steps of an earlier, interrupted run count as done."""
        if state.global_step:
            self.advance(state.global_step)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by the trainer."""
        self.advance(1)


@contextmanager
def watched(watch: Watch, title: str, examples: int, config: FinetuneConfig) -> Iterator[list[TrainerCallback]]:
    """A progress display of one training on that many examples, as the trainer's callbacks."""
    steps = math.ceil(config.epochs * math.ceil(examples / (config.batch_size * config.accumulation)))
    with watch(title, steps) as advance:
        yield [StepCallback(advance)] if advance else []
