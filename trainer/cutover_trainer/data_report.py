"""The data report: `report.json` for the operator, `refused.jsonl` with every refused line, `report.html` for people.

Builds documents from what prepare found; reads kept pictures for the contact sheets, and opens nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
from PIL import Image

from cutover.task import Task
from cutover_trainer.contact_sheet import contact_sheet
from cutover_trainer.findings import Finding, achieved_shares
from cutover_trainer.kept_rows import KeptRow
from cutover_trainer.quality import Census, Refusal
from cutover_trainer.refused import BadRow
from cutover_trainer.report_page import Sheet, report_page
from cutover_trainer.split import Part, Shares
from cutover_trainer.synthetic import LeftOut

JSON_FILE = "report.json"
REFUSED_FILE = "refused.jsonl"
REPORTED_BAD_ROWS = 1000
REPORTED_PAIRS = 500
SHEET_PICTURES = 24
SHEET_PAIRS = 24

Loader = Callable[[str], Image.Image]
"""The kept picture with this SHA-256."""


@dataclass(frozen=True, slots=True)
class Divided:
    """What dividing the rows came to; empty when the data was refused before."""

    groups: int = 0
    per_part: Mapping[Part, Mapping[str, int]] = field(default_factory=dict)
    pairs: Sequence[tuple[int, int]] = ()
    """Of near pictures, as indices into the kept rows."""
    findings: Sequence[Finding] = ()


@dataclass(frozen=True, slots=True)
class SyntheticRows:
    """Made-up rows: what there was and what is used of it."""

    found: int
    used: Sequence[KeptRow]
    left_out: Mapping[LeftOut, int]
    training: int
    """Rows of the training part, the used ones included."""

    def document(self, task: Task) -> dict[str, Any]:
        return {
            "found": self.found,
            "used": len(self.used),
            "shareOfTraining": len(self.used) / self.training if self.training else 0.0,
            "perClass": dict(Counter(entry.row.truth[task.decisive_field] for entry in self.used)),
            "leftOut": dict(self.left_out),
        }


@dataclass(frozen=True, slots=True)
class DataReport:
    task: Task
    shares: Shares
    census: Census
    bad: Sequence[BadRow]
    kept: Sequence[KeptRow]
    refused: Refusal | None = None
    divided: Divided = Divided()
    synthetic: SyntheticRows | None = None
    """None when there is no such row, or the data was refused before."""

    def document(self) -> dict[str, Any]:
        """`report.json`."""
        found, divided = self.census, self.divided
        return {
            "rows": found.rows,
            "validated": found.validated,
            "perClass": found.per_class,
            "controlRows": found.control_rows,
            "controlAccuracy": found.control_accuracy,
            "synthetic": None if self.synthetic is None else self.synthetic.document(self.task),
            "groups": divided.groups,
            "parts": divided.per_part,
            "shares": {
                part: {"wanted": getattr(self.shares, part), "achieved": achieved}
                for part, achieved in achieved_shares(divided.per_part).items()
            },
            "refused": None if self.refused is None else asdict(self.refused),
            "findings": [asdict(finding) for finding in divided.findings],
            "nearDuplicates": [self._pair(*pair) for pair in divided.pairs[:REPORTED_PAIRS]],
            "nearDuplicatesNotListed": max(0, len(divided.pairs) - REPORTED_PAIRS),
            "badByReason": dict(Counter(row.reason for row in self.bad).most_common()),
            "bad": [row.to_wire() for row in self.bad[:REPORTED_BAD_ROWS]],
            "badNotListed": max(0, len(self.bad) - REPORTED_BAD_ROWS),
        }

    def refused_lines(self) -> bytes:
        """`refused.jsonl`: every one of them."""
        return b"".join(orjson.dumps(row.to_wire()) + b"\n" for row in self.bad)

    def page(self, load: Loader) -> bytes:
        """`report.html`, complete in itself."""
        return report_page(
            self.task,
            self.document(),
            [*self._class_sheets(load), *self._synthetic_sheets(load)],
            self._pair_sheets(load),
        )

    def _pair(self, one: int, other: int) -> dict[str, Any]:
        first, second = self.kept[one], self.kept[other]
        name = self.task.decisive_field
        return {
            "lines": [first.row.line, second.row.line],
            "ids": [first.row.id, second.row.id],
            "answers": [first.row.truth[name], second.row.truth[name]],
            "distanceBits": (first.perceptual_hash ^ second.perceptual_hash).bit_count(),
        }

    def _class_sheets(self, load: Loader) -> list[Sheet]:
        of_class: dict[str, dict[str, KeptRow]] = defaultdict(dict)
        for entry in self.kept:
            chosen = of_class[entry.row.truth[self.task.decisive_field]]
            if len(chosen) < SHEET_PICTURES:
                chosen.setdefault(entry.picture, entry)
        return [
            Sheet(
                name,
                [f"line {entry.row.line}: {entry.row.id}" for entry in of_class[name].values()],
                contact_sheet([load(picture) for picture in of_class[name]]),
            )
            for name in self.task.classes(self.task.decisive_field)
            if of_class[name]
        ]

    def _synthetic_sheets(self, load: Loader) -> list[Sheet]:
        used = [] if self.synthetic is None else list(self.synthetic.used[:SHEET_PICTURES])
        if not used:
            return []
        about = [
            f"line {entry.row.line}: {entry.row.id}: {entry.row.truth[self.task.decisive_field]}"
            for entry in used
        ]
        sheet = contact_sheet([load(entry.picture) for entry in used])
        return [Sheet("synthetic, in the training part only", about, sheet)]

    def _pair_sheets(self, load: Loader) -> list[Sheet]:
        different = [
            pair for pair in self.divided.pairs if self.kept[pair[0]].picture != self.kept[pair[1]].picture
        ]
        sheets = []
        for one, other in different[:SHEET_PAIRS]:
            first, second, said = self.kept[one], self.kept[other], self._pair(one, other)
            title = f"lines {first.row.line} and {second.row.line}, {said['distanceBits']} of 64 bits apart"
            about = [
                f"{entry.row.id}: {answer}"
                for entry, answer in zip((first, second), said["answers"], strict=True)
            ]
            sheets.append(Sheet(title, about, contact_sheet([load(first.picture), load(second.picture)])))
        return sheets
