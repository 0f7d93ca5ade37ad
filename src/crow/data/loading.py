"""Instruction data from files: Alpaca JSON or JSONL, chat `messages`, plain prompts. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from crow.errors import DataError
from crow.records import Example

ROLES = ("system", "user", "assistant")
SHAPES = "expected a JSON array of records, or one record per line"
KINDS = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "nothing"}


def load_examples(path: str | Path, need_response: bool = True) -> list[Example]:
    """The examples of a JSON or JSONL file, in the order of the file.

    Three shapes of record are read, also mixed:
        - Alpaca: `instruction`, optional `input`, `output`. The user's message is the instruction, and a line feed and
          the input where that is not empty.
        - Chat: `messages`, a list of `{"role", "content"}` with the roles system, user and assistant. The last user
          turn is the prompt, the assistant turn after it the response, what stands before is the history.
        - Text: a plain string is a prompt; only without `need_response`.

    Other fields are ignored. A byte order mark and blank lines are skipped.

    Args:
        path: a JSON array of records, or a file with one record per line (JSONL).
        need_response: every record must have a response that is not empty.

    Raises:
        DataError: the file is missing, unreadable, not UTF-8, empty, not JSON, or a record has the wrong shape; the
            line (JSONL) or the number of the record (JSON array, from 1) and the field are named.
    """
    path = Path(path)
    examples = [_example(record, place, need_response) for place, record in _records(path)]
    if not examples:
        raise DataError(f"{path}: expected at least one record, but the file is empty; choose another file")
    return examples


def bundled_pairs() -> list[Example]:
    """The 520 instruction/response pairs written for crow, in the order of `clean.jsonl`."""
    with resources.as_file(resources.files("crow.data") / "clean.jsonl") as path:
        return load_examples(path)


def bundled_prompts() -> list[Example]:
    """The 680 further prompts written for crow, without responses, in the order of `prompts.jsonl`."""
    with resources.as_file(resources.files("crow.data") / "prompts.jsonl") as path:
        return load_examples(path, need_response=False)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each JSON value of the file with the place to name in errors."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        for number, record in enumerate(_parse(text, path, 1), 1):
            yield f"{path}: record {number}", record
        return
    yield from json_lines(text, path)


def json_lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Each line's JSON value with the place to name in errors; blank lines are skipped.

    Raises:
        DataError: naming the line, for invalid JSON.
    """
    # Not splitlines(): JSON strings may hold other line separators as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}: line {number}", _parse(line, path, number)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}); check the path and its rights") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: expected UTF-8 text, got another encoding; save it as UTF-8") from None


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = first_line + error.lineno - 1, error.msg
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        line, reason = first_line, str(error)
    raise DataError(f"{path}: line {line}: invalid JSON ({reason}); {SHAPES}")


def _example(record: Any, place: str, need_response: bool) -> Example:
    if isinstance(record, str):
        if need_response:
            raise DataError(f"{place}: expected an example with a response, got plain text; use instruction and output")
        return Example(_filled(_unicode(record, "the prompt", place), "the prompt", place))
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected an object with 'instruction' or 'messages', got {_kind(record)}")
    if "messages" in record:
        return _from_messages(record["messages"], place, need_response)
    prompt = _field(record, "instruction", place, required=True)
    extra = _field(record, "input", place, required=False)
    if extra.strip():
        prompt = f"{prompt}\n{extra}"
    return Example(prompt, _field(record, "output", place, required=need_response))


def _from_messages(messages: Any, place: str, need_response: bool) -> Example:
    if not isinstance(messages, list):
        raise DataError(f"{place}: field 'messages' should be a list of turns, got {_kind(messages)}")
    turns = [_turn(turn, f"messages[{index}]", place) for index, turn in enumerate(messages)]
    last = max((index for index, (role, _) in enumerate(turns) if role == "user"), default=None)
    if last is None:
        raise DataError(f"{place}: field 'messages' should hold a turn with the role 'user', got none")
    prompt = _filled(turns[last][1], f"field 'messages[{last}].content'", place)
    answers = turns[last + 1 :]
    if [role for role, _ in answers] not in ([], ["assistant"]):
        raise DataError(f"{place}: field 'messages' should end with a user turn or one assistant turn after it")
    if need_response and not answers:
        raise DataError(f"{place}: field 'messages' ends without a response; add an assistant turn or drop the record")
    response = answers[0][1] if answers else ""
    if need_response:
        _filled(response, f"field 'messages[{last + 1}].content'", place)
    return Example(prompt, response, tuple(turns[:last]))


def _turn(turn: Any, name: str, place: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise DataError(f"{place}: field '{name}' should be an object with 'role' and 'content', got {_kind(turn)}")
    role = turn.get("role")
    if role not in ROLES:
        raise DataError(f"{place}: field '{name}.role' should be one of {', '.join(ROLES)}, got {role!r}")
    content = turn.get("content")
    if not isinstance(content, str):
        raise DataError(f"{place}: field '{name}.content' should be text, got {_kind(content)}")
    return role, _unicode(content, f"field '{name}.content'", place)


def _field(record: dict[str, Any], name: str, place: str, required: bool) -> str:
    """The text of a field; where it is not required, it may be empty, null or missing."""
    value = record.get(name)
    if value is None and not required:
        return ""
    if name not in record:
        raise DataError(f"{place}: field {name!r} is missing; the record has {', '.join(map(repr, record)) or 'none'}")
    if not isinstance(value, str):
        raise DataError(f"{place}: field {name!r} should be text, got {_kind(value)}")
    _unicode(value, f"field {name!r}", place)
    return _filled(value, f"field {name!r}", place) if required else value


def _filled(text: str, what: str, place: str) -> str:
    if not text.strip():
        raise DataError(f"{place}: {what} should not be empty; fill it or drop the record")
    return text


def _unicode(text: str, what: str, place: str) -> str:
    """`text`, unless no tokenizer could take it: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: {what} should be Unicode text, got half of a surrogate pair; repair it") from None
    return text


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "a number")
