"""The metrics table of the docs, made from `contract.py` so that it cannot go stale.

    python -m cutover.metrics_reference [--check] docs/gateway.md

The page's hand-written parts stay: only what stands between the markers is made anew.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cutover import contract

BEGIN, END = "<!-- metrics: made by make crds -->", "<!-- /metrics -->"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def metrics() -> Iterator[Metric]:
    """Every constant of the contract that names a metric, from its docstring `Kind {labels}: meaning.`

    Raises ValueError for one whose docstring does not say so.
    """
    body = ast.parse(Path(contract.__file__).read_text(encoding="utf-8")).body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Constant):
            continue
        name = statement.value.value
        if not isinstance(name, str) or not name.startswith("cutover_"):
            continue
        told = following.value if isinstance(following, ast.Expr) else None
        text = " ".join(str(told.value).split()) if isinstance(told, ast.Constant) else ""
        match = re.fullmatch(r"(Counter|Gauge|Histogram) \{([a-z, ]*)\}(?:\.|: (.+))", text)
        if match is None:
            raise ValueError(f"{name}: its docstring in contract.py is not 'Counter {{labels}}: meaning'")
        yield Metric(name, match[1].lower(), tuple(match[2].split(", ")), match[3] or "")


def render(page: str) -> str:
    """The page with the table made anew. Raises ValueError without markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    rows = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for one in metrics():
        labels = ", ".join(f"`{label}`" for label in one.labels)
        rows.append(f"| `{one.name}` | {one.kind} | {labels} | {one.meaning} |")
    return f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the page, or with --check say whether it is current."""
    path = Path(next(argument for argument in arguments if not argument.startswith("--")))
    page = path.read_text(encoding="utf-8")
    made = render(page)
    if "--check" in arguments:
        return 0 if made == page else 1
    path.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
