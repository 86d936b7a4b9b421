"""The fold: what samples add to a ledger. Pure.

Folding two windows one after the other gives what folding their union gives; a sample is never counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from sys import intern

from numpy.typing import ArrayLike

from cutover.contract import (
    CONFIDENCE,
    COST,
    DURATION,
    FALLBACKS,
    LABEL_CONFIDENCE,
    LABEL_DOUBLES,
    LABEL_PAIRS,
    LABEL_POOL,
    LABEL_WEIGHT,
    LABELS_MATURED,
    REQUESTS,
    SATISFACTION,
    SHADOW_DURATION,
    SHADOW_PAIRS,
    STRATUM_ALL,
)
from cutover_operator.evidence.labels import name_in_ledger, series_id
from cutover_operator.evidence.ledger import ANSWERED, HIGHEST, HOUR_SECONDS, Ledger, edge_key, limit_key
from cutover_operator.evidence.samples import (
    Answer,
    Series,
    custom_key,
    growth,
    increments,
    merged,
    newest_before,
    usable,
)
from cutover_operator.rollout.betting import Purse
from cutover_operator.rollout.evalue import Floats

HOURLY = {LABELS_MATURED: "labels"}
BET_ON = frozenset({LABEL_PAIRS, LABEL_POOL, LABEL_WEIGHT})
COHORT_SECONDS = 60.0
COHORT_REQUESTS = 20.0
AT_THE_START_SECONDS = 60.0
"""A look that soon after the beginning sees what a counter held before it."""
COST_CAP = 4.0
"""A cohort's mean cost counts up to this many times the limit."""


def bet_on_cost(purse: Purse, mean: float | Floats, limit: float, closed: ArrayLike = True) -> Purse:
    """The purse after a cohort with this mean cost, against "the mean is within the limit"."""
    return purse.bet_on_mean(mean / (COST_CAP * limit), 1.0 / COST_CAP, closed)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fold looks for."""

    rollout: str
    version: str
    edges: tuple[float, ...] = ()
    """Latency edges the gates ask for."""
    cost_limits: tuple[float, ...] = ()
    custom: tuple[tuple[str, str, str], ...] = ()
    """(gate name, selector of the bad counter, selector of the total)."""
    hourly_fields: tuple[str, ...] = ()
    """Answer fields whose labels are kept by the hour as well: those that bets are made on."""
    sure_fields: tuple[str, ...] = ()
    """Answer fields whose labels are kept by confidence."""


def own_counters(gate: str, bad: str, total: str) -> str:
    """A short name for a gate's own counters; with another selector they are others."""
    return series_id(gate, {"bad": bad, "total": total})


def fold(ledger: Ledger, answers: Mapping[str, Answer], wanted: Wanted) -> Ledger:
    """The ledger with every sample counted that is newer than those it counted already."""
    folding = _Folding(ledger, wanted)
    rollout = wanted.rollout
    if REQUESTS in answers:
        folding.find_restarts(answers[REQUESTS].of(rollout))
        for one in folding.own(answers[REQUESTS].of(rollout)):
            key = f"requests/{one.label('arm')}/{one.label('outcome')}"
            counted = one.label("arm") == "candidate" and one.label("outcome") in ANSWERED
            folding.count(REQUESTS, one, key, cohort=1 if counted else None)
    if COST in answers:
        for one in folding.own(answers[COST].of(rollout)):
            folding.count(
                COST, one, f"cost/{one.label('arm')}", cohort=0 if one.label("arm") == "candidate" else None
            )
    if FALLBACKS in answers:
        for one in merged(answers[FALLBACKS].of(rollout)):
            folding.count(FALLBACKS, one, f"fallbacks/{one.label('arm')}/{one.label('reason')}")
    if DURATION in answers:
        folding.histogram(DURATION, "duration", folding.own(answers[DURATION].of(rollout)))
    if SHADOW_PAIRS in answers:
        for one in folding.own(answers[SHADOW_PAIRS].of(rollout), "candidate"):
            folding.count(SHADOW_PAIRS, one, f"shadow/{one.label('agreement')}")
    if SHADOW_DURATION in answers:
        folding.histogram(
            SHADOW_DURATION, "shadow", folding.own(answers[SHADOW_DURATION].of(rollout), "candidate")
        )
    folding.labels(answers)
    if SATISFACTION in answers:
        names = ("rollout", "arm", "version", "score")
        folding.highest(
            SATISFACTION, folding.of_version(answers[SATISFACTION].of(rollout)), names, "satisfaction", (1, 3)
        )
    for gate, bad, total in wanted.custom:
        read_before = own_counters(gate, bad, total) in ledger.own_read
        for part, selector in (("bad", bad), ("total", total)):
            if custom_key(selector) in answers:
                answer = answers[custom_key(selector)]
                began = read_before or answer.served_at - ledger.started_at <= AT_THE_START_SECONDS
                for one in answer.series:
                    folding.foreign(f"{gate}/{part}/{selector}", one, f"custom/{gate}/{part}", began)
    return folding.done()


