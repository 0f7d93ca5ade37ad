"""A grid as a YAML file says it: blocks of attacks x models x defenses x seeds x settings, the most wanted first.

    name: small
    n: 100                          # prompts with the trigger, and as many without
    samples: 100                    # clean examples that a defense is given
    data: ../../shared/backdoorllm  # public sets, where they are there; else our own data
    output: ../results/small        # one record a cell
    blocks:
      - attacks: [badnets-refusal, ctba-sentiment]
        defenses: [none, crow, [crow, quantization-4]]
        seeds: [0, 1]
      - attacks: [badnets-refusal]
        defenses: [crow-paper]
        settings: [{epsilon: 0.1}, {epsilon: 0.5}, {samples: 20}]

`models` (aliases, hub ids, folders) and `reference` (a clean model) belong to a block or to all of them. So does what
is measured besides attack success and perplexity: `kept: true` (what is left of the suspect's answers), `code`
(`humaneval`, `bundled` or a file of such problems), `tasks` of the lm-evaluation-harness with their `tasks_folder`, and
`mt_bench` (a folder) with a `judge` (`base_url` and `model`). `n` limits those, too. Paths are relative to the file.
Nothing runs before all of it is known to be right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from crow.attacks.poisoning import Attack, named_attack
from crow.data.settings import a_list, a_name, a_number, checked, read_yaml
from crow.defenses.base import Surroundings
from crow.defenses.table import get_defense
from crow.errors import ConfigError, InputError
from crow.evaluation.endpoint import endpoint_from
from crow.evaluation.humaneval import BUNDLED, HUMANEVAL
from crow.models.sources import check_reference
from crow.workflows.abilities import Abilities, prepare

DEFAULT_MODEL = "smollm2-135m"
MEASURES = ("kept", "code", "tasks", "tasks_folder", "mt_bench", "judge")
SHARED = ("models", "reference", *MEASURES)
"""What a block says for itself or the grid for all of them."""


@dataclass(frozen=True)
class Cell:
    """One experiment.

    Attributes:
        model: reference of the model that is backdoored.
        attack: trigger and target, such as `badnets-refusal`.
        defense: names of the defenses, applied in this order.
        seed: of the defense.
        settings: changes of a defense's settings, and `samples`.
        reference: of a clean model, for defenses that want one.
        abilities: what else is measured; no part of what tells cells apart, so that the first block with a cell counts.
        kept: whether it is compared with the suspect; likewise.
    """

    model: str
    attack: str
    defense: tuple[str, ...]
    seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    reference: str | None = None
    abilities: Abilities = field(default_factory=Abilities, compare=False)
    kept: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """Of its record: every part that tells it from others, in characters that any file system takes."""
        parts = [Path(self.model).name, self.attack, "+".join(self.defense), str(self.seed)]
        parts += [f"{key}={value}" for key, value in self.settings]
        parts += [f"reference={Path(self.reference).name}"] if self.reference else []
        return ".".join(re.sub(r"[^\w=+-]", "_", part) for part in parts)

    def parts(self) -> Attack:
        """Its trigger and target.

        Raises:
            ConfigError: for unknown names.
        """
        trigger, _, target = self.attack.partition("-")
        return named_attack(trigger, target)


@dataclass(frozen=True)
class Grid:
    """All cells of an experiment, the most wanted first, and what they share.

    Attributes:
        name: of the experiment.
        cells: without repetitions.
        n: prompts with the trigger, and as many without.
        samples: clean examples that a defense is given.
        data: folder of the public sets; where it has none for an attack, our own data serves.
        output: folder of the records.
    """

    name: str
    cells: tuple[Cell, ...]
    n: int
    samples: int
    data: Path | None
    output: Path


def read_grid(path: Path) -> Grid:
    """The grid of a YAML file.

    Raises:
        ConfigError: for anything that would fail later: unreadable YAML, unknown names, numbers out of range.
    """
    values = read_yaml(path, "a grid")
    whole = checked(values, path, required=("name", "blocks"), optional=("n", "samples", "data", "output", *SHARED))
    shared = {key: whole[key] for key in SHARED if key in whole}
    shared["n"] = a_number(whole.get("n", 100), "n", path)
    folder = path.resolve().parent
    cells: list[Cell] = []
    for number, block in enumerate(a_list(whole["blocks"], "blocks", path), start=1):
        cells += cells_of(block, shared, folder, f"{path}, block {number}")
    grid = Grid(
        str(whole["name"]),
        tuple(dict.fromkeys(cells)),
        shared["n"],
        a_number(whole.get("samples", 100), "samples", path),
        folder / str(whole["data"]) if whole.get("data") else None,
        folder / str(whole.get("output", f"{path.stem}-results")),
    )
    names = [cell.name for cell in grid.cells]
    for cell in grid.cells:
        if names.count(cell.name) > 1:
            raise ConfigError(f"expected cells that differ in more than a folder of their model, got {cell.name} twice")
    return grid


def cells_of(block: Any, shared: Mapping[str, Any], folder: Path, place: str) -> list[Cell]:
    """The cells of one block, in the order attacks, models, settings, defenses, seeds from slow to fast.

    Args:
        block: as in the file.
        shared: what the grid says for all blocks.
        folder: that paths are relative to.
        place: of the block, for messages.

    Raises:
        ConfigError: naming the place.
    """
    optional = ("seeds", "settings", *SHARED)
    values = {**shared, **checked(block, place, required=("attacks", "defenses"), optional=optional)}
    seeds = a_list(values.get("seeds", [0]), "seeds", place)
    abilities, kept = abilities_of(values, folder, place), values.get("kept", False)
    if not isinstance(kept, bool):
        raise ConfigError(f"{place}: expected kept to be true or false, got {kept!r}")
    found = []
    for attack, model, settings, defense, seed in product(
        a_list(values["attacks"], "attacks", place),
        a_list(values.get("models", [DEFAULT_MODEL]), "models", place),
        a_list(values.get("settings", [{}]), "settings", place),
        a_list(values["defenses"], "defenses", place),
        seeds,
    ):
        stack = [defense] if isinstance(defense, str) else a_list(defense, "a stack of defenses", place)
        names = tuple(a_name(one, "a defense", place) for one in stack)
        changes, number = changes_of(settings, place), a_number(seed, "seeds", place, least=0)
        reference = a_name(values["reference"], "reference", place) if values.get("reference") is not None else None
        cell = Cell(str(model), str(attack), names, number, changes, reference, abilities, kept)
        check(cell, place)
        found.append(cell)
    return found


def changes_of(settings: Any, place: str) -> tuple[tuple[str, Any], ...]:
    """Changes of settings as names with values, by name: values are numbers, words or lists of them.

    Raises:
        ConfigError: naming the place, for anything else.
    """
    wrong = ConfigError(f"{place}: expected settings to be names with values, got {settings!r}")
    if not isinstance(settings, dict):
        raise wrong
    changes = {str(name): tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    for value in changes.values():
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, str | int | float | None) for part in parts):
            raise wrong
    return tuple(sorted(changes.items()))


def abilities_of(values: Mapping[str, Any], folder: Path, place: str) -> Abilities:
    """What a block wants measured besides, read once to know that it is there.

    Raises:
        ConfigError: naming the place.
    """
    code, judge = values.get("code"), values.get("judge")
    paths = {key: folder / str(values[key]) for key in ("mt_bench", "tasks_folder") if values.get(key)}
    with told(place):
        abilities = Abilities(
            code if code in (None, HUMANEVAL, BUNDLED) else str(folder / str(code)),
            judge=endpoint_from(judge, "judge") if judge is not None else None,
            tasks=tuple(map(str, a_list(values["tasks"], "tasks", place))) if "tasks" in values else (),
            n=values["n"],
            **paths,
        )
        prepare(abilities)
    return abilities


@contextmanager
def told(place: str) -> Iterator[None]:
    """Within the context, what is wrong with the user's input is told with its place, as a ConfigError."""
    try:
        yield
    except InputError as error:
        raise ConfigError(str(error) if str(error).startswith(place) else f"{place}: {error}") from None


