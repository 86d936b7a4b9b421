"""What a soak of the gateway has shown: which failures had an excuse, which records are lost or doubled, how long a
weight was wrong. Pure: what the applications saw, what was done to whom and when, and the database's rows go in.

The rules are written down a second time here on purpose, from docs/gateway.md: a mistake in the gateway's own must not
excuse itself.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cutover.route import Arm, Route, assigned_to_candidate
from fakes.gateway_load import Asked, RouteSeen

KILL_NOTICED_SECONDS = 0.3
"""A client may send on a connection this long after the process at its other end was gone."""
POLL_LATE_SECONDS = 1.0
"""The route's document is read at intervals: a gateway may know of a change this much earlier than we do."""
GAP_SECONDS = 3.0
"""A gateway that was not heard for longer was away, not wrong."""


@dataclass(frozen=True)
class Phase:
    name: str
    began_at: float
    ended_at: float


@dataclass(frozen=True)
class Down:
    """An endpoint could not answer, from the first moment it might not have until it surely could again."""

    endpoint: str
    since: float
    until: float


@dataclass(frozen=True)
class Kill:
    """SIGKILL of a gateway."""

    gateway: str
    at: float
    gone_at: float
    """When its process had ended, and with it its connections."""
    back_at: float
    """When it served again."""


@dataclass(frozen=True)
class Change:
    """The route's document as it was from `at` on."""

    at: float
    route: Route


@dataclass(frozen=True)
class Row:
    """A row of the table `assessments`."""

    id: str
    assessment_id: str


@dataclass
class Story:
    """Everything a run has brought together."""

    asked: list[Asked] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    down: list[Down] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    blind: list[tuple[float, float]] = field(default_factory=list)
    """When the route's source could not be read: from, until."""
    seen: list[RouteSeen] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    spooled_at_kill: dict[str, int] = field(default_factory=dict)
    """Records that waited on a gateway's spool when it was killed."""
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """When the applications' own process stood still: until, for how many seconds."""
    left_on_spools: int = 0
    """Records that the gateways still had at the end."""
    unsent: int = 0
    """Requests that the load generator could not send in time."""
    gone_wrong: list[str] = field(default_factory=list)
    """Phases that could not be played to their end, and why."""
    left_out: list[str] = field(default_factory=list)
    """Phases in which nothing could be taken away."""
    watch_seconds: float = 2.0
    """How long a route may take to every gateway, the reading of their reports included."""
    after_blindness_seconds: float = 17.0
    """The same when the source was away: the watch pauses up to 15 seconds between two attempts."""


def endpoint(arm: Arm) -> str:
    """The name of the Service behind an arm, or address and port."""
    parts = urlsplit(arm.base_url)
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.partition(".")[0]
    return parts.netloc


def may_answer(route: Route, chosen: str) -> set[str]:
    """Endpoints that are allowed to answer a request assigned to this arm."""
    arms = [route.candidate if chosen == "candidate" else route.control, route.fallback]
    if chosen == "control" and route.promoted and route.fallback_rules.reverse:
        arms.append(route.candidate)
    return {endpoint(arm) for arm in arms if arm is not None}


def in_force(story: Story, since: float, until: float) -> list[Route]:
    """Routes that a gateway may have served at some time between the two."""
    since -= story.watch_seconds
    found = [
        change.route
        for change, after in zip(story.changes, [*story.changes[1:], None], strict=True)
        if change.at <= until + POLL_LATE_SECONDS and (after is None or after.at >= since)
    ]
    return found or [change.route for change in story.changes[:1]]


EXCUSES = ("no healthy arm", "in flight at a kill", "stream cut by its arm")
REFUSED_CONNECTION = "connection refused"


def excuse(story: Story, one: Asked) -> str:
    """Why a request that was not answered could not be; empty when it could. REFUSED_CONNECTION is judged by itself."""
    if one.result == "refused" and one.arm:
        for route in in_force(story, one.sent_at, one.ended_at):
            if all(_down(story, name, one) for name in may_answer(route, one.arm)):
                return "no healthy arm"
    retried = one.client == "sdk" and one.result != "cut"
    for kill in story.kills:
        if retried:
            continue
        if one.result in ("broken", "cut") and _in_flight(story, one, kill):
            return "in flight at a kill"
        if one.result == "unreached" and kill.at - 0.05 <= one.ended_at <= kill.back_at:
            return REFUSED_CONNECTION
    if one.result == "cut":
        for route in in_force(story, one.sent_at, one.ended_at):
            arm = route.candidate if one.arm == "candidate" else route.control
            if arm is not None and _down(story, endpoint(arm), one):
                return "stream cut by its arm"
    return ""


