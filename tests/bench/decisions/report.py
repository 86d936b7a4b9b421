"""Tables on the terminal, goals with PASS or FAIL, and one JSON file with everything."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parents[3] / "build/bench/decisions.json"


@dataclass
class Goal:
    """A promise and what was measured; `at_most` and `at_least` are limits, either may be absent."""

    name: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        good = not math.isnan(self.measured)
        if self.at_most is not None:
            good = good and self.measured <= self.at_most
        if self.at_least is not None:
            good = good and self.measured >= self.at_least
        return good

    def line(self) -> str:
        limit = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        return f"{'PASS' if self.met else 'FAIL'}  {self.name}: {self.measured:.4g} (goal {limit})"


@dataclass
class Report:
    """Collects while the bench prints."""

    runs: int
    started: float = field(default_factory=time.monotonic)
    goals: list[Goal] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)

    def table(self, title: str, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        cells = [header, *[tuple(_text(c) for c in row) for row in rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        print(f"\n## {title}  [{time.monotonic() - self.started:.0f} s]")
        for i, row in enumerate(cells):
            print(" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
            if i == 0:
                print("-|-".join("-" * w for w in widths))
        self.tables.append({"title": title, "header": header, "rows": rows})
        print(end="", flush=True)

    def goal(
        self, name: str, measured: float, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        goal = Goal(name, float(measured), at_most, at_least)
        self.goals.append(goal)
        print(goal.line(), flush=True)

    def close(self) -> None:
        met = sum(g.met for g in self.goals)
        print(f"\n## Goals: {met} of {len(self.goals)} met, {time.monotonic() - self.started:.0f} s")
        for goal in self.goals:
            print(goal.line())
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "runs": self.runs,
            "seconds": round(time.monotonic() - self.started),
            "goals": [asdict(g) | {"met": g.met} for g in self.goals],
            "tables": self.tables,
        }
        RESULT.write_text(json.dumps(document, indent=1, default=float) + "\n")
        print(f"written to {RESULT.relative_to(RESULT.parents[2])}")


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def share(p: float, runs: int) -> str:
    """A share with its standard error."""
    return f"{p:.3f}±{math.sqrt(max(p * (1 - p), 0.0) / runs):.3f}"


def hours(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.1f}"
