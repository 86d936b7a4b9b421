"""The figures of the performance page, from totals in the database to what the template shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from cutover_server.assessments.accuracy import AccuracyCounts, share_of
from cutover_server.assessments.database import Database
from cutover_server.assessments.schema import satisfaction_totals, traffic_totals
from cutover_server.assessments.traffic import HOUR_SECONDS, latency_quantile
from cutover_server.web.charts import Chart, line_chart


@dataclass
class ArmTraffic:
    outcomes: Counter[str] = field(default_factory=Counter)
    edges: Counter[str] = field(default_factory=Counter)
    latency_seconds: float = 0.0
    timed: int = 0
    cost_usd: float = 0.0
    hours: Counter[int] = field(default_factory=Counter)

    @property
    def n(self) -> int:
        return sum(n for outcome, n in self.outcomes.items() if outcome != "rejected")


async def read_traffic(database: Database, since_hour: int) -> dict[tuple[str, str], ArmTraffic]:
    """By arm and version, all rollouts together."""
    found: defaultdict[tuple[str, str], ArmTraffic] = defaultdict(ArmTraffic)
    query = select(traffic_totals).where(traffic_totals.c.hour >= since_hour)
    async with database.read() as connection:
        for row in await connection.execute(query):
            arm = found[row.arm, row.version]
            arm.outcomes[row.outcome] += row.n
            arm.cost_usd += row.cost_usd
            arm.hours[row.hour] += row.n
            if row.latency_edge != "none":
                arm.edges[row.latency_edge] += row.n
                arm.timed += row.n
                arm.latency_seconds += row.latency_seconds
    return dict(found)


async def read_satisfaction(database: Database) -> dict[tuple[str, str], Counter[str]]:
    found: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    async with database.read() as connection:
        for row in await connection.execute(select(satisfaction_totals)):
            found[row.arm, row.version][row.score] += row.n
    return dict(found)


def traffic_rows(
    traffic: dict[tuple[str, str], ArmTraffic], satisfaction: dict[tuple[str, str], Counter[str]]
) -> list[dict[str, Any]]:
    """One line per arm and version, priced against what the control's answers cost on average."""
    control_n = sum(arm.n for (name, _), arm in traffic.items() if name == "control")
    control_usd = sum(arm.cost_usd for (name, _), arm in traffic.items() if name == "control")
    control_price = control_usd / control_n if control_n else None
    rows = []
    for (name, version), arm in sorted(traffic.items()):
        scores = satisfaction.get((name, version), Counter())
        price = arm.cost_usd / arm.n if arm.n else None
        saved = None
        if name == "candidate" and price is not None and control_price:
            saved = 1 - price / control_price
        rows.append(
            {
                "arm": name,
                "version": version,
                "n": arm.n,
                "errors": arm.outcomes["error"],
                "deferred": arm.outcomes["deferred"],
                "mean_seconds": arm.latency_seconds / arm.timed if arm.timed else None,
                "p50": latency_quantile(arm.edges, 0.5),
                "p95": latency_quantile(arm.edges, 0.95),
                "cost_usd": arm.cost_usd,
                "usd_per_1000": 1000 * price if price is not None else None,
                "saved": saved,
                "satisfaction": share_of(scores["up"], scores["up"] + scores["down"]),
            }
        )
    return rows


def charts(counts: AccuracyCounts, traffic: dict[tuple[str, str], ArmTraffic]) -> list[Chart]:
    wire = counts.to_wire()
    accuracy = {
        f"{arm['arm']} {arm['version']}": [(day["day"], 100 * day["share"]) for day in arm["days"]]
        for arm in wire["arms"]
        if arm["sampled"] and arm["days"]
    }
    days: dict[float, str] = {day: _date(day * 24) for points in accuracy.values() for day, _ in points}
    requests = {
        f"{name} {version}": [(hour, float(n)) for hour, n in sorted(arm.hours.items())]
        for (name, version), arm in traffic.items()
        if arm.hours
    }
    hours: dict[float, str] = {
        hour: _date(hour, "%Y-%m-%d %H:00") for points in requests.values() for hour, _ in points
    }
    most = max((n for points in requests.values() for _, n in points), default=1.0)
    drawn = (
        line_chart("Accuracy per day", accuracy, low=0, high=100, unit=" %", label_x=days),
        line_chart("Requests per hour", requests, low=0, high=most, unit="", label_x=hours),
    )
    return [chart for chart in drawn if chart is not None]


def _date(hour: int, form: str = "%Y-%m-%d") -> str:
    return datetime.fromtimestamp(hour * HOUR_SECONDS, UTC).strftime(form)