def _down(story: Story, name: str, one: Asked) -> bool:
    return any(
        part.endpoint == name and part.since <= one.ended_at and one.sent_at <= part.until
        for part in story.down
    )


def _in_flight(story: Story, one: Asked, kill: Kill) -> bool:
    """Sent before the client could know of the kill, and ended after it."""
    stalls = [seconds for until, seconds in story.stalls if kill.at <= until <= kill.gone_at + 5.0]
    noticed_at = kill.gone_at + KILL_NOTICED_SECONDS + max(stalls, default=0.0)
    return one.sent_at <= noticed_at and kill.at <= one.ended_at + 0.05


# ---------------------------------------------------------------------- records


def told(story: Story) -> set[str]:
    """Ids under which a client was answered, by a model or with an error of the models."""
    ids = {one.answer_id for one in story.asked if one.result in ("answered", "invalid")}
    ids |= {
        identity
        for one in story.asked
        for identity, status, arm in one.heard
        if status >= 500 and arm and identity
    }
    return ids - {""}


def lost(story: Story) -> list[str]:
    return sorted(told(story) - {row.id for row in story.rows})


def doubled(story: Story) -> list[str]:
    """Ids of rows that are there twice, and rows that no attempt of their request accounts for."""
    wrong = [identity for identity, count in Counter(row.id for row in story.rows).items() if count > 1]
    asked = {one.key: one for one in story.asked}
    silent: Counter[str] = Counter()
    for row in story.rows:
        one = asked.get(row.assessment_id)
        if one is None:
            wrong.append(row.id)
        elif row.id not in {identity for identity, _, _ in one.heard}:
            silent[row.assessment_id] += 1
            if silent[row.assessment_id] > one.attempts - len(one.heard):
                wrong.append(row.id)
    return sorted(wrong)


# ---------------------------------------------------------------------- weights


@dataclass(frozen=True)
class Lag:
    """How long a gateway said something else than the route's document."""

    pod: str
    generation: int
    """Of the document."""
    seconds: float
    allowed_seconds: float


def lags(story: Story) -> list[Lag]:
    """The longest time each gateway was wrong about each document; none for those who were right at once."""
    worst: dict[tuple[str, int], Lag] = {}
    by_pod: dict[str, list[RouteSeen]] = {}
    for seen in sorted(story.seen, key=lambda one: one.at):
        by_pod.setdefault(seen.pod, []).append(seen)
    for pod, reports in by_pod.items():
        heard_at: float | None = None
        here_since = 0.0
        for report in reports:
            if heard_at is None or report.at - heard_at > GAP_SECONDS:
                here_since = report.at
            heard_at = report.at
            past = [change for change in story.changes if change.at <= report.at]
            if not past:
                continue
            soon = [c for c in story.changes if report.at < c.at <= report.at + POLL_LATE_SECONDS]
            if any(_same(report, change.route) for change in (past[-1], *soon)):
                continue
            since = max(past[-1].at, here_since)
            lag = Lag(pod, past[-1].route.generation, report.at - since, _allowed(story, past[-1].at))
            key = (pod, lag.generation)
            if key not in worst or worst[key].seconds < lag.seconds:
                worst[key] = lag
    return sorted(worst.values(), key=lambda lag: -lag.seconds)


def _allowed(story: Story, changed_at: float) -> float:
    for since, until in story.blind:
        if since <= changed_at <= until + story.after_blindness_seconds:
            return max(until - changed_at, 0.0) + story.after_blindness_seconds
    return story.watch_seconds


def _same(report: RouteSeen, route: Route) -> bool:
    return (report.generation, report.weight_basis_points) == (route.generation, route.weight_basis_points)


def misrouted(story: Story) -> list[Asked]:
    """Requests that an arm was chosen for which no route in force at the time assigns.

    What was in force before the first document that was read is not known.
    """
    known_since = story.changes[0].at + story.watch_seconds if story.changes else float("inf")
    return [
        one
        for one in story.asked
        if one.arm
        and one.sent_at >= known_since
        and not _near_blindness(story, one)
        and all(
            (one.arm == "candidate") != assigned_to_candidate(route, one.key)
            for route in in_force(story, one.sent_at, one.ended_at)
        )
    ]


def _near_blindness(story: Story, one: Asked) -> bool:
    """Gateways may serve an older route then, for as long as `lags` allows."""
    return any(
        since <= one.sent_at <= until + story.after_blindness_seconds + 5.0 for since, until in story.blind
    )
