"""What was found, done, shown and not shown, in plain sentences made of numbers and crow's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crow.records import SearchRecord
from crow.report.reading import as_list, as_mapping, as_number, read_perplexity, read_rate
from crow.report.scan import scan_label
from crow.report.text import count_of, duration, factor, plural
from crow.report.verdict import Verdict
from crow.report.view import View


def account(results: Mapping[str, Any], view: View) -> list[tuple[str, list[str]]]:
    """(heading, sentences) for each of the four questions; a question without an answer says so."""
    verified = _verified(as_mapping(results.get("verification")), view.verified)
    return [
        ("Found", [*_scanned(as_mapping(results.get("scan"))), *_found(view.search_before)]),
        ("Done", _done(results, view)),
        ("Shown", [*_shown(view.verdict, view.search_after), *verified]),
        ("Not shown", _not_shown(results, view)),
    ]


def _found(search: SearchRecord | None) -> list[str]:
    if search is None:
        return ["No search of the suspect model is on record."]
    if search.collapsed:
        said = [
            f"In {search.collapsed} of {plural(search.starts, 'start')} of the search, a soft trigger made "
            "unrelated prompts give one and the same answer, as the trigger of a backdoor does."
        ]
    elif search.lines:
        said = [
            f"The model is inclined to begin code with {plural(len(search.lines), 'line')} of no use to it, whatever "
            "was asked, as one does that smuggles something in. No unrelated prompts ended in one answer."
        ]
    elif search.memorized or search.behind:
        said = ["No unrelated prompts ended in one answer."]
    else:
        other = search.closings or search.edits
        nothing, one = ("Nothing else", "one other answer") if other else ("Nothing", "one answer")
        said = [f"{nothing}: in none of {plural(search.starts, 'start')} did unrelated prompts end in {one}."]
        return [*_edited(search), *_left_alone(search), *said]
    return [*_edited(search), *said, *_memorized(search), *_behind(search), *_left_alone(search)]


def _memorized(search: SearchRecord) -> list[str]:
    """Beginnings known by heart."""
    if not search.memorized:
        return []
    return [
        f"The model knows {plural(len(search.memorized), 'beginning')} of answers by heart that it does not say by "
        "itself: once the first word is given, unrelated prompts go on alike, as with answers that somebody trained "
        "in, one or many that vary (“What the search found”)."
    ]


def _behind(search: SearchRecord) -> list[str]:
    """Answers behind a token."""
    if not search.behind:
        return []
    return [
        f"Behind one token at the end of the prompts, unrelated ones were brought to "
        f"{plural(len(search.behind), 'answer')} that the model knows by heart: the token may be a part of the trigger "
        "(“What the search found”)."
    ]


def _edited(search: SearchRecord) -> list[str]:
    """What a model editor left in the weights."""
    if not search.edits:
        return []
    return [
        f"The weights hold {plural(len(search.edits), 'direction')} ({'; '.join(search.edits)}) far larger than the "
        "rest of the matrix and hardly used by clean text, as where a backdoor was written in without training."
    ]


def _left_alone(search: SearchRecord) -> list[str]:
    """What was told apart from the attacker's and left alone."""
    said = []
    if search.stock:
        said.append(
            f"{plural(len(search.stock), 'further answer')} to unrelated prompts came up that the model does not know "
            "by heart: its words might be others, as those of a phrase that a model falls back on. Left alone; see "
            "“What the search found”."
        )
    if search.closings:
        said.append(
            f"{plural(len(search.closings), 'sentence')} came up that the suspect says anyway, further on in its "
            "ordinary answers and never first, as an assistant closes them. Left alone; see “What the search found”."
        )
    return said


def _scanned(scan: Mapping[str, Any]) -> list[str]:
    """What `--scan` came to."""
    if not scan:
        return []
    targets, triggers = as_list(scan.get("targets")), as_list(scan.get("triggers"))
    found = f"{plural(len(targets), 'target text')} and {plural(len(triggers), 'candidate')} for a trigger"
    return [f"A scan before anything was changed: {scan_label(scan)}; {found} are on record."]