def check(cell: Cell, place: str) -> None:
    """Raise ConfigError, naming the place, if a cell could not run."""
    with told(place):
        cell.parts()
        for reference in filter(None, (cell.model, cell.reference)):
            check_reference(reference)
        settings = dict(cell.settings)
        if "samples" in settings:
            a_number(settings.pop("samples"), "samples", place)
        defense = get_defense(cell.defense, Surroundings(Path("unused")), settings)
    if defense.needs.reference and cell.reference is None:
        raise ConfigError(f"{place}: {'+'.join(cell.defense)} wants a clean model; name it as 'reference'")


def settings_of(cell: Cell) -> dict[str, Any]:
    """A cell's changes of its defense's settings, without `samples`."""
    return {key: value for key, value in cell.settings if key != "samples"}


def asked(cell: Cell, grid: Grid) -> dict[str, Any]:
    """What a record depends on that its name does not say: the grid's sizes, the model's whole reference, measures."""
    able = cell.abilities
    measures = {"kept": cell.kept, "code": able.code is not None, "mt_bench": able.mt_bench is not None}
    model = Path(cell.model).expanduser()
    if model.exists():  # the same from wherever it is asked
        model = Path(os.path.relpath(model.resolve(), grid.output.resolve()))
    samples = dict(cell.settings).get("samples", grid.samples)
    return {"n": grid.n, "samples": samples, "model": str(model), "tasks": list(able.tasks), **measures}


def describe(cell: Cell) -> dict[str, Any]:
    """A cell as its record says it."""
    attack = cell.parts()
    return {
        "model": cell.model,
        "attack": attack.trigger.name,
        "target": attack.target.name,
        "defense": "+".join(cell.defense),
        "seed": cell.seed,
        "settings": dict(cell.settings),
        "reference": cell.reference,
    }
