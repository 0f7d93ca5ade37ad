from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from crow.errors import OutputError
from crow.output import claim_output, publish, work_folder, write_json, write_text


def fill(folder: Path, *names: str) -> Path:
    """A folder with files of these names, each holding its name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["new", "new/deeper/still", "empty"])
def test_a_free_folder_may_be_claimed_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    claim_output(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_folder_that_is_not_empty_needs_a_flag(tmp_path: Path) -> None:
    fill(tmp_path / "out", ".hidden")
    with pytest.raises(OutputError, match=r"not empty; choose another, or pass --overwrite$"):
        claim_output(tmp_path / "out")
    claim_output(tmp_path / "out", overwrite=True)
    assert files(tmp_path) == {"out/.hidden"}


def test_a_folder_that_is_not_empty_is_resumed_only_where_something_is_unfinished(tmp_path: Path) -> None:
    fill(tmp_path / "out", "result")
    with pytest.raises(OutputError, match=r"not empty, and no unfinished run is there to resume; .* pass --overwrite$"):
        claim_output(tmp_path / "out", resume=True)
    work_folder(tmp_path / "out").mkdir()
    claim_output(tmp_path / "out", resume=True)
    with pytest.raises(OutputError, match="--overwrite or --resume"):
        claim_output(tmp_path / "out")


def test_the_work_folder_is_a_sibling_however_the_output_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "below")
    assert work_folder(Path("..")) == work_folder(tmp_path / "out") == tmp_path / ".out.partial"


@pytest.mark.parametrize("name", ["file", "file/out", "file/deeper/out"])
def test_a_file_is_no_folder_nor_on_the_way_to_one(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "file")
    with pytest.raises(OutputError, match="file"):
        claim_output(tmp_path / name, overwrite=True)


def test_what_a_run_reads_is_not_replaced(tmp_path: Path) -> None:
    out = fill(tmp_path / "out", "model/config.json", "data.jsonl")
    link = tmp_path / "link"
    link.symlink_to(out)
    for path in (out, out / "model", out / "data.jsonl", link, str(out)):
        with pytest.raises(OutputError, match="would replace"):
            claim_output(out, overwrite=True, inputs=[None, path])
    claim_output(out, overwrite=True, inputs=["owner/name", tmp_path / "elsewhere", tmp_path, None])


def test_a_folder_without_permission_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match="no permission"):
        claim_output(tmp_path / "out")


def test_the_work_folder_is_a_hidden_sibling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert work_folder(tmp_path / "out") == tmp_path / ".out.partial"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert work_folder(Path()) == tmp_path / ".here.partial"


def test_publishing_replaces_everything(tmp_path: Path) -> None:
    work = fill(tmp_path / "work", "a.json", "sub/b", "config.json")
    out = fill(tmp_path / "out", "a.json", "old", "sub/old", "other/old")
    (out / "link").symlink_to(fill(tmp_path / "kept", "precious"))
    publish(work, out)
    assert files(out) == {"a.json", "sub/b", "config.json"}
    assert (out / "sub" / "b").read_text() == "sub/b"
    assert not work.exists()
    assert files(tmp_path / "kept") == {"precious"}


def test_the_output_folder_itself_stays(tmp_path: Path) -> None:
    """It may be a mount point, or where somebody's shell stands."""
    out = fill(tmp_path / "out", "old")
    before = out.stat().st_ino
    publish(fill(tmp_path / "work", "new"), out)
    assert out.stat().st_ino == before


def test_an_interrupted_move_leaves_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = fill(tmp_path / "work", "adapter_config.json", "config.json", "model.safetensors", "tokenizer.json")
    moved: list[str] = []

    def move(source: Path, target: Path) -> None:
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(Path(source).name)
        Path(source).rename(target)

    monkeypatch.setattr("crow.output.shutil.move", move)
    with pytest.raises(KeyboardInterrupt):
        publish(work, tmp_path / "out")
    assert "config.json" not in files(tmp_path / "out")
    assert "model.safetensors" in files(tmp_path / "out")


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "a.json"
    write_json(path, {"α": [1, (2, 3)]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"α": [1, [2, 3]]}
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="broken"):
        write_text(path, "other")
    assert path.read_bytes() == before
    assert files(tmp_path) == {"sub/a.json"}
