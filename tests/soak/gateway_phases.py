"""What happens to a gateway's surroundings in a soak, one thing after the other, under load that never stops.

The same phases run on the node and on local processes: a `Town` knows how things go away and come back there. A phase
waits for what it needs to have seen (requests sent, records waiting, a pod back), never for a time alone.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from cutover.route import Route
from soak.gateway_account import Change, Down, Kill, Phase, Row, Story, lost

AFTER_SECONDS = 2.0
"""An endpoint that is back may be refused this long by those who have not heard of it."""
ROUTE_SECONDS = 0.25
QUICK_SECONDS, SLOW_SECONDS = 0.05, 0.5
"""A stand-in's time for an answer, and where a gateway is killed."""
BLIND_SECONDS = 10.0
"""With its restart far less than the 40 s after which Kubernetes calls a node lost and takes its pods out of every Service."""
GATHER_SECONDS = 150.0
LEAST_OPEN = 6
LEAST_WAITING = 5
Say = Callable[[str], None]


class Town(Protocol):
    """A running gateway and everything around it. Arms: control, candidate, backup."""

    gateways: tuple[str, ...]
    has_backup: bool
    """Whether another endpoint than the control's answers for it."""

    def endpoint(self, arm: str) -> str: ...
    def load(self, requests_per_second: float | None = None, phase: str | None = None) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def route_text(self) -> str: ...
    def next_weight(self) -> None:
        """Raises the weight and returns when the route's document says so."""

    def behave(self, arm: str, **settings: Any) -> None: ...
    def arm_away(self, arm: str) -> AbstractContextManager[None]: ...
    def database_away(self) -> AbstractContextManager[None]: ...
    def source_away(self) -> AbstractContextManager[None] | None:
        """Of the route: the API server. None where there is none to stop."""

    def metrics_away(self) -> AbstractContextManager[None] | None: ...
    def waiting(self, gateway: str) -> int:
        """Records on its spool."""

    def kill(self, gateway: str) -> tuple[float, float]:
        """SIGKILL; the moments just before it and when the process was gone."""

    def back(self, gateway: str) -> None:
        """Returns when a killed gateway serves again."""

    def leave(self, gateway: str) -> None:
        """Told to go, politely; returns when its successor serves."""

    def pass_streams(self) -> bool:
        """Changes the configuration so that streams are passed through, by a rolling update. False: cannot be done."""

    def rows(self) -> list[Row]: ...
    def story_of_load(self, story: Story) -> None:
        """Fetches what the applications saw."""


@dataclass(frozen=True)
class Pace:
    """How long and how much."""

    requests_per_second: float
    fault_seconds: float
    settle_seconds: float
    least_requests: int
    """Sent while a fault lasts."""


FULL = Pace(14.0, 12.0, 5.0, 80)
SHORT = Pace(14.0, 4.0, 1.5, 30)


