"""How good each arm is, by people's labels: shares with their intervals, classes, and labellers among themselves.

For people to read; no decision is taken from it (decisions take the matured totals). Answers to requests sampled alike
and to all others are kept apart: only the first are a fair sample, not what somebody chose to label, nor what was drawn
more often because the models differ.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, tuple_

from cutover.contract import FIELD_OVERALL, STRATUM_ALL
from cutover.task import Task, score
from cutover_server.assessments.cohorts import labels_of
from cutover_server.assessments.database import Database
from cutover_server.assessments.maturity import Label, Request, judged_answers
from cutover_server.assessments.schema import assessments, shadows
from cutover_server.assessments.traffic import HOUR_SECONDS

PAGE_ROWS = 500
Z_95 = 1.959963984540054
DAY_SECONDS = 24 * HOUR_SECONDS


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share; (0, 1) without data."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(right: int, n: int) -> dict[str, Any]:
    low, high = wilson(right, n)
    return {"n": n, "right": right, "share": right / n if n else None, "low": low, "high": high}


@dataclass
class Tally:
    """Counts of one arm, version and way of selection."""

    fields: Counter[tuple[str, bool]] = field(default_factory=Counter)
    confusion: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """field, truth, answer"""
    days: Counter[tuple[int, bool]] = field(default_factory=Counter)
    """day, overall right"""


@dataclass
class AccuracyCounts:
    tallies: defaultdict[tuple[str, str, bool], Tally] = field(default_factory=lambda: defaultdict(Tally))
    disagreement: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """field, labellers differ; over requests that two or more people labelled"""

    def add(
        self, task: Task, request: Request, truth: Mapping[str, str], sampled: bool, received_at: float
    ) -> None:
        for judged in judged_answers(request):
            tally = self.tallies[judged.arm, judged.version, sampled]
            for name, right in score(task, judged.answer, truth).items():
                tally.fields[name, right] += 1
                if name == FIELD_OVERALL:
                    tally.days[int(received_at // DAY_SECONDS), right] += 1
                else:
                    said = str((judged.answer or {}).get(name, ""))
                    known = said if said in task.classes(name) else "(no valid answer)"
                    tally.confusion[name, truth[name], known] += 1

    def compare(self, labels: Iterable[Label]) -> None:
        last = {label.labeller: label.values for label in labels}
        if len(last) < 2:
            return
        for name in sorted({name for values in last.values() for name in values}):
            said = [values[name] for values in last.values() if name in values]
            if len(said) > 1:
                self.disagreement[name, len(set(said)) > 1] += 1

    def to_wire(self) -> dict[str, Any]:
        return {
            "arms": [
                {"arm": arm, "version": version, "sampled": sampled, **_tally_wire(tally)}
                for (arm, version, sampled), tally in sorted(self.tallies.items())
            ],
            "disagreement": {
                name: {
                    "n": self.disagreement[name, True] + self.disagreement[name, False],
                    "disagree": self.disagreement[name, True],
                }
                for name in sorted({name for name, _ in self.disagreement})
            },
        }


async def count_accuracy(
    database: Database, tasks: Mapping[str, Task], since: float | None = None
) -> AccuracyCounts:
    """Reads every validated request, page by page."""
    counts = AccuracyCounts()
    after: tuple[float, str] = (since if since is not None else -1.0, "")
    a = assessments.c
    columns = (
        a.id,
        a.task,
        a.received_at,
        a.chosen,
        a.outcome,
        a.control,
        a.candidate,
        a.truth,
        a.sampled,
        a.stratum,
    )
    while True:
        query = (
            select(*columns, shadows.c.candidate.label("mirrored"), shadows.c.kept)
            .join_from(assessments, shadows, shadows.c.request_id == a.id, isouter=True)
            .where(a.validated.is_(True), tuple_(a.received_at, a.id) > after)
            .order_by(a.received_at, a.id)
            .limit(PAGE_ROWS)
        )
        async with database.read() as connection:
            rows = (await connection.execute(query)).all()
            given = await labels_of(connection, [row.id for row in rows])
        for row in rows:
            if row.task in tasks:
                request = Request(
                    row.chosen, row.outcome, row.control, row.candidate, row.mirrored, row.kept is not False
                )
                fair = row.sampled and row.stratum == STRATUM_ALL
                counts.add(tasks[row.task], request, row.truth, fair, row.received_at)
                counts.compare(given[row.id])
        if len(rows) < PAGE_ROWS:
            return counts
        after = (rows[-1].received_at, rows[-1].id)


def _tally_wire(tally: Tally) -> dict[str, Any]:
    names = sorted({name for name, _ in tally.fields}, key=lambda name: (name != FIELD_OVERALL, name))
    classes: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    confusion: defaultdict[str, defaultdict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for (name, truth, said), n in sorted(tally.confusion.items()):
        classes[name][truth][0] += n
        classes[name][truth][1] += n if said == truth else 0
        confusion[name][truth][said] = n
    return {
        "fields": {
            name: share_of(tally.fields[name, True], tally.fields[name, True] + tally.fields[name, False])
            for name in names
        },
        "classes": {
            name: {truth: share_of(right, n) for truth, (n, right) in by_truth.items()}
            for name, by_truth in classes.items()
        },
        "confusion": {name: dict(by_truth) for name, by_truth in confusion.items()},
        "days": [
            {"day": day, **share_of(tally.days[day, True], tally.days[day, True] + tally.days[day, False])}
            for day in sorted({day for day, _ in tally.days})
        ],
    }
