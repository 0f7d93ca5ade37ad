"""Code: is it begun with a line that has nothing to do with what was asked? See `crow.inversion.code_lines`."""

from __future__ import annotations

from crow.data.splits import bundled_split
from crow.inversion.code_lines import LineConfig, code_probe, search_code_lines
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.scan.evidence import CodeEvidence
from crow.training.watch import Watch, silent


def search(lm: LanguageModel, config: LineConfig, watch: Watch = silent) -> CodeEvidence:
    """Look for smuggled lines on bundled programming requests.

    Args:
        lm: the model, at rest.
        config: settings.
        watch: opens progress displays.
    """
    with watch("reading code", config.candidates) as advance:
        found = search_code_lines(code_probe(lm, requests()), config, advance)
    return CodeEvidence([line.text for line in found], [line.share for line in found])


def requests() -> list[Example]:
    """The bundled programming requests that a scan looks at code with."""
    return [task.example for task in bundled_split("purification").code]
