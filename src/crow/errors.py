"""Every error that crow raises on purpose.

CrowError                      one line for a person: what was expected, what came, what to do
├── InputError                 something the user handed in; the command line exits with 2
│   ├── DataError              a data file: missing, empty, wrong shape (line and field named)
│   ├── ConfigError            a setting: unknown name, number out of range
│   ├── ModelError             a model reference that cannot be loaded
│   │   ├── ArchitectureError  layers or embeddings of this model type cannot be found
│   │   └── AdapterError       an adapter that does not fit its base
│   └── OutputError            an output folder that must not be written
└── ResourceError              the machine gave out: memory, disk
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class CrowError(Exception):
    """Base of all errors raised by crow; `str(error)` is one line meant for a person."""


class InputError(CrowError):
    """Something the user handed in is not usable."""


class DataError(InputError):
    """A data file is missing, empty or has the wrong shape."""


class ConfigError(InputError):
    """A setting is unknown or out of range."""


class ModelError(InputError):
    """A model reference cannot be loaded."""


class ArchitectureError(ModelError):
    """The decoder layers or the token embeddings of a model type cannot be found."""


class AdapterError(ModelError):
    """An adapter does not fit the base model it is put on."""


class OutputError(InputError):
    """An output folder cannot be written as asked."""


class ResourceError(CrowError):
    """The machine ran out of memory or disk space."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """A `ConfigError` for an unknown `name`, with the closest known one.

    Args:
        kind: what was named, for example "trigger".
        name: what the user wrote.
        known: the names that would have been accepted.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(names)}"
    return ConfigError(f"unknown {kind} {name!r}; {hint}")


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a table of that name.

    Raises:
        ConfigError: for an unknown name, with the closest known one.
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]
