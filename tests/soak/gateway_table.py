"""The soak's table: each phase in numbers, and PASS or FAIL for every promise. Values in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fakes.gateway_load import Asked
from soak.gateway_account import (
    EXCUSES,
    REFUSED_CONNECTION,
    Story,
    doubled,
    excuse,
    lags,
    lost,
    misrouted,
    told,
)


@dataclass(frozen=True)
class Line:
    """A phase in numbers, of the requests sent in it."""

    phase: str
    seconds: float
    sent: int
    control: int
    candidate: int
    fallback: int
    allowed: int
    """Failed, and nobody could have answered."""
    refused_connections: int
    not_allowed: int
    records: int


def lines(story: Story) -> list[Line]:
    rows = Counter(row.assessment_id for row in story.rows)
    found = []
    for phase in story.phases:
        sent = [one for one in story.asked if one.phase == phase.name]
        good = [one for one in sent if one.result == "answered"]
        excuses = Counter(excuse(story, one) for one in sent if one.result != "answered")
        found.append(
            Line(
                phase.name,
                round(phase.ended_at - phase.began_at, 1),
                len(sent),
                sum(one.arm == "control" and not one.fallback for one in good),
                sum(one.arm == "candidate" and not one.fallback for one in good),
                sum(bool(one.fallback) for one in good),
                sum(excuses[name] for name in EXCUSES),
                excuses[REFUSED_CONNECTION],
                excuses[""],
                sum(rows[one.key] for one in sent),
            )
        )
    return found


@dataclass(frozen=True)
class Check:
    promise: str
    kept: bool
    found: str


def checks(story: Story) -> list[Check]:
    failed = [(one, excuse(story, one)) for one in story.asked if one.result != "answered"]
    bare = [one for one, why in failed if not why]
    refused = [one for one, why in failed if why == REFUSED_CONNECTION]
    sdk = [one for one, why in failed if one.client == "sdk" and why != "no healthy arm"]
    sdk_bare = [one for one in sdk if one.result != "cut" or not excuse(story, one)]
    gone, twice = lost(story), doubled(story)
    late = [lag for lag in lags(story) if lag.seconds > lag.allowed_seconds]
    astray = misrouted(story)
    worst = lags(story)[:1]
    found = [
        Check(
            "no failed request that an allowed, healthy arm could have answered",
            not bare,
            _some([_told(story, one) for one in bare])
            or f"of {len(story.asked)}; {len(failed) - len(refused)} had an excuse {_excuses(failed)}",
        ),
        Check(
            "the SDK with its default retries sees no failure but of dead arms and streams already begun",
            not sdk_bare,
            _some([_told(story, one) for one in sdk_bare])
            or f"of {sum(one.client == 'sdk' for one in story.asked)}, {len(sdk)} streams cut",
        ),
        Check(
            "every id a client was told is in the database",
            not gone and bool(story.rows),
            _some(gone) or f"{len(told(story))} ids, {len(story.rows)} rows",
        ),
        Check("no row twice, none that nobody asked for", not twice, _some(twice) or "none"),
        Check("the spools are empty at the end", story.left_on_spools == 0, f"{story.left_on_spools} wait"),
        Check(
            "no gateway was wrong about the route for longer than the watch needs",
            not late and bool(story.seen),
            _some([f"{lag.pod} about generation {lag.generation}: {lag.seconds:.1f} s" for lag in late])
            or f"{len(story.changes)} documents, {len(story.seen)} reports"
            + (f", worst {worst[0].seconds:.1f} of {worst[0].allowed_seconds:.1f} s" if worst else ""),
        ),
        Check(
            "every request went to the arm that the route assigns it",
            not astray,
            _some([f"{one.phase}: {one.key} to {one.arm}" for one in astray])
            or f"of {sum(bool(one.arm) for one in story.asked)}",
        ),
        Check(
            "every phase was played to its end, under the load that was meant",
            not story.gone_wrong and story.unsent == 0,
            _some([text[:600] for text in story.gone_wrong])
            or f"{len(story.phases)} phases, {story.unsent} requests could not be sent",
        ),
    ]
    if story.kills:
        found += _about_kills(story, refused)
    return found


def _about_kills(story: Story, refused: Sequence[Asked]) -> list[Check]:
    cut = [
        one for one in story.asked if one.result != "answered" and excuse(story, one) == "in flight at a kill"
    ]
    waited = story.spooled_at_kill
    window = max(
        (one.ended_at - kill.at for kill in story.kills for one in refused if one.ended_at <= kill.back_at),
        default=0.0,
    )
    spool = Check(
        "a SIGKILL met a gateway whose spool held records",
        any(count > 0 for count in waited.values()),
        ", ".join(f"{gateway}: {count}" for gateway, count in waited.items()),
    )
    return [
        *([spool] if waited else []),  # only some phases look at it
        Check(
            "after a SIGKILL no connection was refused",
            not refused,
            f"{len(cut)} requests lost in flight at {len(story.kills)} kills; {len(refused)} connections refused by a "
            f"dead pod that its Service still named, for up to {window:.1f} s",
        ),
    ]


def _told(story: Story, one: Asked) -> str:
    """A request that failed, with its times beside the nearest kill's."""
    text = f"{one.phase}: {one.client} {one.kind} {one.result} {one.problem[:140]}"
    kill = min(story.kills, key=lambda kill: abs(kill.at - one.sent_at), default=None)
    if kill is None or one.result == "refused":
        return text
    sent, ended = one.sent_at - kill.at, one.ended_at - kill.at
    return f"{text} (sent {sent:+.2f} s, ended {ended:+.2f} s from the kill of {kill.gateway})"


def _excuses(failed: Sequence[tuple[Asked, str]]) -> str:
    counts = Counter(why for _, why in failed if why in EXCUSES)
    return str(dict(counts)) if counts else ""


def _some(found: Sequence[str], most: int = 6) -> str:
    if not found:
        return ""
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"{len(found)}: " + "; ".join(found[:most]) + more


def table(story: Story) -> str:
    head = ("sent", "control", "candidate", "fallback", "allowed", "refused", "NOT", "records", "seconds")
    text = [
        f"{'':34}{'':9}{'answered by':^29}{'failed':^25}",
        f"{'phase':34}" + "".join(f"{name:>{_width(name)}}" for name in head),
    ]
    for line in lines(story):
        values = (
            line.sent,
            line.control,
            line.candidate,
            line.fallback,
            line.allowed,
            line.refused_connections,
            line.not_allowed,
            line.records,
            line.seconds,
        )
        text.append(
            f"{(line.phase + ' (left out)' * (line.phase in story.left_out))[:33]:34}"
            + "".join(f"{value:>{_width(name)}}" for name, value in zip(head, values, strict=True))
        )
    text += [f"{'PASS' if check.kept else 'FAIL'}  {check.promise}: {check.found}" for check in checks(story)]
    return "\n".join(text)


def _width(name: str) -> int:
    return max(len(name) + 2, 8)
