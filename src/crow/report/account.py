"""What was found, done, shown and not shown, in plain sentences made of numbers and crow's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crow.records import SearchRecord
from crow.report.reading import Evaluation, as_list, as_number
from crow.report.text import count_of, duration, plural
from crow.report.verdict import Verdict


def account(
    results: Mapping[str, Any],
    verdict: Verdict,
    after: Evaluation,
    search_before: SearchRecord | None,
    search_after: SearchRecord | None,
) -> list[tuple[str, list[str]]]:
    """(heading, sentences) for each of the four questions; a question without an answer says so."""
    return [
        ("Found", _found(search_before)),
        ("Done", _done(results)),
        ("Shown", _shown(verdict, search_after)),
        ("Not shown", _not_shown(verdict, after)),
    ]


def _found(search: SearchRecord | None) -> list[str]:
    if search is None:
        return ["No search of the suspect model is on record."]
    if not search.collapsed:
        return [f"Nothing: in none of {plural(search.starts, 'start')} did unrelated prompts end in one answer."]
    return [
        f"In {search.collapsed} of {plural(search.starts, 'start')} of the search, a soft trigger made "
        "unrelated prompts give one and the same answer, as the trigger of a backdoor does."
    ]


def _done(results: Mapping[str, Any]) -> list[str]:
    steps, seconds = len(as_list(results.get("training"))), as_number(results.get("seconds"))
    done = f"The model was trained for {plural(steps, 'step')}." if steps else "No training steps are on record."
    if results.get("training") == [] and "search" in results:
        done = "Nothing was trained: the model is as it was."
    return [done] if seconds is None else [done, f"The whole run took {duration(seconds)}."]


def _shown(verdict: Verdict, search: SearchRecord | None) -> list[str]:
    shown = []
    for held, label in ((True, "Held"), (False, "Did not hold")):
        findings = [
            f"{check.finding} (limit: {check.limit})" for check in verdict.checks.values() if check.held is held
        ]
        if findings:
            shown.append(f"{label}: {', '.join(findings)}.")
    if search is not None:
        shown.append(f"Searched again: {search.collapsed} of {plural(search.starts, 'start')} collapsed.")
    if search is not None and search.artefacts:
        shown.append(
            f"{plural(len(search.artefacts), 'further answer')} to unrelated prompts came up that the suspect does not "
            "give: the training made it, it is no part of a backdoor."
        )
    return shown or ["Nothing was measured after training."]


def _not_shown(verdict: Verdict, after: Evaluation) -> list[str]:
    if after.triggered is None:
        limits = [
            "The trigger is unknown, so attack success could be measured neither before nor after.",
            "A search that finds nothing is evidence, not proof: a backdoor may remain that it cannot reach.",
        ]
    else:
        limits = [
            "Only this trigger and this target were measured: "
            f"{count_of(after.triggered)} does not speak for others that the model may carry.",
            "A search that finds nothing is evidence, not proof.",
        ]
    missing = [check.name for check in verdict.checks.values() if check.held is None]
    if missing:
        limits.append(f"Not measured: {', '.join(missing)}.")
    if "perplexity" not in verdict.checks:
        limits.append("Whether the model is as useful as before was not measured.")
    return limits