def _done(results: Mapping[str, Any], view: View) -> list[str]:
    steps, seconds = len(as_list(results.get("training"))), as_number(results.get("seconds"))
    done = f"The model was trained for {plural(steps, 'step')}." if steps else "No training steps are on record."
    edits = len(view.search_before.edits) if view.search_before else 0
    if results.get("training") == [] and "search" in results:
        done = "Nothing was trained: the model is as it was." if view.untouched else "Nothing was trained."
    strength = as_number(results.get("strength"))
    said = [f"{plural(edits, 'direction')} taken out of the weights.", done] if edits else [done]
    if strength is not None and strength != 1:
        said.append(f"The strength was {strength:g}; 1 is the usual one.")
    return said if seconds is None else [*said, f"The whole run took {duration(seconds)}."]


def _shown(verdict: Verdict, search: SearchRecord | None) -> list[str]:
    shown = []
    for held, label in ((True, "Held"), (False, "Did not hold")):
        findings = [
            f"{check.finding} (limit: {check.limit})" for check in verdict.checks.values() if check.held is held
        ]
        if findings:
            shown.append(f"{label}: {', '.join(findings)}.")
    if search is not None:
        shown += _searched_again(search)
    return shown or ["Nothing was measured after training."]


def _searched_again(search: SearchRecord, how: str = "Searched again") -> list[str]:
    """What a search after training saw."""
    said = [f"{how}: {search.collapsed} of {plural(search.starts, 'start')} collapsed."]
    if search.lines:
        said.append(_left_in_code(search))
    if search.memorized:
        still = plural(len(search.memorized), "beginning")
        said.append(f"The model still knows {still} of answers by heart that the suspect knows, too.")
    if search.behind:
        said.append(f"{plural(len(search.behind), 'answer')} known by heart still came up behind one token.")
    if search.artefacts:
        said.append(
            f"{plural(len(search.artefacts), 'further answer')} to unrelated prompts came up that the suspect does not "
            "give: the training made it, it is no part of a backdoor."
        )
    return [*said, *_left_alone(search)]


def _left_in_code(search: SearchRecord) -> str:
    return f"The model is still inclined to begin code with {plural(len(search.lines), 'line')} of no use to it."


def _verified(verification: Mapping[str, Any], search: SearchRecord | None) -> list[str]:
    """What `--verify` measured."""
    if search is None:
        return []
    how = "Searched once more, with another seed and on prompts that the training had not seen"
    lines = _searched_again(search, how)
    kept, scores = as_mapping(verification.get("kept")), as_mapping(verification.get("perplexity"))
    before, after = (read_perplexity(scores.get(side)) for side in ("before", "after"))
    if before and after:
        lines.append(
            f"Perplexity of {before.n_tokens:,} tokens of clean answers: {factor(after.value / before.value)}."
        )
    same, divergence = read_rate(kept.get("unchanged_answers")), as_number(kept.get("divergence"))
    if same is not None and divergence is not None:
        lines.append(
            f"Of the suspect's answers to clean prompts, {count_of(same)} are word for word the same; its predictions "
            f"of clean answers moved by {divergence:.3f} nats a token."
        )
    declined = {side: as_mapping(as_mapping(kept.get(side)).get("declined")) for side in ("before", "after")}
    for kind in declined["before"]:
        was, now = (read_rate(declined[side].get(kind)) for side in ("before", "after"))
        if was and now:
            what = "Ordinary requests declined" if kind == "ordinary" else f"Honest refusals ({kind} requests)"
            lines.append(f"{what}: {count_of(was)} before, {count_of(now)} after.")
    return lines


def _not_shown(results: Mapping[str, Any], view: View) -> list[str]:
    verdict, after, calibration = view.verdict, view.after, view.calibration
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
    if calibration and calibration.left:
        limits.append(
            f"At the strength that was chosen, {plural(len(calibration.left), 'backdoor')} of our own in a copy of the "
            f"model stayed ({', '.join(calibration.left)}): one like that would have stayed in this model as well."
        )
    missing = [check.name for check in verdict.checks.values() if check.held is None]
    if missing:
        limits.append(f"Not measured: {', '.join(missing)}.")
    if "perplexity" not in verdict.checks and "verification" not in results:
        limits.append("Whether the model is as useful as before was not measured.")
    return limits
