"""The processes of one run, where `accelerate launch` or `torchrun` started several; else the one there is.

All of them do the same; the first alone writes and speaks. Searches look at the whole model on every process.
"""

from __future__ import annotations

import atexit
import os
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def n_processes() -> int:
    """How many processes the run was started as."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def several() -> bool:
    """Whether the run was started as several processes."""
    return n_processes() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def join(device: str) -> None:
    """Meet the other processes, if there are any, before anything is done.

    Args:
        device: what the user asked for; on `cpu` the processes talk to each other by gloo even where there is a GPU.
    """
    if several():
        state = PartialState(cpu=device == "cpu")
        # The threads of a group that is still there when a process ends abort it now and then.
        atexit.register(state.destroy_process_group)


def own_device() -> torch.device:
    """This process's share of the hardware, once it has joined: one GPU each where there are enough."""
    device = PartialState().device
    assert device is not None
    return device


def meet() -> None:
    """Wait until all processes are here."""
    if several():
        PartialState().wait_for_everyone()


def agreed(value: T) -> T:
    """The first process's value, on all: a choice that rounding could make differ between them."""
    if not several():
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]
