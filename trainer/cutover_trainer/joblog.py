"""The stage's log: one JSON object a line on standard output; progress lines are what the operator reads."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from cutover.stages import ProgressLine, StageName

PROGRESS_INTERVAL_SECONDS = 2.0


def log(event: str, **fields: Any) -> None:
    _write({"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields})


def _write(entry: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(entry, default=str) + "\n")
    sys.stdout.flush()


class ProgressReporter:
    """Writes a progress line at most every two seconds, and always for the last step."""

    def __init__(self, stage: StageName, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage: StageName = stage
        self._steps = steps
        self._clock = clock
        self._written_at = float("-inf")

    def report(self, step: int, loss: float | None = None, samples_per_second: float | None = None) -> None:
        now = self._clock()
        if now - self._written_at < PROGRESS_INTERVAL_SECONDS and step < self._steps:
            return
        self._written_at = now
        line = ProgressLine(
            stage=self._stage,
            step=step,
            steps=self._steps,
            loss=None if loss is None else round(loss, 5),
            samples_per_second=None if samples_per_second is None else round(samples_per_second, 3),
        )
        _write(line.to_wire())
