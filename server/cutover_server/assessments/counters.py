"""The totals of the database as Prometheus counters, alike on every replica.

A snapshot is read every second; while the database is away the last one is kept, so that no counter falls and no series
disappears, and `cutover_assessments_database_up` says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Table, select

from cutover.contract import (
    DOUBLE_RESULTS,
    LABEL_CONFIDENCE,
    LABEL_CORRECTIONS,
    LABEL_DOUBLES,
    LABEL_PAIRS,
    LABEL_POOL,
    LABEL_RESULTS,
    LABEL_WEIGHT,
    LABELS_MATURED,
    PAIR_RESULTS,
    SATISFACTION,
)
from cutover_server.assessments.database import Database
from cutover_server.assessments.schema import (
    confidence_totals,
    correction_totals,
    double_totals,
    label_totals,
    pair_totals,
    pool_totals,
    satisfaction_totals,
    weight_totals,
)

DATABASE_UP = "cutover_assessments_database_up"
"""Gauge: 1 while the database answers."""
SCORES = ("up", "down")

_SERIES = (
    (LABELS_MATURED, label_totals, LABEL_RESULTS, "Sampled requests past their label deadline."),
    (LABEL_POOL, pool_totals, (), "Matured requests that might have been drawn for a label."),
    (LABEL_WEIGHT, weight_totals, (), "Those drawn, each counting 1 / its chance of being drawn."),
    (LABEL_PAIRS, pair_totals, PAIR_RESULTS, "Matured requests both models answered, by who was right."),
    (LABEL_DOUBLES, double_totals, DOUBLE_RESULTS, "Matured requests two people labelled, by agreement."),
    (LABEL_CONFIDENCE, confidence_totals, LABEL_RESULTS, "Matured requests by the candidate's confidence."),
    (SATISFACTION, satisfaction_totals, SCORES, "User feedback."),
    (LABEL_CORRECTIONS, correction_totals, (), "Labels given or changed after their deadline."),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    totals: dict[str, dict[tuple[str, ...], float]]


async def read_snapshot(database: Database) -> Snapshot:
    totals: dict[str, dict[tuple[str, ...], float]] = {}
    async with database.read() as connection:
        for name, table, values, _ in _SERIES:
            rows = await connection.execute(select(*table.columns))
            totals[name] = _completed({tuple(row)[:-1]: row.n for row in rows}, values)
    return Snapshot(totals)


class TotalsCollector(Collector):
    """Exposes the newest snapshot; set `snapshot` and `database_up` from the loop that reads it."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.database_up = False

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(DATABASE_UP, "1 while the database answers.")

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(DATABASE_UP, "1 while the database answers.", value=float(self.database_up))
        if self.snapshot is None:
            return
        for name, table, _, text in _SERIES:
            family = CounterMetricFamily(name.removesuffix("_total"), text, labels=_label_names(table))
            for key, n in sorted(self.snapshot.totals[name].items()):
                family.add_metric(list(key), n)
            yield family


def _label_names(table: Table) -> list[str]:
    return [column.name for column in table.primary_key]


def _completed(totals: dict[tuple[str, ...], float], values: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    """Every value of the last label is there once one is: a counter that appears at 1 hides its first increase."""
    if not values:
        return totals
    groups: defaultdict[tuple[str, ...], int] = defaultdict(int)
    for key in totals:
        groups[key[:-1]] += 1
    return {(*group, value): totals.get((*group, value), 0) for group in groups for value in values}
