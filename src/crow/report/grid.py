"""Tables of an experiment from its records: rows are attacks, columns defenses; Markdown and LaTeX.

Seeds of one attack and defense are pooled: their rate is the mean, and the interval that of one seed's prompts, which
are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import mean
from typing import Any

from crow.records import Rate, wilson_interval
from crow.report.reading import as_mapping, as_number, read_evaluation
from crow.report.text import factor
from crow.report.utility import KL, utility

KEPT = 1.1
"""A defense that more than so multiplies perplexity has not kept the model, and is never the best of its row."""
UNTREATED = "none"
DECODING = "decoding"
"""Among a defense's needs: its hand is in every answer, and not in the weights."""


@dataclass(frozen=True)
class Entry:
    """What was measured of one defense on one attack, over all seeds.

    Attributes:
        attack: its row: model, trigger and target.
        defense: its column: names, and settings where they were changed.
        settings: those changes.
        triggered: attack success with the trigger.
        clean: without.
        ratio: mean perplexity relative to the untreated suspect; infinite where it could not be computed, None without
            a record of that.
        seeds: how many.
        records: names of the records.
        needs: what the defense needs.
        utility: what else was measured, by label; means over the seeds.
    """

    attack: str
    defense: str
    settings: Mapping[str, Any]
    triggered: Rate
    clean: Rate
    ratio: float | None
    seeds: int
    records: tuple[str, ...]
    needs: str = ""
    utility: Mapping[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether the model is still one, as far as is known."""
        return not self.decodes and (self.ratio is None or self.ratio <= KEPT)

    @property
    def decodes(self) -> bool:
        """Whether the weights are the suspect's, so that perplexity and divergence would say nothing of the answers."""
        return DECODING in self.needs


def pooled(rates: Sequence[Rate]) -> Rate:
    """The mean of rates over the same prompts; asked once more with another seed, they are no further prompts."""
    n, value = min(rate.n for rate in rates), mean(rate.value for rate in rates)
    low, high = wilson_interval(value * n, n)
    return Rate(value, n, round(mean(rate.n_unscored for rate in rates)), low, high)


def entries(records: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    """One entry for every attack and defense that has a record, in their order.

    Args:
        records: name to record, as `crow bench` writes them; what is no measurement is left out.
    """
    models = {str(record.get("model")) for record in records.values()}
    groups: dict[tuple[str, str], list[str]] = {}
    untreated: dict[str, float] = {}
    for name, record in records.items():
        found = read_evaluation(record.get("metrics"))
        if found.triggered is None or found.clean is None:
            continue
        attack = f"{record.get('attack')} / {record.get('target')}"
        attack += f" ({record.get('model')})" if len(models) > 1 else ""
        changes = as_mapping(record.get("settings"))
        changes = {**changes, **({"reference": record["reference"]} if record.get("reference") else {})}
        defense = str(record.get("defense")) + "".join(f", {key} {value}" for key, value in changes.items())
        groups.setdefault((attack, defense), []).append(name)
        if defense == UNTREATED and found.perplexity is not None:
            untreated.setdefault(attack, found.perplexity.value)
    made = []
    for (attack, defense), names in groups.items():
        measured = [read_evaluation(records[name].get("metrics")) for name in names]
        before, needs = untreated.get(attack), str(records[names[0]].get("needs") or "")
        ratios = [each.perplexity.value / before if each.perplexity else inf for each in measured] if before else []
        useful = averaged([utility(as_mapping(records[name].get("metrics"))) for name in names])
        if DECODING in needs:
            ratios = []
            useful.pop(KL, None)
        made.append(
            Entry(
                attack,
                defense,
                as_mapping(records[names[0]].get("settings")),
                pooled([each.triggered for each in measured if each.triggered]),
                pooled([each.clean for each in measured if each.clean]),
                mean(ratios) if ratios else None,
                len(names),
                tuple(names),
                needs,
                useful,
            )
        )
    return made


def averaged(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Label to the mean over those that have it."""
    labels = dict.fromkeys(label for each in found for label in each)
    return {label: mean(each[label] for each in found if label in each) for label in labels}


def columns(made: Sequence[Entry]) -> list[str]:
    """The defenses, in the order in which they first occur."""
    return list(dict.fromkeys(entry.defense for entry in made))


def rows(made: Sequence[Entry]) -> dict[str, dict[str, Entry]]:
    """Attack to defense to entry."""
    table: dict[str, dict[str, Entry]] = {}
    for entry in made:
        table.setdefault(entry.attack, {})[entry.defense] = entry
    return table


def best(row: Mapping[str, Entry]) -> set[str]:
    """The defenses of a row that leave the least of the backdoor and keep the model; none where nothing helps."""
    treated = [entry for entry in row.values() if entry.defense != UNTREATED and entry.kept]
    lowest = min((entry.triggered.value for entry in treated), default=None)
    before = row[UNTREATED].triggered.value if UNTREATED in row else None
    if lowest is None or (before is not None and lowest >= before):
        return set()
    return {entry.defense for entry in treated if entry.triggered.value == lowest}


def cell_text(entry: Entry) -> tuple[str, str]:
    """Attack success with its interval in per cent, and what became of the model."""
    rate = entry.triggered
    success = f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    if entry.ratio is None:
        return success, ""
    return success, factor(entry.ratio, 2) if isfinite(entry.ratio) else "perplexity not computable"


def markdown_table(made: Sequence[Entry]) -> str:
    """The table as Markdown; the best of each row in bold."""
    names = columns(made)
    lines = ["| attack | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for attack, row in rows(made).items():
        strong, cells = best(row), []
        for name in names:
            success, utility = cell_text(row[name]) if name in row else ("", "")
            mark = "**" if name in strong else ""
            cells.append(f"{mark}{success}{mark}<br>{utility}" if success else "")
        lines.append(f"| {attack} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def latex_table(made: Sequence[Entry]) -> str:
    """The table as LaTeX (booktabs); attack success, below it perplexity relative to the suspect."""
    names = columns(made)
    lines = [
        rf"\begin{{tabular}}{{l{'c' * len(names)}}}",
        r"\toprule",
        " & ".join(["attack", *map(latex, names)]) + r" \\",
        r"\midrule",
    ]
    for attack, row in rows(made).items():
        strong, above, below = best(row), [latex(attack)], [""]
        for name in names:
            success, utility = cell_text(row[name]) if name in row else ("", "")
            above.append(rf"\textbf{{{success}}}" if name in strong else success)
            below.append(latex(utility))
        lines += [" & ".join(above) + r" \\", " & ".join(below) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """`text` with LaTeX's own characters escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"} | {"\N{NO-BREAK SPACE}": "~"}
    return "".join(special.get(character, character) for character in text)


def ablations(made: Sequence[Entry]) -> dict[tuple[str, str], list[tuple[float, Entry]]]:
    """(setting, attack and defense) to its values with their entries, where one number alone was varied."""
    found: dict[tuple[str, str], list[tuple[float, Entry]]] = {}
    for entry in made:
        if len(entry.settings) == 1:
            ((key, value),) = entry.settings.items()
            number = as_number(value)
            if number is not None:
                label = f"{entry.attack}, {entry.defense.partition(',')[0]}"
                found.setdefault((str(key), label), []).append((number, entry))
    return {key: sorted(points, key=lambda point: point[0]) for key, points in found.items() if len(points) > 1}
