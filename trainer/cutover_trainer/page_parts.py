"""What the reports for people are made of: one HTML file without scripts, links or requests. Pure.

Rows come from strangers: everything out of a row is escaped, and the page carries a policy that would stop a script
even if one got in.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

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


class Html(str):
    """Markup made here, never text out of a row."""


def page(title: str, parts: Iterable[str]) -> bytes:
    """The whole file; empty parts are left out."""
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>"
        + "".join(part for part in parts if part)
        + "</body></html>"
    )
    return document.encode()


def text(value: Any) -> str:
    """A value as text that is safe in a cell or an attribute, cut to a readable length."""
    whole = str(value)
    cut = whole if len(whole) <= MAX_CELL_CHARACTERS else whole[: MAX_CELL_CHARACTERS - 1] + "…"
    # What turns the direction of writing could make a cell look like another one.
    return escape(
        "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in cut)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: frozenset[int] = frozenset()) -> str:
    """Cells that are `Html` stand as they are; all else is escaped. `numbers`: columns set to the right."""
    top = "".join(f"<th>{text(name)}</th>" for name in head)
    lines = []
    for row in rows:
        cells = (
            f"<td{' class=n' if at in numbers else ''}>{cell if isinstance(cell, Html) else text(cell)}</td>"
            for at, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"


def figure(title: str, about: Sequence[str], jpeg: bytes) -> str:
    """A picture inside the page; `about` stands under it when a pointer rests on it."""
    source = base64.b64encode(jpeg).decode()
    said = text("; ".join(about))
    return (
        f'<figure><figcaption><b>{text(title)}</b></figcaption><img alt="{said}" '
        f'title="{said}" src="data:image/jpeg;base64,{source}"></figure>'
    )
