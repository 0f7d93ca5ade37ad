"""What the verbs make of a model that somebody wrote something into without training; searches are made up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from crow.data.encoding import encode_all
from crow.defenses import searches
from crow.defenses.purification import Result
from crow.inversion.edits import find_edits
from crow.inversion.soft_trigger import SearchResult
from crow.models.loading import load_model, save_model
from crow.training.presets import get_preset
from crow.workflows import suspect, verification
from crow.workflows.common import Options, Reporter
from crow.workflows.suspect import Suspect
from tests.cli.conftest import Run
from tests.edited import EXAMPLES, edited
from tests.made_up import collapsed

PLACE = "layer 2, mlp.down_proj"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Such a model on disk."""
    save_model(edited(), tmp_path / "written")
    return tmp_path / "written"


def places(folder: Path) -> list[str]:
    """What is written into the weights of a model on disk."""
    lm = load_model(str(folder))
    return [edit.place for edit in find_edits(lm, encode_all(lm.tokenizer, EXAMPLES))]


def test_purify_takes_it_out_and_says_so(
    written: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = SearchResult([dataclasses.replace(collapsed([5, 6]).triggers[0], collapsed=False)])
    for module in (searches, verification):
        monkeypatch.setattr(module, "search_soft_triggers", lambda *_: nothing)
        monkeypatch.setattr(module, "search_code_lines", lambda *_: [])
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    lines = [json.dumps({"instruction": each.prompt, "output": each.response}) for each in EXAMPLES]
    data.write_text("\n".join(lines))
    assert places(written) == [PLACE]
    assert run("purify", written, "-o", out, "--data", data, "--samples", 24, "--verify", "--keep-adapter") == 0
    assert not (out / "adapter").exists()  # put on the written model, it would bring back what was taken out
    assert places(out) == []
    results = json.loads((out / "results.json").read_text())
    assert [results["search"][when]["edits"] for when in ("before", "after")] == [[PLACE], []]
    assert results["verification"]["search"]["edits"] == []
    assert results["training"] == []
    said, noted = capsys.readouterr()
    assert "no adapter is kept" in noted
    assert f"written into the weights without training: {PLACE}" in said
    assert "the model is as it was" not in said
    assert "Suspicious behaviour found and treated" in said
    card, page = ((out / name).read_text() for name in ("README.md", "report.html"))
    assert "# A model purified by crow" in card
    for text in (card, page):
        assert f"The weights hold 1 direction ({PLACE}) far larger than the rest of the matrix" in text
        assert "1 direction taken out of the weights." in text
        assert "the model is as it was" not in text
    assert f"taken out of them before the search: {PLACE}" in page


def test_weights_that_are_loaded_anew_lose_it_as_well(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where training had them cut up over processes."""
    lm = load_model(str(written))
    edits = find_edits(lm, encode_all(lm.tokenizer, EXAMPLES))
    monkeypatch.setattr(suspect, "is_spread", lambda _: True)
    monkeypatch.setattr(suspect, "trained_weights", lambda _: {})
    asked = Suspect(str(written), None, continue_adapter=False)
    options = Options(written.parent / "out", quiet=True)
    for given, left in (([], 1), (edits, 0)):
        whole = asked.put_together(Result(lm, given), get_preset("default"), options, Reporter(quiet=True))
        assert whole is not None
        assert len(find_edits(whole.merged(), encode_all(lm.tokenizer, EXAMPLES))) == left
