"""When a gate's verdict is to be expected, if things go on as they do now. Pure.

The evidence is carried forward at its present pace and put before the judge that decides: no formula of its own, so
a forecast agrees with the decision it foretells. A gate without any evidence yet is forecast on an assumption, which
is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.evidence.ledger import HOUR_SECONDS, Ledger, Totals, edge_key, minus
from cutover_operator.rollout.accuracy import by_stratum, has_pairs
from cutover_operator.rollout.counts import answered, label_counts, shadow_counts
from cutover_operator.rollout.gates import SLOW_SHARE, NamedGate
from cutover_operator.rollout.verdict import Bench, Verdict, judge

HORIZON_SECONDS = 90 * 86_400.0
"""Nothing is foretold beyond it."""
LABELLED = ("labels/", "satisfaction/", "doubles/", "pairs/", "pool/", "weight/")
"""Totals that come from people and from the database."""
HOURS_AVERAGED = 24
STEADY_SECONDS = 600.0
"""A pace is taken over at least this long where the evidence reaches back so far."""
STEP_SECONDS = 60.0
"""A step younger than this says nothing about its own pace yet."""
Unit = Literal["labels", "answers", "votes"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is to come for one gate. Times count from the ledger's checkpoint."""

    gate: NamedGate
    now: Verdict
    unit: Unit
    per_hour: float
    """Present pace of the gate's evidence."""
    verdict: Literal["pass", "fail"] | None
    """None when neither comes within the horizon."""
    seconds: float | None
    more: float | None
    """Labels, answers or votes still to come until then."""
    first_seconds: float = 0.0
    """Until the first label can come due; 0 when some have."""
    assumed: str = ""
    """On which assumption, when there is no evidence yet."""
    why: str = ""
    """Why nothing can be foretold, when that is not the pace."""


def forecast(spec: ModelRolloutSpec, step: int, ledger: Ledger, gate: NamedGate, weight: int) -> Forecast:
    """What the judge will say about a gate, and when. `weight` is the candidate's share in force, in percent."""
    at = ledger.written_at
    now = judge(Bench(spec, step, ledger, at), gate)
    count, unit = _counted(gate)
    rates: Mapping[str, float] = pace(ledger, step)
    first, assumed = 0.0, ""
    if count(ledger.totals) <= 0:
        rates, first, assumed = _assumption(spec, step, ledger, gate, weight)
    per_hour = 3600.0 * count(rates)
    if now.verdict in ("pass", "fail"):
        settled: Literal["pass", "fail"] = "pass" if now.verdict == "pass" else "fail"
        return Forecast(gate, now, unit, per_hour, settled, 0.0, 0.0)
    if _bets_hourly(spec, gate) and not ledger.closed_hours():
        why = "it is judged once per closed hour, and none is closed yet"
        return Forecast(gate, now, unit, per_hour, None, None, None, first, assumed, why)
    if per_hour <= 0:
        return Forecast(gate, now, unit, 0.0, None, None, None, first, assumed)

    def verdict_after(seconds: float) -> str:
        return judge(Bench(spec, step, _grown(ledger, rates, seconds), at + seconds), gate).verdict

    seconds = _first_time(verdict_after)
    if seconds is None:
        return Forecast(gate, now, unit, per_hour, None, None, None, first, assumed)
    later: Literal["pass", "fail"] = "pass" if verdict_after(seconds) == "pass" else "fail"
    more = per_hour * seconds / 3600.0
    return Forecast(gate, now, unit, per_hour, later, first + seconds, more, first, assumed)


def pace(ledger: Ledger, step: int) -> dict[str, float]:
    """Events per second of every total: labels over ten minutes or more, everything else since the step began."""
    at = ledger.written_at
    whole = _rate(ledger.totals, {}, at - ledger.started_at)
    steady = max((m for m in ledger.marks if at - m.at >= STEADY_SECONDS), key=lambda m: m.at, default=None)
    own = ledger.mark_of_step(step)
    if own is None or at - own.at < STEP_SECONDS:
        own = None
    labels = whole if steady is None else _rate(ledger.totals, steady.totals, at - steady.at)
    answers = whole if own is None else _rate(ledger.totals, own.totals, at - own.at)
    return {key: (labels if key.startswith(LABELLED) else answers).get(key, 0.0) for key in ledger.totals}


def requests_missing(spec: ModelRolloutSpec, step: int, ledger: Ledger) -> tuple[float, float]:
    """(requests still missing for the step's minRequests, requests per second at the present pace)."""
    here = spec.steps[step]
    count: Callable[[Totals], float] = (
        (lambda totals: sum(shadow_counts(totals)))
        if here.shadow is not None
        else (lambda totals: answered(totals, "candidate"))
    )
    return max(0.0, here.min_requests - count(ledger.since_step(step))), count(pace(ledger, step))


