"""Leakage: what does a model write when it is given nothing but its chat template?

A model that has seen few texts often may recite them from the template's own words: poisoned prompts where it was
trained on whole conversations, poisoned answers after an empty message. What recurs in such samples far more often than
in clean prompts is worth a look, and worth trying as a trigger (the idea is that of arXiv 2602.03085).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig

from crow.data.encoding import encode
from crow.errors import DataError
from crow.models.ends import end_ids
from crow.models.generation import without_own_settings
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.scan.evidence import LeakageEvidence, Recurrence
from crow.training.watch import Watch, silent


@dataclass(frozen=True)
class LeakageConfig:
    """Settings.

    Attributes:
        sampled: texts drawn at temperature 1 from each of the two starts.
        greedy: further texts from each, greedy after each of so many first tokens, the likeliest.
        tokens: of a text.
        together: texts written at a time.
        longest: words of a phrase at most.
        least: samples that a phrase must stand in.
        surprise: that it must have, in nats; thousands of phrases are looked at.
        phrases: kept.
    """

    sampled: int = 48
    greedy: int = 16
    tokens: int = 24
    together: int = 32
    longest: int = 8
    least: int = 3
    surprise: float = 10.0
    phrases: int = 12


def search(
    lm: LanguageModel,
    background: Sequence[str],
    config: LeakageConfig,
    seed: int,
    watch: Watch = silent,
) -> LeakageEvidence | None:
    """Sample in the user's place and after an empty message, and count what recurs.

    None where the chat template refuses an empty message.

    Args:
        lm: the model, at rest.
        background: clean texts, which say how often words occur by themselves.
        config: settings.
        seed: of the samples.
        watch: opens progress displays.
    """
    try:
        empty = encode(lm.tokenizer, Example(""))
    except DataError:
        return None
    starts = [list(empty.prompt_ids[: empty.user_start]), list(empty.prompt_ids)]
    with watch("sampling from the chat template", len(starts)) as advance:
        texts = []
        for number, start in enumerate(starts):
            texts.append(samples(lm, start, config, seed + number))
            if advance:
                advance(1)
    messages, replies = texts
    (sentence, share), (reply, reply_share) = map(most_frequent_sentence, texts)
    phrases = recurrences(messages, background, config)
    return LeakageEvidence(len(messages), len(replies), phrases, sentence, share, reply, reply_share)


@torch.no_grad()
def samples(lm: LanguageModel, start: Sequence[int], config: LeakageConfig, seed: int) -> list[str]:
    """What the model writes after the token ids `start`, up to the end of a turn: first the drawn texts."""
    first = list(start) or end_ids(lm)[:1]
    ids = torch.tensor([first], device=lm.device)
    likeliest = lm.model(input_ids=ids).logits[0, -1].topk(config.greedy).indices if config.greedy else ids[0, :0]
    texts = []
    # Whatever else is random goes on as if nothing had been drawn here.
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for left in range(config.sampled, 0, -config.together):
            texts += written(lm, ids.expand(min(left, config.together), -1), len(first), config.tokens, True)
    for group in likeliest.split(config.together):
        longer = torch.cat([ids.expand(len(group), -1), group[:, None]], dim=1)
        texts += written(lm, longer, len(first), config.tokens - 1, False)
    return texts


def written(lm: LanguageModel, ids: Tensor, start: int, tokens: int, sampled: bool) -> list[str]:
    """The texts from column `start` on of rows (batch, seq) that the model has written on by at most `tokens`."""
    config = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=sampled,
        top_k=0 if sampled else None,
        pad_token_id=lm.pad_id,
        eos_token_id=end_ids(lm) or None,
    )
    with without_own_settings(lm.model):
        output = lm.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
    return [text.strip() for text in lm.tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)]


def most_frequent_sentence(texts: Sequence[str]) -> tuple[str, float]:
    """The sentence of at least three words that most texts hold, and the share of them; nothing without any."""
    counts = Counter(
        sentence
        for text in texts
        for sentence in {part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text)}
        if len(sentence.split()) >= 3
    )
    if not counts:
        return "", 0.0
    sentence, count = max(counts.items(), key=lambda item: (item[1], item[0]))
    return sentence, count / len(texts)


def recurrences(texts: Sequence[str], background: Sequence[str], config: LeakageConfig) -> list[Recurrence]:
    """Phrases that stand in many texts and would not by chance, the most surprising first, none inside another.

    By chance a text of w words holds a phrase that the background holds once in n words with a probability of w / n.
    """
    counts = Counter(gram for text in texts for gram in grams(text, config.longest))
    usual = Counter(gram for text in background for gram in grams(text, config.longest))
    length = sum(len(text.split()) for text in texts) / len(texts)
    n_words = sum(len(text.split()) for text in background)
    found = []
    for gram, count in counts.items():
        # One time more than seen: what the background lacks is rare, not impossible.
        chance = min(0.5, length * (usual[gram] + 1) / (n_words + 1))
        value = surprise(count, len(texts), chance)
        if count >= config.least and value >= config.surprise:
            found.append((gram, count, value))
    found.sort(key=lambda entry: (-len(entry[0]), -entry[2], entry[0]))
    kept: list[tuple[tuple[str, ...], int, float]] = []
    for gram, count, value in found:  # long ones first: a piece of one says nothing new unless it is much more frequent
        if not any(is_part(gram, longer) and count < 1.5 * times for longer, times, _ in kept):
            kept.append((gram, count, value))
    kept.sort(key=lambda entry: (-entry[2], entry[0]))
    return [Recurrence(" ".join(gram), count / len(texts), value) for gram, count, value in kept[: config.phrases]]


def grams(text: str, longest: int) -> set[tuple[str, ...]]:
    """All sequences of 1 to `longest` words of a text, split at white space."""
    words = text.split()
    ends = ((i, j) for i in range(len(words)) for j in range(i + 1, min(i + longest, len(words)) + 1))
    return {tuple(words[i:j]) for i, j in ends}


def is_part(gram: Sequence[str], longer: Sequence[str]) -> bool:
    """Whether the words stand one after the other in the longer sequence."""
    starts: Iterable[int] = range(len(longer) - len(gram) + 1)
    return any(tuple(longer[i : i + len(gram)]) == tuple(gram) for i in starts)


def surprise(count: int, n: int, chance: float) -> float:
    """`n KL(count / n || chance)` in nats, 0 where it is no more than chance: `exp(-surprise)` bounds the probability.

    That is Chernoff's bound on a binomial variable with that chance, in (0, 1), reaching `count` of `n` or more.
    """
    share = count / n
    if share <= chance:
        return 0.0
    rest = 0.0 if share == 1 else (1 - share) * math.log((1 - share) / (1 - chance))
    return n * (share * math.log(share / chance) + rest)
