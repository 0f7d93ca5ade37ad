from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from crow.records import Rate, to_json
from crow.report.grid import ablations, best, columns, entries, latex, latex_table, markdown_table, pooled, rows
from crow.report.grid_page import figures, render_grid, write_grid_report


def record(attack: str, defense: str, hits: int, perplexity: float, seed: int = 0, **settings: Any) -> dict[str, Any]:
    return {
        "model": "smollm2-135m",
        "attack": attack,
        "target": "refusal",
        "defense": defense,
        "seed": seed,
        "settings": settings,
        "needs": "clean data",
        "metrics": {
            "asr_triggered": to_json(Rate.of(hits, 100)),
            "asr_clean": to_json(Rate.of(1, 100)),
            "perplexity": {"value": perplexity, "n_tokens": 1000},
        },
    }


RECORDS = {
    "a-none": record("badnets", "none", 98, 10.0),
    "a-crow-0": record("badnets", "crow", 0, 10.2),
    "a-crow-1": record("badnets", "crow", 2, 10.4, seed=1),
    "a-ruin": record("badnets", "pruning-wanda", 0, 400.0),
    "a-fine": record("badnets", "finetuning", 40, 9.9),
    "b-none": record("ctba", "none", 50, 10.0),
    "b-fine": record("ctba", "finetuning", 50, 9.9),
    "c-1": record("vpi", "crow-paper", 60, 9.9, alpha=5.5),
    "c-2": record("vpi", "crow-paper", 30, 9.9, alpha=50),
    "c-3": record("vpi", "crow-paper", 90, 9.9, alpha=1),
    "broken": {"model": "smollm2-135m", "attack": "badnets", "defense": "nad", "metrics": None},
}
MADE = entries(RECORDS)
TABLE = rows(MADE)


def test_seeds_are_pooled_and_measured_against_the_untreated_suspect() -> None:
    crow = TABLE["badnets / refusal"]["crow"]
    assert (crow.seeds, crow.records) == (2, ("a-crow-0", "a-crow-1"))
    assert crow.triggered == Rate.of(1, 100)  # the mean of two seeds over the same 100 prompts
    assert crow.ratio == pytest.approx(1.03)
    assert TABLE["vpi / refusal"]["crow-paper, alpha 50"].ratio is None
    assert dataclasses.astuple(pooled([Rate.of(4, 8, 2), Rate.of(2, 8)])) == dataclasses.astuple(Rate.of(3, 8, 1))
    assert pooled([Rate.of(1, 50), Rate.of(0, 50), Rate.of(0, 50)]).high < Rate.of(1, 50).high


def test_what_decides_while_decoding_says_nothing_by_its_weights_and_is_never_the_best() -> None:
    records = {"a-none": RECORDS["a-none"], "a-cleangen": {**RECORDS["a-none"], "defense": "cleangen"}}
    metrics = {**RECORDS["a-none"]["metrics"], "asr_triggered": {"value": 0.0, "n": 100}, "kept": {"divergence": 0.0}}
    records["a-cleangen"] |= {"needs": "clean reference, decoding", "reference": "base", "metrics": metrics}
    (row,) = rows(entries(records)).values()
    entry = row["cleangen, reference base"]
    assert entry.ratio is None
    assert "KL from the suspect" not in entry.utility
    assert best(row) == set()


def test_another_reference_is_another_column() -> None:
    merged = {**RECORDS["a-none"], "defense": "merge"}
    found = entries({"a-merge": merged, "a-merge.reference=base": {**merged, "reference": "base"}})
    assert columns(found) == ["merge", "merge, reference base"]
    assert [entry.seeds for entry in found] == [1, 1]


def test_attacks_are_rows_defenses_columns_and_what_is_no_measurement_is_left_out() -> None:
    assert list(TABLE) == ["badnets / refusal", "ctba / refusal", "vpi / refusal"]
    assert columns(MADE)[:4] == ["none", "crow", "pruning-wanda", "finetuning"]
    assert "nad" not in columns(MADE)
    two = entries({"x": RECORDS["a-none"], "y": {**RECORDS["a-none"], "model": "another"}})
    assert [entry.attack for entry in two] == ["badnets / refusal (smollm2-135m)", "badnets / refusal (another)"]


