"""How text is laid out: fields, tables, trees, ages. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cutover.api.base import Condition
from cutover_operator.rollout.wording import span

EVENTS_SHOWN = 10
CONDITION_MARK = {"True": "✔", "False": "✖", "Unknown": "?"}
BAD_WHEN_TRUE = {"SharedIncident", "RolledBack", "Held", "EvidenceLost", "Stalled", "BudgetExceeded"}
QUIET_WHEN_FALSE = BAD_WHEN_TRUE | {"Promoted", "Reconciling"}


def age(moment: str | None, now: datetime) -> str:
    """How long ago an RFC 3339 moment was; empty when there is none."""
    if not moment:
        return ""
    try:
        return span((now - datetime.fromisoformat(moment)).total_seconds())
    except (ValueError, TypeError):
        return moment


def fields(pairs: Sequence[tuple[str, str]]) -> str:
    """`Name:  value` lines; pairs without a value are left out."""
    shown = [(f"{name}:" if name else "", value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; the last column is as wide as it likes."""
    if not rows:
        return []
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(table([header, *rows])) if rows else "none found"


def tree(title: str, lines: Sequence[str]) -> str:
    """A title with its lines as branches; empty without any."""
    if not lines:
        return ""
    marks = ["├── "] * (len(lines) - 1) + ["└── "]
    return "\n".join([title, *(mark + text for mark, text in zip(marks, lines, strict=True))])


def is_trouble(condition: Condition) -> bool:
    """Whether a condition is the way nobody wants it."""
    if condition.type in BAD_WHEN_TRUE:
        return condition.status == "True"
    return condition.status == "False" and condition.type not in QUIET_WHEN_FALSE


def condition_rows(conditions: Sequence[Condition], now: datetime) -> list[list[str]]:
    """Those that say something: false ones of the quiet kind are left out."""
    return [
        [
            f"{'!' if is_trouble(one) else CONDITION_MARK.get(one.status, '?')} {one.type}",
            one.status,
            age(one.last_transition_time, now),
            f"{one.reason}: {one.message}" if one.message else one.reason,
        ]
        for one in conditions
        if not (one.type in QUIET_WHEN_FALSE and one.status == "False")
    ]


def event_rows(events: Sequence[Mapping[str, Any]], now: datetime) -> list[list[str]]:
    """The latest ones, oldest first."""
    latest = sorted(events, key=_last_seen)[-EVENTS_SHOWN:]
    return [
        [
            age(_last_seen(event), now),
            str(event.get("type") or ""),
            str(event.get("reason") or ""),
            str(event.get("message") or "")
            + (f" (x{event['count']})" if int(event.get("count") or 1) > 1 else ""),
        ]
        for event in latest
    ]


def _last_seen(event: Mapping[str, Any]) -> str:
    return str(
        event.get("lastTimestamp")
        or (event.get("series") or {}).get("lastObservedTime")
        or event.get("eventTime")
        or event.get("firstTimestamp")
        or ""
    )
