"""Only the request that left a run unfinished may go on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crow.errors import ConfigError
from crow.training.presets import get_preset
from crow.workflows.common import Options, claimed
from crow.workflows.unfinished import ASKED, asked, identity

PAPER, DEFAULT = get_preset("paper"), get_preset("default")


def unfinished(options: Options, *inputs: str | Path | None) -> None:
    """What a run leaves that is killed when it has kept something."""
    with claimed(options, *inputs, settings={"config": PAPER}) as work:
        (work / "search-0.json").write_text("{}")


@pytest.mark.parametrize(
    ("model", "config", "changes", "named"),
    [
        ("another", PAPER, {}, "what is read"),
        ("one", DEFAULT, {}, "alpha, .*rounds"),
        ("one", PAPER, {"seed": 1}, "seed"),
        ("one", PAPER, {"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_another_request_may_not_go_on_with_what_is_unfinished(
    model: str, config: object, changes: dict[str, object], named: str, tmp_path: Path
) -> None:
    unfinished(Options(tmp_path / "out"), "one")
    again = Options(tmp_path / "out", resume=True, **changes)  # type: ignore[arg-type]
    with (
        pytest.raises(ConfigError, match=rf"given, but .*{named}.* changed; leave out --resume") as told,
        claimed(again, model, settings={"config": config}),
    ):
        pytest.fail("it went on")
    assert "\n" not in str(told.value)
    assert (tmp_path / ".out.partial" / "search-0.json").is_file()


def test_the_same_request_goes_on_and_device_and_noise_are_no_part_of_it(tmp_path: Path) -> None:
    unfinished(Options(tmp_path / "out"), "one")
    again = Options(tmp_path / "out", resume=True, device="cpu", quiet=True)
    with claimed(again, "one", settings={"config": PAPER}) as work:
        assert (work / "search-0.json").is_file()


def test_what_only_one_version_asks_is_not_compared(tmp_path: Path) -> None:
    unfinished(Options(tmp_path / "out"), "one")
    with claimed(Options(tmp_path / "out", resume=True), "one", settings={"config": PAPER, "newer": 3}) as work:
        assert (work / ASKED).is_file()


def test_a_run_that_kept_nothing_leaves_no_trace(tmp_path: Path) -> None:
    with claimed(Options(tmp_path / "out"), "one", settings={}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_writes_into_what_it_reads_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    unfinished(Options(tmp_path / "out"), tmp_path)
    with claimed(Options(tmp_path / "out", resume=True), tmp_path, settings={"config": PAPER}) as work:
        assert (work / "search-0.json").is_file()
    (tmp_path / "config.json").write_text("{} ")
    with (
        pytest.raises(ConfigError, match="what is read changed"),
        claimed(Options(tmp_path / "out", resume=True), tmp_path, settings={"config": PAPER}),
    ):
        pytest.fail("it went on")


def test_inputs_are_told_by_what_they_hold(tmp_path: Path) -> None:
    one, other, folder = tmp_path / "one.jsonl", tmp_path / "other.jsonl", tmp_path / "model"
    one.write_text("same")
    other.write_text("same")
    folder.mkdir()
    assert identity(one) == identity(other)
    other.write_text("else")
    assert identity(one) != identity(other)
    before = identity(folder)
    (folder / "model.safetensors").write_text("weights")
    assert identity(folder) != before
    assert identity("some/name") == "some/name"
    assert asked([None, one], {"config": PAPER})["epochs"] == PAPER.epochs
