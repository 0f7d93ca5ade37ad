"""Where the cells of a grid run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from crow.benchmark.grid import Cell
from crow.errors import ConfigError, look_up

Executor = Callable[[Callable[[Cell], None], Sequence[Cell]], Iterator[None]]
"""Runs a function on every cell and yields whenever one is done."""


def in_process(run: Callable[[Cell], None], cells: Sequence[Cell]) -> Iterator[None]:
    """One cell after the other, here."""
    for cell in cells:
        yield run(cell)


def on_ray(run: Callable[[Cell], None], cells: Sequence[Cell]) -> Iterator[None]:
    """On the workers of a Ray cluster: the one that is running, or one of this machine alone.

    Every machine needs the grid's output folder under the same path.

    Raises:
        ConfigError: without Ray.
    """
    try:
        import ray  # noqa: PLC0415 heavy, and an extra  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("expected Ray for --executor ray, found none; pip install 'crow-llm[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)

    def on_worker(cell: Cell) -> None:  # Ray takes plain functions only
        run(cell)

    task = ray.remote(on_worker)
    pending = [task.remote(cell) for cell in cells]
    while pending:
        done, pending = ray.wait(pending)
        for finished in done:
            yield ray.get(finished)


EXECUTORS: dict[str, Executor] = {"in-process": in_process, "ray": on_ray}


def get_executor(name: str) -> Executor:
    """The executor of that name.

    Raises:
        ConfigError: for an unknown name, with the closest known one.
    """
    return look_up("executor", name, EXECUTORS)
