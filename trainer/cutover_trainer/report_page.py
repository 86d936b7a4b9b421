"""`report.html`: one file without scripts, links or requests. Pure; everything out of a row is escaped.

Rows come from strangers: the page carries a policy that would stop a script even if one got in.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from cutover.task import Task

SHOWN_BAD_ROWS = 200
MAX_CELL_CHARACTERS = 400
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c2126;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d4d9de}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.25rem .7rem .25rem 0}
th{font-weight:600;color:#4a545e}tr+tr td{border-top:1px solid #eceff1}td.n{text-align:right}
td{overflow-wrap:anywhere}.bar{display:inline-block;height:.7rem;background:#4a7fb5}
.stop{background:#fdecea;border-left:4px solid #b3261e;padding:.6rem 1rem}.fine{color:#4a545e}
figure{margin:1rem 0}figcaption{color:#4a545e}img{max-width:100%;image-rendering:auto}
.pairs{display:flex;flex-wrap:wrap;gap:1.2rem}.pairs figure{margin:0;max-width:15rem;font-size:.85rem}
"""


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
        f"<h1>Training data for {_text(task.name)}</h1>",
        _summary(document),
        _refusal(document["refused"]),
        _balance(task, document),
        _findings(document["findings"]),
        _refused_lines(document),
        _near(document, pairs),
        _pictures(classes),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Data report: {_text(task.name)}</title><style>{_STYLE}</style></head><body>"
        + "".join(part for part in body if part)
        + "</body></html>"
    )
    return page.encode()


def _text(value: Any) -> str:
    text = str(value)
    cut = text if len(text) <= MAX_CELL_CHARACTERS else text[: MAX_CELL_CHARACTERS - 1] + "…"
    # What turns the direction of writing could make a cell look like another one.
    return escape(
        "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in cut)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: frozenset[int] = frozenset()) -> str:
    """Cells that are `_Html` stand as they are; all else is escaped."""
    top = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = []
    for row in rows:
        cells = (
            f"<td{' class=n' if at in numbers else ''}>{cell if isinstance(cell, _Html) else _text(cell)}</td>"
            for at, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"


class _Html(str):
    """Markup made here, never text out of a row."""


def _summary(document: Mapping[str, Any]) -> str:
    bad = sum(document["badByReason"].values())
    said = [f"{document['rows']} lines", f"{bad} refused", f"{document['validated']} with a human label"]
    if document["groups"]:
        said.append(f"{document['groups']} groups")
    if document["controlRows"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in document["controlAccuracy"].items())
        said.append(f"today's model agrees on {document['controlRows']} rows: {shares}")
    return f"<p>{_text('; '.join(said))}.</p>"


def _refusal(refused: Mapping[str, str] | None) -> str:
    if refused is None:
        return ""
    return f'<p class="stop"><b>{_text(refused["reason"])}</b><br>{_text(refused["message"])}</p>'


def _balance(task: Task, document: Mapping[str, Any]) -> str:
    per_class, parts = document["perClass"], document["parts"]
    most = max([1, *per_class.values()])
    rows = [
        [
            name,
            _Html(f'<span class="bar" style="width:{12 * count / most:.2f}rem"></span>'),
            count,
            *(parts.get(part, {}).get(name, 0) for part in ("train", "validation", "test")),
        ]
        for name, count in per_class.items()
    ]
    table = _table(["class", "", "rows", "train", "validation", "test"], rows, frozenset({2, 3, 4, 5}))
    title = f"<h2>Balance of {_text(task.decisive_field)}</h2>"
    if not parts:
        return title + table
    shares = "; ".join(
        f"{part} {share['achieved']:.1%} (wanted {share['wanted']:.1%})"
        for part, share in document["shares"].items()
    )
    return f'{title}{table}<p class="fine">Shares reached: {_text(shares)}. A group is never divided.</p>'


def _findings(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    rows = [
        [one["kind"], one["rows"], one["detail"], _lines(one["lines"], one["rows"]), one["remedy"]]
        for one in found
    ]
    return "<h2>Worth a look</h2>" + _table(
        ["finding", "rows", "what", "lines", "remedy"], rows, frozenset({1})
    )


def _lines(lines: Sequence[int], rows: int) -> str:
    more = f" and {rows - len(lines)} more" if lines and rows > len(lines) else ""
    return ", ".join(str(line) for line in lines) + more


def _refused_lines(document: Mapping[str, Any]) -> str:
    bad = document["bad"]
    if not bad:
        return "<h2>Refused lines</h2><p>None.</p>"
    reasons = _table(["reason", "lines"], document["badByReason"].items(), frozenset({1}))
    rows = [
        [row["line"], row["id"], row["reason"], row["field"], row["detail"], row["remedy"]]
        for row in bad[:SHOWN_BAD_ROWS]
    ]
    total = len(bad) + document["badNotListed"]
    rest = total - len(rows)
    note = f"<p class=fine>{rest} more stand in refused.jsonl.</p>" if rest else ""
    table = _table(["line", "id", "reason", "field", "what", "remedy"], rows, frozenset({0}))
    return f"<h2>Refused lines</h2>{reasons}<p></p>{table}{note}"


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
    source = base64.b64encode(sheet.jpeg).decode()
    about = "; ".join(sheet.about)
    return (
        f'<figure><figcaption><b>{_text(sheet.title)}</b></figcaption><img alt="{_text(about)}" '
        f'title="{_text(about)}" src="data:image/jpeg;base64,{source}"></figure>'
    )