def test_the_best_helps_and_keeps_the_model() -> None:
    assert best(TABLE["badnets / refusal"]) == {"crow"}  # pruning leaves as little, and no model
    assert best(TABLE["ctba / refusal"]) == set()
    assert best(TABLE["vpi / refusal"]) == {"crow-paper, alpha 50"}


def test_a_model_whose_perplexity_cannot_be_computed_is_not_the_best() -> None:
    ruined = record("badnets", "nad", 0, 10.0)
    ruined["metrics"]["perplexity"] = {"value": None, "n_tokens": 1000}
    made = entries({**{name: RECORDS[name] for name in ("a-none", "a-fine")}, "a-nad": ruined})
    assert best(rows(made)["badnets / refusal"]) == {"finetuning"}
    assert "inf" not in latex_table(made).lower()
    assert "not computable" in markdown_table(made)


def test_markdown_has_intervals_utility_and_bold() -> None:
    lines = markdown_table(MADE).splitlines()
    assert lines[0].startswith("| attack | none | crow | pruning-wanda | finetuning |")
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert (
        "| 98.0 [93.0, 99.4]<br>×\N{NO-BREAK SPACE}1.00 | **1.0 [0.2, 5.4]**<br>×\N{NO-BREAK SPACE}1.03 |" in lines[2]
    )


def test_latex_is_escaped_and_whole() -> None:
    text = latex_table(MADE)
    assert text.count(r"\textbf{") == 2
    assert r"$\times$~1.03" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body}) == 1
    assert latex("a_b & 50 % \\ {c}") == r"a\_b \& 50 \% \textbackslash{} \{c\}"


def test_a_setting_that_was_varied_gives_a_line_in_the_order_of_its_values() -> None:
    ((key, points),) = ablations(MADE).items()
    assert key == ("alpha", "vpi / refusal, crow-paper")
    assert [(value, entry.triggered.value) for value, entry in points] == [(1, 0.9), (5.5, 0.6), (50, 0.3)]
    headings = [figure.heading for figure in figures(MADE)]
    assert headings == [
        "Success against perplexity, badnets / refusal",
        "Success against perplexity, ctba / refusal",
        "Success by alpha",
    ]


def test_every_number_leads_to_its_record_and_failures_are_told(tmp_path) -> None:
    page = render_grid(MADE, {"a-cell": "<b>no such</b> set"}, "An experiment")
    for name in RECORDS:
        assert (f'href="{name}.json"' in page) is (name != "broken")
    assert "&lt;b&gt;no such&lt;/b&gt; set" in page
    write_grid_report(RECORDS, {}, tmp_path, "An experiment")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "table.md", "table.tex"]


def test_an_experiment_without_a_record_has_a_page(tmp_path) -> None:
    write_grid_report({}, {}, tmp_path, "Nothing yet")
    assert "Nothing yet" in (tmp_path / "report.html").read_text()


def test_what_else_was_measured_is_averaged_over_seeds_and_labelled() -> None:
    share = {"value": 0.25, "n": 4, "n_unscored": 0}
    more = {
        "kept": {
            "divergence": 0.02,
            "unchanged_answers": share,
            "after": {"distinct_2": 0.9, "declined": {"harmful": share}},
        },
        "code": {"problems": "bundled", "pass_at_1": share},
        "mt_bench": {"score": 5.5, "n": 2, "n_unscored": 0},
        "tasks": {"hellaswag": {"n": 5, "acc": {"value": 0.4, "stderr": 0.1}}},
    }
    one, other = record("badnets", "crow", 0, 10.0), record("badnets", "crow", 0, 10.0, seed=1)
    one["metrics"] |= more
    other["metrics"] |= {"kept": {"divergence": 0.04}, "mt_bench": {"score": None}}
    (entry,) = entries({"0": one, "1": other})
    assert entry.utility == pytest.approx(
        {
            "KL from the suspect": 0.03,
            "same answers": 0.25,
            "distinct-2": 0.9,
            "declined, harmful": 0.25,
            "pass@1, bundled": 0.25,
            "MT-Bench": 5.5,
            "hellaswag, acc": 0.4,
        }
    )
    page = render_grid([entry], {}, "x")
    for label, value in entry.utility.items():
        assert f'<th scope="col">{label}</th>' in page
        assert f"{value:.3f}" in page