@dataclass
class Run:
    town: Town
    pace: Pace
    say: Say
    story: Story = field(default_factory=Story)
    _stop: threading.Event = field(default_factory=threading.Event)

    # ------------------------------------------------------------------ building blocks

    def traffic(self, seconds: float | None = None, requests: int | None = None) -> None:
        """Until so much time has passed and so many requests were sent."""
        end = time.monotonic() + (self.pace.fault_seconds if seconds is None else seconds)
        wanted = self.town.state()["sent"] + (self.pace.least_requests if requests is None else requests)
        latest = end + 60
        while time.monotonic() < end or self.town.state()["sent"] < wanted:
            if time.monotonic() > latest:
                raise RuntimeError(f"the load does not go on: {self.town.state()}")
            time.sleep(0.5)

    def settle(self) -> None:
        self.traffic(self.pace.settle_seconds, 0)

    @contextlib.contextmanager
    def down(self, *arms: str) -> Iterator[None]:
        """These arms cannot answer inside the block."""
        since = time.time()
        try:
            yield
        finally:
            until = time.time() + AFTER_SECONDS
            self.story.down += [Down(self.town.endpoint(arm), since, until) for arm in arms]

    @contextlib.contextmanager
    def behaving(self, *arms: str, **faults: Any) -> Iterator[None]:
        with self.down(*arms):
            for arm in arms:
                self.town.behave(arm, **faults)
            try:
                yield
            finally:
                for arm in arms:
                    self.town.behave(arm, **dict.fromkeys(faults, 0.0))

    def kill(self, gateway: str) -> None:
        at, gone_at = self.town.kill(gateway)
        self.town.back(gateway)
        self.story.kills.append(Kill(gateway, at, gone_at, time.time()))

    def until(self, what: str, holds: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise RuntimeError(f"{what}: not within {seconds:.0f} s")
            time.sleep(0.2)

    # ------------------------------------------------------------------ the whole

    def go(self, names: tuple[str, ...]) -> Story:
        """Runs the phases and gathers what came of them."""
        reading = threading.Thread(target=self._read_route, daemon=True)
        reading.start()
        try:
            self.until("the route's document", lambda: bool(self.story.changes), 30)
            for name in names:
                self._phase(name, PHASES[name])
            self.town.load(requests_per_second=0.0)
            self.until("every request to have ended", lambda: self.town.state()["open"] == 0, 120)
        finally:
            self._stop.set()
            reading.join(10)
        self.town.story_of_load(self.story)
        self.say(f"{len(self.story.asked)} requests have ended; waiting for their records")
        self._gather_rows()
        return self.story

    def _phase(self, name: str, act: Callable[[Run], bool | None]) -> None:
        began = time.time()
        self.town.load(self.pace.requests_per_second, name)
        try:
            if act(self) is False:
                self.story.left_out.append(name)
                self.say(f"{name}: LEFT OUT, there is nothing here that could be taken away")
            self.settle()
        except Exception as error:  # said at the end, and the other phases still show what they show
            self.story.gone_wrong.append(f"{name}: {type(error).__name__}: {error}")
            self.say(f"{name}: GONE WRONG: {error}")
        ended = time.time()
        self.story.phases.append(Phase(name, began, ended))
        self.say(f"{name}: {ended - began:.0f} s")

    def _read_route(self) -> None:
        text = ""
        while not self._stop.is_set():
            try:
                now = self.town.route_text()
            except Exception:  # away, which one phase is about
                now = text
            if now != text:
                text = now
                self.story.changes.append(Change(time.time(), Route.model_validate_json(text)))
            self._stop.wait(ROUTE_SECONDS)

    def _gather_rows(self) -> None:
        def complete() -> bool:
            try:
                self.story.left_on_spools = sum(self.town.waiting(one) for one in self.town.gateways)
                self.story.rows = self.town.rows()
            except (RuntimeError, OSError, json.JSONDecodeError):
                return False
            return not lost(self.story) and self.story.left_on_spools == 0

        # What never comes is a finding, not an error of the soak.
        with contextlib.suppress(RuntimeError):
            self.until("every record in the database", complete, GATHER_SECONDS)


# ---------------------------------------------------------------------- the phases


def calm(run: Run) -> None:
    run.town.next_weight()
    run.traffic()


def candidate_away(run: Run) -> None:
    with run.down("candidate"), run.town.arm_away("candidate"):
        run.traffic()


def candidate_fails(run: Run) -> None:
    """It answers 500, breaks off in mid-answer, hangs, answers nonsense: a fifth each and more."""
    faults = {"error_share": 0.3, "reset_share": 0.3, "hang_share": 0.2, "truncated_share": 0.3}
    with run.behaving("candidate", **faults):
        run.traffic()


def control_away(run: Run) -> None:
    with run.down("control"), run.town.arm_away("control"):
        run.traffic()


def control_answers_500(run: Run) -> None:
    with run.behaving("control", error_share=1.0):
        run.traffic()


def control_hangs(run: Run) -> bool:
    if not run.town.has_backup:
        return False  # every one of its requests would wait for a minute
    with run.behaving("control", hang_share=1.0):
        run.traffic()
    return True


def only_the_candidate_left(run: Run) -> bool:
    """Everybody else answers 500 just when it is back."""
    if not run.town.has_backup:
        return False
    with run.down("candidate"), run.town.arm_away("candidate"):
        run.traffic()
    # It is back, and its breaker need not know it yet.
    run.traffic(AFTER_SECONDS + 0.5, 0)
    with run.behaving("control", "backup", error_share=1.0):
        run.traffic()
    return True


def database_away(run: Run) -> None:
    with run.town.database_away():
        run.traffic()
        run.town.next_weight()
        run.traffic(0.0, run.pace.least_requests // 2)


def route_source_away(run: Run) -> bool:
    away = run.town.source_away()
    if away is None:
        return False
    since = time.time()
    with away:
        # Nobody can be asked how far the load is; that it went on is seen afterwards.
        time.sleep(BLIND_SECONDS)
    run.story.blind.append((since, time.time()))
    run.town.next_weight()
    run.traffic(run.story.after_blindness_seconds)
    return True


def metrics_away(run: Run) -> bool:
    away = run.town.metrics_away()
    if away is None:
        return False
    with away:
        run.traffic()
    return True


def gateways_leave(run: Run) -> None:
    for gateway in run.town.gateways if run.pace is not SHORT else run.town.gateways[:1]:
        run.town.leave(gateway)
        run.settle()
    run.town.next_weight()


def streams_passed_through(run: Run) -> bool:
    return run.town.pass_streams()


def kill_under_load(run: Run, gateway: str) -> None:
    """With slow models and twice the load, so that the kill meets requests in flight."""
    arms = ("control", "candidate")
    for arm in arms:
        run.town.behave(arm, latency_mean_seconds=SLOW_SECONDS)
    run.town.load(2 * run.pace.requests_per_second)
    run.until("requests in flight", lambda: run.town.state()["open"] >= LEAST_OPEN, 30)
    run.kill(gateway)
    run.town.load(run.pace.requests_per_second)
    for arm in arms:
        run.town.behave(arm, latency_mean_seconds=QUICK_SECONDS)


def gateway_killed_with_a_full_spool(run: Run) -> None:
    """The database is away, so that its successor has records to deliver."""

    # Clients keep their connections, so that one gateway may have them all.
    def fullest() -> str:
        return max(run.town.gateways, key=run.town.waiting)

    with run.town.database_away():
        run.traffic(0.0)
        run.until("records on a spool", lambda: run.town.waiting(fullest()) >= LEAST_WAITING, 60)
        gateway = fullest()
        run.story.spooled_at_kill[gateway] = run.town.waiting(gateway)
        kill_under_load(run, gateway)
        run.settle()


def gateway_killed(run: Run) -> None:
    kill_under_load(run, run.town.gateways[0])
    run.town.next_weight()
    run.traffic()


PHASES: dict[str, Callable[[Run], bool | None]] = {
    "calm": calm,
    "candidate away": candidate_away,
    "candidate fails in every way": candidate_fails,
    "control away": control_away,
    "control answers 500": control_answers_500,
    "control hangs": control_hangs,
    "control and fallback answer 500": only_the_candidate_left,
    "database away": database_away,
    "API server away": route_source_away,
    "Prometheus away": metrics_away,
    "gateways deleted in turn": gateways_leave,
    "gateway killed, database away": gateway_killed_with_a_full_spool,
    "rolling update: streams passed on": streams_passed_through,
    "gateway killed": gateway_killed,
    "candidate away, streams passed on": candidate_away,
    "control away, streams passed on": control_away,
    "calm again": calm,
}
ALL = tuple(PHASES)
FEW = (
    "calm",
    "candidate away",
    "control answers 500",
    "gateways deleted in turn",
    "gateway killed, database away",
)
