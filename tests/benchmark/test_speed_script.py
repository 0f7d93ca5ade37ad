from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from crow.data.encoding import Encoded, encode_all
from crow.records import Example
from crow.training.adapter import make_trainable
from tests.benchmark.scripts import loaded_script
from tests.pico import pico_language_model


@pytest.fixture
def speed() -> Iterator[ModuleType]:
    """The benchmark, as a module."""
    with loaded_script("speed") as module:
        yield module


def test_every_variant_is_timed_and_counted_and_the_literal_passes_have_crows_losses(
    speed: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = pico_language_model()
    lengths = random.Random(0)
    items = encode_all(
        lm.tokenizer, [Example("a cat " * lengths.randint(1, 9), "the other tree " * 3) for _ in range(24)]
    )
    monkeypatch.setattr(speed, "load_model", lambda _: pico_language_model())
    chosen = speed.variants()
    speed.measure(chosen, items, rounds=1, steps=2)
    assert all(len(variant.seconds) == 1 and variant.peak and variant.operations for variant in chosen.values())
    found = speed.summary(chosen, [1e9], 100.0)
    assert "round 1: a published loop" in capsys.readouterr().out
    assert found["largest_loss_gap_to_literal"] < 1e-4
    assert chosen["a published loop"].losses != pytest.approx(chosen["b the same, masks right"].losses, rel=1e-3)


def test_the_published_order_is_random_whatever_the_lengths_and_another_in_each_epoch(
    speed: ModuleType, tmp_path: Path
) -> None:
    lm = pico_language_model()
    items = [Encoded((1,), (1,) * (1 + extra), 0, 1) for extra in range(64)]
    ready = make_trainable(lm, speed.OURS)
    order = speed.variants()["a published loop"].kind(ready, items, speed.OURS, tmp_path)._get_train_sampler()
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second
    spread = [max(batch) - min(batch) for batch in (first[at : at + 8] for at in range(0, 64, 8))]
    assert sum(spread) / len(spread) > 30  # batches by length would span 7
