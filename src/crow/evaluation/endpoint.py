"""A model behind an OpenAI-compatible endpoint, asked politely and never twice for the same.

Every reply is kept on disk by what was asked of whom, so that a rerun pays nothing. The official client retries what is
worth retrying (429, 5xx, a lost connection) with growing pauses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crow.data.settings import checked, read_yaml
from crow.errors import ConfigError, DataError
from crow.models.sources import one_line
from crow.output import write_json
from crow.records import dump_json

PATIENCE = 5
"""Requests without a single reply after which asking on is pointless."""


@dataclass(frozen=True)
class Endpoint:
    """Where and what to ask.

    Attributes:
        base_url: such as `https://host/v1`.
        model: its name there.
        key_variable: the environment variable that holds the key.
        requests_per_minute: at most so many.
        timeout: seconds for one reply.
        retries: of one request.
        max_tokens: of a reply.
        prompt_price: of a million tokens that are sent.
        completion_price: of a million tokens that come back.
        file: that says so, if one does.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    requests_per_minute: float = 120.0
    timeout: float = 120.0
    retries: int = 5
    max_tokens: int = 2048
    prompt_price: float = 0.0
    completion_price: float = 0.0
    file: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"expected the judge's URL to begin with http:// or https://, got {self.base_url!r}")
        for name in ("requests_per_minute", "timeout", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected {name} > 0, got {getattr(self, name)}")
        if self.retries < 0:
            raise ConfigError(f"expected retries >= 0, got {self.retries}")
        try:
            address = urlsplit(self.base_url)
            secret = address.username or address.password or address.query or not address.hostname
            address.port  # noqa: B018 which is parsed only now
        except ValueError as error:
            raise ConfigError(f"expected the judge's URL to be one, got {self.base_url!r}: {error}") from None
        if secret:  # it would stand in results
            raise ConfigError(f"expected the judge's URL to have a host, and the key to be in {self.key_variable}")


def endpoint_from(values: Any, place: object) -> Endpoint:
    """The endpoint that a mapping describes, by the names of `Endpoint`.

    Raises:
        ConfigError: naming the place, for unknown or missing names and values of the wrong kind.
    """
    fields = [f for f in dataclasses.fields(Endpoint) if f.name != "file"]
    kinds = {f.name: {"int": (int,), "float": (int, float)}.get(str(f.type), (str,)) for f in fields}
    required = tuple(f.name for f in fields if f.default is dataclasses.MISSING)
    optional = tuple(f.name for f in fields if f.name not in required)
    for name, value in checked(values, place, required, optional).items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise ConfigError(f"{place}: expected {name} to be a {kinds[name][-1].__name__}, got {value!r}")
    return Endpoint(**values)


def read_endpoint(path: Path) -> Endpoint:
    """The endpoint that a YAML file describes.

    Raises:
        ConfigError: if it cannot be read or has the wrong shape.
    """
    return dataclasses.replace(endpoint_from(read_yaml(path, "a judge"), path), file=path)


@dataclass
class Bill:
    """What asking has cost so far; replies from disk cost nothing."""

    asked: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


@dataclass
class Client:
    """Asks an endpoint.

    Attributes:
        endpoint: whom.
        folder: where replies are kept.
        bill: what it cost.
    """

    endpoint: Endpoint
    folder: Path
    bill: Bill = field(default_factory=Bill)
    sleep: Callable[[float], None] = time.sleep
    _next: float = 0.0

    def __post_init__(self) -> None:
        try:
            import openai  # noqa: PLC0415 an extra
        except ImportError:
            raise ConfigError("expected the package openai to ask a judge, found none; pip install openai") from None
        self._refusals = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
        self._errors = (openai.OpenAIError, ValueError, RecursionError)
        self._client = openai.OpenAI(
            base_url=self.endpoint.base_url,
            api_key=os.environ.get(self.endpoint.key_variable) or "none",
            timeout=self.endpoint.timeout,
            max_retries=self.endpoint.retries,
        )

    def ask(self, messages: list[dict[str, str]]) -> str | None:
        """The reply to chat messages; None where none came, which is counted in the bill and not kept.

        Raises:
            ConfigError: if the endpoint will not talk to us, or has given no reply to the first `PATIENCE` requests.
        """
        path = self.folder / f"{self._key(messages)}.json"
        kept = _read(path)
        if kept is not None:
            self.bill.cached += 1
            return str(kept["text"])
        self._wait()
        try:
            reply: Any = self._client.chat.completions.create(
                model=self.endpoint.model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0.0,
                max_tokens=self.endpoint.max_tokens,
            )
            text = reply.choices[0].message.content
        except self._errors as error:
            self.bill.failed += 1
            if self.bill.asked:  # it has talked to us, and may again
                return None
            if isinstance(error, self._refusals):
                told = f"the judge at {self.endpoint.base_url} refuses ({one_line(error)})"
                where = f"check URL, model and the key in {self.endpoint.key_variable}"
                raise ConfigError(f"{told}; {where}") from None
            if self.bill.failed >= PATIENCE:
                told = f"the judge at {self.endpoint.base_url} gave no reply to {self.bill.failed} requests"
                raise ConfigError(f"{told}: {one_line(error)}") from None
            return None
        except (AttributeError, IndexError, TypeError):  # a reply of some other shape
            text, reply = None, None
        if not isinstance(text, str):
            self.bill.failed += 1
            return None
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair could not be kept
        self._pay(reply)
        write_json(path, {"model": self.endpoint.model, "text": text})
        return text

    def _key(self, messages: list[dict[str, str]]) -> str:
        asked = {"url": self.endpoint.base_url, "model": self.endpoint.model, "max": self.endpoint.max_tokens}
        return hashlib.sha256(dump_json({**asked, "messages": messages}).encode()).hexdigest()[:32]

    def _wait(self) -> None:
        now = time.monotonic()
        if self._next > now:
            self.sleep(self._next - now)
        self._next = max(now, self._next) + 60.0 / self.endpoint.requests_per_minute

    def _pay(self, reply: Any) -> None:
        bill, usage = self.bill, getattr(reply, "usage", None)
        counts = (getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens"))
        sent, came = (count if isinstance(count, int) else 0 for count in counts)
        bill.asked += 1
        bill.prompt_tokens += sent
        bill.completion_tokens += came
        bill.cost += (sent * self.endpoint.prompt_price + came * self.endpoint.completion_price) / 1e6

    def summary(self) -> dict[str, Any]:
        """The bill and whom it is from."""
        return {"model": self.endpoint.model, **dataclasses.asdict(self.bill)}


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path} is no judgment of crow's; remove it") from None
