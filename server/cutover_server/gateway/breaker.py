"""When an arm is not asked any more, and when it is tried again: one state machine per arm and gateway replica.

Pure: time is an argument, and so is the source of jitter. It opens after a run of failures, or when too many of the
last requests failed; while open it lets nothing through; then it is half open and lets one probe at a time through.
A probe that succeeds often enough closes it, a probe that fails opens it for longer. A probe that never reports is
given up after a while, so that a lost request cannot keep an arm shut.

It only redirects: whether there is another arm to ask is the caller's knowledge, and the last arm is always asked.
The whole gateway's judgement belongs to the operator, which takes the weight away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class BreakerRules:
    consecutive_failures: int = 5
    window: int = 50
    """Requests the error rate looks back on."""
    minimum_count: int = 20
    error_rate: float = 0.5
    open_seconds: float = 5.0
    """First pause; doubled at each failed probe."""
    longest_open_seconds: float = 60.0
    jitter: float = 0.2
    """The pause is drawn from [1 - jitter, 1 + jitter] times itself, so that replicas do not probe together."""
    probes_to_close: int = 2
    probe_patience_seconds: float = 60.0


@dataclass(slots=True)
class Breaker:
    rules: BreakerRules
    chance: Callable[[], float]
    """A number in [0, 1)."""
    state: State = State.CLOSED
    _recent: deque[bool] = field(default_factory=deque)
    _run: int = 0
    _pauses: int = 0
    _open_until: float = 0.0
    _probe_since: float | None = None
    _good_probes: int = 0

    def allows(self, now: float) -> bool:
        """Whether the arm may be asked now. A True from a half-open breaker takes its one probe."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN:
            if now < self._open_until:
                return False
            self.state, self._good_probes, self._probe_since = State.HALF_OPEN, 0, None
        if self._probe_since is not None and now - self._probe_since < self.rules.probe_patience_seconds:
            return False
        self._probe_since = now
        return True

    def succeeded(self, now: float) -> None:
        self._run = 0
        if self.state is State.HALF_OPEN:
            self._probe_since = None
            self._good_probes += 1
            if self._good_probes >= self.rules.probes_to_close:
                self.state, self._pauses = State.CLOSED, 0
                self._recent.clear()
            return
        if self.state is State.CLOSED:
            self._remember(False)

    def failed(self, now: float, retry_after_seconds: float = 0.0) -> None:
        """A failure; `retry_after_seconds` is how long the arm itself asked to be left alone."""
        self._run += 1
        if self.state is State.HALF_OPEN:
            self._open(now, retry_after_seconds)
            return
        if self.state is State.CLOSED:
            self._remember(True)
            failures = sum(self._recent)
            too_many = len(
                self._recent
            ) >= self.rules.minimum_count and failures >= self.rules.error_rate * len(self._recent)
            if self._run >= self.rules.consecutive_failures or too_many:
                self._open(now, retry_after_seconds)

    def abandoned(self) -> None:
        """The request was neither: cancelled, or refused for the caller's own fault."""
        self._probe_since = None

    def is_open(self) -> bool:
        """For the gauge: whether ordinary requests are turned away."""
        return self.state is not State.CLOSED

    def _remember(self, failure: bool) -> None:
        self._recent.append(failure)
        while len(self._recent) > self.rules.window:
            self._recent.popleft()

    def _open(self, now: float, retry_after_seconds: float) -> None:
        pause = min(self.rules.open_seconds * 2**self._pauses, self.rules.longest_open_seconds)
        pause *= 1 + self.rules.jitter * (2 * self.chance() - 1)
        asked = min(retry_after_seconds, self.rules.longest_open_seconds)
        self._open_until = now + max(pause, asked)
        self._pauses = min(self._pauses + 1, 16)
        self.state, self._probe_since, self._run = State.OPEN, None, 0
        self._recent.clear()
