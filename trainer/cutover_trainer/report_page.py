"""`report.html` of the data: what was read, refused and divided, for people. Pure; everything out of a row is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutover.task import Task
from cutover_trainer.page_parts import Html, figure, page, table, text

SHOWN_BAD_ROWS = 200


@dataclass(frozen=True, slots=True)
class Sheet:
    """Pictures on one JPEG, with a title and a line about each."""

    title: str
    about: Sequence[str]
    jpeg: bytes


def report_page(
    task: Task, document: Mapping[str, Any], classes: Sequence[Sheet], pairs: Sequence[Sheet]
) -> bytes:
    """`document` is `report.json`."""
    body = [
        f"<h1>Training data for {text(task.name)}</h1>",
        _summary(document),
        _refusal(document["refused"]),
        _balance(task, document),
        _synthetic(document["synthetic"]),
        _findings(document["findings"]),
        _refused_lines(document),
        _near(document, pairs),
        _pictures(classes),
    ]
    return page(f"Data report: {task.name}", body)


def _summary(document: Mapping[str, Any]) -> str:
    bad = sum(document["badByReason"].values())
    said = [f"{document['rows']} lines", f"{bad} refused", f"{document['validated']} with a human label"]
    if document["groups"]:
        said.append(f"{document['groups']} groups")
    if document["controlRows"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in document["controlAccuracy"].items())
        said.append(f"today's model agrees on {document['controlRows']} rows: {shares}")
    return f"<p>{text('; '.join(said))}.</p>"


def _refusal(refused: Mapping[str, str] | None) -> str:
    if refused is None:
        return ""
    return f'<p class="stop"><b>{text(refused["reason"])}</b><br>{text(refused["message"])}</p>'


def _balance(task: Task, document: Mapping[str, Any]) -> str:
    per_class, parts = document["perClass"], document["parts"]
    most = max([1, *per_class.values()])
    rows = [
        [
            name,
            Html(f'<span class="bar" style="width:{12 * count / most:.2f}rem"></span>'),
            count,
            *(parts.get(part, {}).get(name, 0) for part in ("train", "validation", "test")),
        ]
        for name, count in per_class.items()
    ]
    counts = table(["class", "", "rows", "train", "validation", "test"], rows, frozenset({2, 3, 4, 5}))
    title = f"<h2>Balance of {text(task.decisive_field)}</h2>"
    if not parts:
        return title + counts
    shares = "; ".join(
        f"{part} {share['achieved']:.1%} (wanted {share['wanted']:.1%})"
        for part, share in document["shares"].items()
    )
    return f'{title}{counts}<p class="fine">Shares reached: {text(shares)}. A group is never divided.</p>'


_LEFT_OUT = {
    "NotAskedFor": "the run does not ask for any (dataset.synthetic)",
    "KnowsHeldOutRows": "they share a building, an assessment or a photograph with the validation or test part",
    "ClassNotShort": "their class has enough rows (dataset.synthetic.upToPerClass)",
    "ShareUsedUp": "the greatest share is reached (dataset.synthetic.maxShare)",
}


def _synthetic(made: Mapping[str, Any] | None) -> str:
    if made is None:
        return ""
    said = (
        f"{made['used']} of {made['found']} made-up rows are used, {made['shareOfTraining']:.1%} of the training part. "
        "None is in the validation or test part, and none counts for a demand on the data."
    )
    used = table(["class", "synthetic rows used"], made["perClass"].items(), frozenset({1}))
    left = table(
        ["left out because", "rows"],
        [[_LEFT_OUT[why], rows] for why, rows in made["leftOut"].items()],
        frozenset({1}),
    )
    return f"<h2>Synthetic rows</h2><p>{text(said)}</p>{used if made['used'] else ''}{left if made['leftOut'] else ''}"


def _findings(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    rows = [
        [one["kind"], one["rows"], one["detail"], _lines(one["lines"], one["rows"]), one["remedy"]]
        for one in found
    ]
    return "<h2>Worth a look</h2>" + table(
        ["finding", "rows", "what", "lines", "remedy"], rows, frozenset({1})
    )


def _lines(lines: Sequence[int], rows: int) -> str:
    more = f" and {rows - len(lines)} more" if lines and rows > len(lines) else ""
    return ", ".join(str(line) for line in lines) + more


def _refused_lines(document: Mapping[str, Any]) -> str:
    bad = document["bad"]
    if not bad:
        return "<h2>Refused lines</h2><p>None.</p>"
    reasons = table(["reason", "lines"], document["badByReason"].items(), frozenset({1}))
    rows = [
        [row["line"], row["id"], row["reason"], row["field"], row["detail"], row["remedy"]]
        for row in bad[:SHOWN_BAD_ROWS]
    ]
    total = len(bad) + document["badNotListed"]
    rest = total - len(rows)
    note = f"<p class=fine>{rest} more stand in refused.jsonl.</p>" if rest else ""
    listed = table(["line", "id", "reason", "field", "what", "remedy"], rows, frozenset({0}))
    return f"<h2>Refused lines</h2>{reasons}<p></p>{listed}{note}"


def _near(document: Mapping[str, Any], pairs: Sequence[Sheet]) -> str:
    total = len(document["nearDuplicates"]) + document["nearDuplicatesNotListed"]
    if not total:
        return ""
    shown = "".join(_figure(sheet) for sheet in pairs)
    return (
        f"<h2>Copies and near copies</h2><p>{total} pairs are taken as one photograph, and their rows stay in one "
        f'part. {len(pairs)} pairs that are not equal byte for byte:</p><div class="pairs">{shown}</div>'
    )


def _pictures(classes: Sequence[Sheet]) -> str:
    if not classes:
        return ""
    return "<h2>Pictures</h2>" + "".join(_figure(sheet) for sheet in classes)


def _figure(sheet: Sheet) -> str:
    return figure(sheet.title, sheet.about, sheet.jpeg)
