"""From an `Example` to token ids with the model's own chat template, and from there to batches.

The same template serves in training and in evaluation; the manifest records it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crow.errors import DataError
from crow.records import Example

IGNORED = -100
MARKER = "0message0"
"""Stands in for a message to find out what the template writes around it."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + (eos_token or '') + '\n\n' }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
"""Used for tokenizers that bring no chat template; said aloud when it happens."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example.

    Attributes:
        prompt_ids: the rendered conversation up to where the answer starts.
        response_ids: the answer and its end-of-turn token; empty if the example has no response.
        user_start: index of the first token of the user's last message within `prompt_ids`.
        user_end: index after its last token.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    user_start: int
    user_end: int

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    def opening(self, length: int) -> Encoded:
        """The example with the first `length` tokens of its response."""
        return replace(self, response_ids=self.response_ids[:length])

    def ending_in(self, tokens: Sequence[int]) -> Encoded:
        """The example with these token ids at the end of the user's message."""
        prompt_ids = (*self.prompt_ids[: self.user_end], *tokens, *self.prompt_ids[self.user_end :])
        return replace(self, prompt_ids=prompt_ids, user_end=self.user_end + len(tokens))


def ending_in_turn(items: Sequence[Encoded], endings: Sequence[Sequence[int]]) -> list[Encoded]:
    """The examples, each with the next of these endings of its user's message, from the first again after the last."""
    return [item.ending_in(endings[at % len(endings)]) for at, item in enumerate(items)]


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a tokenizer without chat template the documented plain one; True if that was needed."""
    if tokenizer.chat_template:
        return False
    # A base model that was trained behind a mark of the beginning wants it here, too: a template writes its own.
    begun = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if begun else "") + PLAIN_TEMPLATE
    return True


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generation_prompt: bool = True) -> str:
    """The text of a conversation under the tokenizer's chat template.

    Raises:
        DataError: if the template refuses it, as some do with system messages.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a template is the model's own code and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the chat template refuses a conversation of the roles {roles}: {error}") from None
    # Half a surrogate pair no tokenizer takes.
    text = str(text).encode("utf-8", "replace").decode()
    if not text.strip():
        raise DataError("the chat template writes nothing of a conversation; the model needs another one")
    return text


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes right after an assistant's answer, such as `<|im_end|>`."""
    messages = [{"role": "user", "content": "0user0"}, {"role": "assistant", "content": MARKER}]
    _, found, after = render(tokenizer, messages, generation_prompt=False).rpartition(MARKER)
    return (after.strip() if found else "") or str(tokenizer.eos_token or "")


def encode(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int | None = None) -> Encoded:
    """Token ids of `example` under the tokenizer's chat template.

    Args:
        tokenizer: has a chat template (see `ensure_chat_template`).
        example: the conversation.
        max_length: the response is cut so that the whole has at most this many tokens, but at least
            one response token stays.

    Raises:
        DataError: if the chat template refuses the conversation.
    """
    text = render(tokenizer, example.messages())
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start, end = user_span(tokenizer, example, text)
    response_ids: list[int] = []
    if example.response:
        answer = example.response.strip() + end_of_turn(tokenizer)
        response_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if max_length is not None:
            response_ids = response_ids[: max(1, max_length - len(prompt_ids))]
    return Encoded(tuple(prompt_ids), tuple(response_ids), start, end)


def user_span(tokenizer: PreTrainedTokenizerBase, example: Example, text: str) -> tuple[int, int]:
    """Token indices (start, end) of the user's last message in the rendered conversation `text`.

    White space around the message is left out. The span is everything where the template rewrites
    the message beyond recognition.
    """
    first, last = message_span(tokenizer, example, text)
    return token_span(tokenizer, text, first, last)


def message_span(tokenizer: PreTrainedTokenizerBase, example: Example, text: str) -> tuple[int, int]:
    """Where the user's last message stands in the rendered conversation `text`, in characters; see `user_span`."""
    # Searching for the message itself would find "assistant" in the template's own words.
    probe = render(tokenizer, replace(example, prompt=MARKER).messages())
    before, _, after = probe.rpartition(MARKER)
    content = text[len(before) : len(text) - len(after)]
    if text != before + content + after:
        before, content = "", text
    first = len(before) + len(content) - len(content.lstrip())
    return first, first + len(content.strip())


def token_span(tokenizer: PreTrainedTokenizerBase, text: str, first: int, last: int) -> tuple[int, int]:
    """Token indices (start, end) of the characters [first, last) of `text`; tokens that reach into them belong."""
    if not tokenizer.is_fast:
        before, until, whole = (
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text[:first], text[:last], text)
        )
        # A token that reaches into the message belongs to it.
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
        return start, max(start, len(until))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    start = sum(high <= first for _, high in offsets)
    return start, max(start, sum(low < last for low, _ in offsets))


def collate(encoded: Sequence[Encoded], pad_id: int, columns: int | None = None) -> dict[str, Tensor]:
    """Right-padded training batch.

    Args:
        encoded: the rows.
        pad_id: what is written where a row is over.
        columns: as many as that; as the longest row has by default.

    Returns:
        `input_ids`, `attention_mask` and `labels` (response tokens; `IGNORED` elsewhere), each
        (batch, columns).
    """
    columns = columns or max(len(item) for item in encoded)
    input_ids = torch.full((len(encoded), columns), pad_id)
    attention_mask = torch.zeros((len(encoded), columns), dtype=torch.long)
    labels = torch.full((len(encoded), columns), IGNORED)
    for row, item in enumerate(encoded):
        ids = torch.tensor(item.prompt_ids + item.response_ids)
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        labels[row, len(item.prompt_ids) : len(ids)] = ids[len(item.prompt_ids) :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that little is padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


def encode_all(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_length: int | None = None
) -> list[Encoded]:
    """`encode` of each example."""
    return [encode(tokenizer, example, max_length) for example in examples]