class _Folding:
    """The workings of one fold; lives as long as the call."""

    def __init__(self, ledger: Ledger, wanted: Wanted) -> None:
        self.ledger = ledger
        self.wanted = wanted
        self.series = dict(ledger.series)
        self.totals = dict(ledger.totals)
        # Against a limit that was not asked for before bets begin now.
        fresh = Purse.begun(drift=True)
        self.cost_bets = {
            limit: ledger.cost_bets.get(limit_key(limit), fresh) for limit in wanted.cost_limits if limit > 0
        }
        open_cohorts = ledger.cohorts if self.cost_bets else {}
        self.cohorts = {int(minute): list(pair) for minute, pair in open_cohorts.items()}
        self.newest = -math.inf
        self.hours = {hour: dict(grown) for hour, grown in ledger.hours.items()}
        # Bets were asked for in mid-rollout: what pools and pairs held before has no labels by the hour beside it.
        self.bets_begin = any(key.startswith(("labels/", "drawn/")) for key in ledger.totals) and not any(
            key.startswith("pool/") for key in ledger.totals
        )
        self.labels_until, self.first_open_hour = ledger.labels_until, ledger.first_open_hour
        self.restarts: dict[tuple[str, str], set[float]] = {}
        self.resets, self.refused = ledger.resets, ledger.refused

    def own(self, series: Iterable[Series], arm: str = "") -> list[Series]:
        """Counters of the control, and of the candidate in the version the evidence is about."""
        return self.of_version(merged(series), arm)

    def of_version(self, series: Iterable[Series], arm: str = "") -> list[Series]:
        return [
            s
            for s in series
            if (arm or s.label("arm")) != "candidate" or s.label("version") == self.wanted.version
        ]

    def find_restarts(self, series: Iterable[Series]) -> None:
        """A process that starts anew begins all its counters anew, also those that are past their old value by the
        next scrape: one of them that fell tells of all, because a scrape gives all its samples one time."""
        for one in merged(series):
            last = self.series.get(name_in_ledger(REQUESTS, one.labels))
            newer = [value for at, value in one.samples if last is None or at > last[0]]
            if not newer or (len(newer) == 1 and last is not None and newer[0] >= last[1]):
                continue
            fallen = {at for at, _, reset in increments(one.samples, last) if reset}
            if fallen:
                self.restarts.setdefault(_target(one), set()).update(fallen)

    def restarts_of(self, one: Series) -> Container[float]:
        return self.restarts.get(_target(one), ())

    def add(self, key: str, amount: float) -> None:
        # One text for all rollouts: each ledger and each of its marks has dozens of these names.
        self.totals[intern(key)] = self.totals.get(key, 0.0) + amount

    def foreign(self, metric: str, one: Series, key: str, began: bool) -> None:
        """A counter of somebody else: what it held before the rollout began is no evidence about it. `began`: one not
        known yet began after that, from zero; otherwise nobody knows how old it is when it is first seen."""
        name = name_in_ledger(metric, one.labels)
        if name not in self.series:
            begun = newest_before(one.samples, self.ledger.started_at)
            if begun is None and not began:
                begun = min((s for s in one.samples if usable(s[1])), default=None)
            if begun is not None:
                self.series[name] = begun
        self.count(metric, one, key)

    def count(self, metric: str, one: Series, key: str, cohort: int | None = None) -> None:
        name = name_in_ledger(metric, one.labels)
        last = self.series.get(name)
        restarts = self.restarts_of(one)
        grown = growth(one.samples, last, restarts)
        self.add(key, grown.added)
        self.resets += grown.resets
        self.refused += grown.refused
        if grown.last is not None:
            self.series[name] = grown.last
        if cohort is not None and self.cost_bets:
            for at, added, _ in increments(one.samples, last, restarts):
                self.cohorts.setdefault(int(at // COHORT_SECONDS), [0.0, 0.0])[cohort] += added
                self.newest = max(self.newest, at)

    def histogram(self, metric: str, prefix: str, series: Sequence[Series]) -> None:
        """Slow and all answers per edge, always of the same samples: an edge first asked for in mid-rollout starts
        where the count of all answers stands, never at the beginning."""
        whole: dict[str, Series] = {}
        fast_ones: dict[str, list[Series]] = {}
        for one in series:
            edge = _edge_of(one)
            if edge == math.inf or edge in self.wanted.edges:
                name = name_in_ledger(metric, one.labels, "+Inf")
                if edge == math.inf:
                    whole[name] = one
                else:
                    fast_ones.setdefault(name, []).append(one)
        for name, total in whole.items():
            arm = total.label("arm") or "candidate"
            before = self.series.get(name)
            restarts = self.restarts_of(total)
            everything = growth(total.samples, before, restarts)
            for one in fast_ones.get(name, ()):
                edge = _edge_of(one)
                own_name = name_in_ledger(metric, one.labels, edge_key(edge))
                last, every = self.series.get(own_name), everything
                if last is None and before is not None:
                    last = newest_before(one.samples, before[0])
                    good = [s for s in one.samples if usable(s[1])]
                    if last is None and good:
                        last = min(good)
                        begun = newest_before(total.samples, last[0]) or before
                        every = growth(total.samples, begun, restarts)
                fast = growth(one.samples, last, restarts)
                self.add(f"{prefix}/{arm}/{edge_key(edge)}/fast", fast.added)
                self.add(f"{prefix}/{arm}/{edge_key(edge)}/all", every.added)
                self.refused += fast.refused
                if fast.last is not None:
                    self.series[own_name] = fast.last
            self.resets += everything.resets
            self.refused += everything.refused
            if everything.last is not None:
                self.series[name] = everything.last

    def labels(self, answers: Mapping[str, Answer]) -> None:
        """The totals of matured labels: all of them as sums, those that bets are made on by the hour, too."""
        wanted = self.wanted

        def of(metric: str) -> Sequence[Series]:
            return answers[metric].of(wanted.rollout) if metric in answers else ()

        def mine(metric: str) -> list[Series]:
            return [s for s in of(metric) if s.label("version") == wanted.version]

        labelled = self.of_version(of(LABELS_MATURED))
        names: tuple[str, ...] = ("rollout", "arm", "version", "field", "stratum", "result")
        for arm in ("candidate", "control"):
            rows = [s for s in labelled if s.label("arm") == arm]
            hourly = wanted.hourly_fields if arm == "candidate" else ()
            # Labels drawn with different chances never meet in one sum: as it stands it would say nothing.
            alike = [s for s in rows if s.label("stratum") == STRATUM_ALL]
            self.highest(LABELS_MATURED, alike, names, "labels", (1, 3, 5), (3, 4, 5), hourly)
            others = [s for s in rows if s.label("stratum") != STRATUM_ALL]
            self.highest(LABELS_MATURED, others, names, "drawn", (1, 3, 4, 5), (3, 4, 5), hourly)
        names = ("rollout", "version", "field", "result")
        self.highest(LABEL_PAIRS, mine(LABEL_PAIRS), names, "pairs", (2, 3), (2, 3), wanted.hourly_fields)
        names = ("rollout", "version", "stratum")
        self.highest(LABEL_POOL, mine(LABEL_POOL), names, "pool", (2,), (2,))
        self.highest(LABEL_WEIGHT, mine(LABEL_WEIGHT), names, "weight", (2,), (2,))
        names = ("rollout", "field", "result")
        self.highest(LABEL_DOUBLES, of(LABEL_DOUBLES), names, "doubles", (1, 2))
        names = ("rollout", "version", "field", "bin", "result")
        sure = [s for s in mine(LABEL_CONFIDENCE) if s.label("field") in wanted.sure_fields]
        self.highest(LABEL_CONFIDENCE, sure, names, "sure", (2, 3, 4))
        for one in merged(mine(CONFIDENCE)):
            self.count(CONFIDENCE, one, f"confidence/{one.label('bin')}")

    def highest(
        self,
        metric: str,
        series: Iterable[Series],
        names: tuple[str, ...],
        prefix: str,
        shown: tuple[int, ...],
        by_hour: tuple[int, ...] = (),
        fields: tuple[str, ...] | None = None,
    ) -> None:
        """Totals from a database that every replica exports alike: the highest one counts, once.

        `by_hour`: the parts of the name under which it is kept by the hour as well, if its field is one of `fields`
        (none: whatever its field).
        """
        replicas: dict[tuple[str, ...], list[Series]] = {}
        for one in series:
            replicas.setdefault(tuple(one.label(name) for name in names), []).append(one)
        for values, found in replicas.items():
            name = HIGHEST + series_id(metric, dict(zip(names, values, strict=True)))
            samples = [s for one in found for s in one.samples]
            seen = sorted(s for s in samples if usable(s[1]))
            self.refused += len(samples) - len(seen) if name not in self.series else 0
            if not seen:
                continue
            if name not in self.series and metric in BET_ON and self.bets_begin:
                self.series[name] = seen[-1][0], max(value for _, value in seen)
                continue
            before = self.series.get(name, (0.0, 0.0))
            high = before[1]
            field = values[names.index("field")] if "field" in names else ""
            hourly = bool(by_hour) and (fields is None or field in fields)
            for at, value in seen:
                if value > high:
                    if hourly:
                        row = self.hours.setdefault(max(int(at // HOUR_SECONDS), self.first_open_hour), {})
                        key = "/".join([HOURLY.get(metric, prefix), *(values[i] for i in by_hour)])
                        row[key] = row.get(key, 0.0) + value - high
                    high = value
            if high > before[1]:
                self.add("/".join([prefix, *(values[i] for i in shown)]), high - before[1])
            self.series[name] = (max(seen[-1][0], before[0]), high)
            if metric == LABELS_MATURED:
                self.labels_until = max(self.labels_until, seen[-1][0])

    def done(self) -> Ledger:
        self._close_cohorts()
        return replace(
            self.ledger,
            series=self.series,
            totals=self.totals,
            cost_bets={limit_key(limit): purse for limit, purse in self.cost_bets.items()},
            cohorts={str(minute): (pair[0], pair[1]) for minute, pair in sorted(self.cohorts.items())},
            hours=self.hours,
            labels_until=self.labels_until,
            resets=self.resets,
            refused=self.refused,
        )

    def _close_cohorts(self) -> None:
        """Bet once per minute that is over, on its mean cost per answer; thin minutes join the next one."""
        closed_before = (
            int((self.newest - COHORT_SECONDS) // COHORT_SECONDS) if math.isfinite(self.newest) else -1
        )
        if "cost/candidate" not in self.totals:
            # Answers whose price was never seen are not free: nothing is bet on them, now or later.
            self.cohorts = {minute: pair for minute, pair in self.cohorts.items() if minute >= closed_before}
            return
        cost = requests = 0.0
        for minute in sorted(m for m in self.cohorts if m < closed_before):
            pair = self.cohorts.pop(minute)
            cost, requests = cost + pair[0], requests + pair[1]
            if requests >= COHORT_REQUESTS:
                mean = cost / requests
                self.cost_bets = {
                    limit: bet_on_cost(purse, mean, limit) for limit, purse in self.cost_bets.items()
                }
                cost = requests = 0.0
        if cost or requests:
            rest = self.cohorts.setdefault(closed_before, [0.0, 0.0])
            rest[0], rest[1] = rest[0] + cost, rest[1] + requests


def _target(one: Series) -> tuple[str, str]:
    return one.label("instance"), one.label("pod")


def _edge_of(one: Series) -> float:
    text = one.label("le")
    try:
        return math.inf if text == "+Inf" else float(text)
    except ValueError:
        return math.nan