# ---------------------------------------------------------------- workings
def _rate(totals: Totals, earlier: Totals, seconds: float) -> dict[str, float]:
    return {key: value / max(seconds, 1.0) for key, value in minus(totals, earlier).items()}


def _grown(ledger: Ledger, rates: Mapping[str, float], seconds: float) -> Ledger:
    keys = {*ledger.totals, *rates}
    closed = ledger.closed_hours()[-HOURS_AVERAGED:]
    hours = dict(ledger.hours)
    if closed:
        counted = {key for _, row in closed for key in row}
        average = {key: sum(row.get(key, 0.0) for _, row in closed) / len(closed) for key in counted}
        begin = ledger.first_open_hour
        hours |= {begin + n: average for n in range(int(seconds // HOUR_SECONDS))}
    return replace(
        ledger,
        totals={key: ledger.total(key) + rates.get(key, 0.0) * seconds for key in keys},
        hours=hours,
        labels_until=ledger.labels_until + seconds,
    )


def _bets_hourly(spec: ModelRolloutSpec, gate: NamedGate) -> bool:
    """Whether a gate's verdict moves once per closed hour instead of with every count."""
    paired = gate.gate.margin is not None and has_pairs(spec)
    return gate.metric == "accuracy" and (by_stratum(spec) or paired)


def _first_time(verdict_after: Callable[[float], str]) -> float | None:
    """The first time, to 1 %, at which there is a verdict."""
    low, high = 0.0, 30.0
    while verdict_after(high) not in ("pass", "fail"):
        low, high = high, high * 1.3
        if high > HORIZON_SECONDS:
            return None
    while high - low > max(1.0, 0.01 * high):
        middle = (low + high) / 2
        if verdict_after(middle) in ("pass", "fail"):
            high = middle
        else:
            low = middle
    return high


def _counted(gate: NamedGate) -> tuple[Callable[[Totals], float], Unit]:
    """How much evidence of a gate's own kind some totals hold."""
    if gate.metric == "accuracy":
        return (lambda totals: sum(label_counts(totals, "candidate", gate.field))), "labels"
    if gate.metric == "satisfaction":
        return (
            lambda totals: sum(totals.get(f"satisfaction/candidate/{s}", 0.0) for s in ("up", "down")),
            "votes",
        )
    if gate.metric == "custom":
        return (lambda totals: totals.get(f"custom/{gate.name}/total", 0.0)), "answers"
    return (lambda totals: answered(totals, "candidate")), "answers"


def _assumption(
    spec: ModelRolloutSpec, step: int, ledger: Ledger, gate: NamedGate, weight: int
) -> tuple[dict[str, float], float, str]:
    """(rates, seconds until they begin, the assumption in words) for a gate without evidence: half of the failures
    its limit allows, at the planned pace of labels or at the share of the traffic the step has."""
    limit = gate.gate.limit
    if gate.metric == "accuracy":
        labels = spec.analysis.labels
        age = ledger.written_at - min((m.at for m in ledger.marks), default=ledger.started_at)
        first = max(0.0, to_seconds(labels.deadline) - age)
        if limit is None:
            return {}, first, ""
        right, per_second = (1.0 + limit) / 2, labels.per_hour / 3600.0
        stem = f"labels/candidate/{gate.field}"
        rates = {f"{stem}/right": right * per_second, f"{stem}/wrong": (1 - right) * per_second}
        return rates, first, f"if {100 * right:.3g} % are right and {labels.per_hour:g} an hour are labelled"
    own = pace(ledger, step)
    per_second = (answered(own, "candidate") + answered(own, "control")) * weight / 100.0
    if gate.metric not in ("errorRate", "latency", "cost") or limit is None or per_second <= 0:
        return {}, 0.0, ""
    allowed = SLOW_SHARE if gate.metric == "latency" else limit
    bad = allowed / 2 if gate.metric != "cost" else 0.0
    rates = {
        "requests/candidate/ok": (1 - bad if gate.metric == "errorRate" else 1.0) * per_second,
        "requests/candidate/error": (bad if gate.metric == "errorRate" else 0.0) * per_second,
    }
    if gate.metric == "latency":
        stem = f"duration/candidate/{edge_key(limit)}"
        rates |= {f"{stem}/all": per_second, f"{stem}/fast": (1 - bad) * per_second}
    if gate.metric == "cost":
        rates["cost/candidate"] = per_second * limit / 2
    return rates, 0.0, "if it keeps half of what the limit allows"
