"""How the trainer's benches end: a line a goal, one JSON document, and exit code 0 when they could run at all."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "build/bench"


@dataclass(frozen=True)
class Goal:
    name: str
    reached: bool
    measured: str


def finish(name: str, goals: list[Goal], figures: dict[str, Any]) -> int:
    """Prints PASS or FAIL per goal and writes build/bench/NAME.json."""
    for goal in goals:
        print(f"{'PASS' if goal.reached else 'FAIL'}  {goal.name}: {goal.measured}")
    machine = {"cores": os.cpu_count(), "loadAverage": os.getloadavg(), "python": platform.python_version()}
    document = {"goals": [asdict(goal) for goal in goals], "machine": machine, **figures}
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / f"{name}.json"
    target.write_text(json.dumps(document, indent=1))
    print(f"written: {target.relative_to(Path.cwd()) if target.is_relative_to(Path.cwd()) else target}")
    return 0
