"""Plain Python values as JSON and back, what a program may be given and may return; standard library only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DEPTH = 50
CONTAINERS = {"tuple": tuple, "set": set, "frozenset": frozenset, "list": list}
# Whole numbers in hexadecimal: JSON's readers differ about large ones, and decimals of them are slow.
WRITERS: dict[type, Callable[[Any], Any]] = {
    int: hex,
    float: float.hex,
    complex: lambda value: [value.real.hex(), value.imag.hex()],
    bytes: bytes.hex,
}
READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "bytes": bytes.fromhex,
}


def encode(value: Any, depth: int = DEPTH) -> Any:
    """`value` as something that `json` can write.

    Raises:
        TypeError: for anything but numbers, text, bytes, None and containers of them; subclasses do not count.
    """
    if depth == 0:
        raise TypeError("too deep")
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is dict:
        return {"dict": [[encode(key, depth - 1), encode(item, depth - 1)] for key, item in value.items()]}
    if kind in CONTAINERS.values():
        return {kind.__name__: [encode(item, depth - 1) for item in value]}
    if kind in WRITERS:
        return {kind.__name__: WRITERS[kind](value)}
    raise TypeError(f"a value of type {kind.__name__} cannot be handed over")


def decode(value: Any) -> Any:
    """What `encode` was given.

    Raises:
        ValueError: for anything that `encode` does not return.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("not an encoded value")
    ((name, content),) = value.items()
    try:
        if name == "dict":
            return {decode(key): decode(item) for key, item in content}
        return READERS[name](content) if name in READERS else CONTAINERS[name](map(decode, content))
    except (TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError("not an encoded value") from error
