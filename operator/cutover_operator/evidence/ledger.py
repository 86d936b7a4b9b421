"""The evidence of one rollout: what has been counted, and since when. Pure data and a pure fold.

`fold` adds the samples that came after the last counted ones: folding is associative, so evidence is always
checkpoint + what Prometheus still remembers, and nothing has to be written between checkpoints. Totals only grow.
Marks are snapshots of the totals at step entries and every twelve hours: what happened in a step, and the epochs of
the tests for drift. A ledger says which object (uid) and which candidate version it belongs to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cutover.contract import (
    COST,
    DURATION,
    LABELS_MATURED,
    REQUESTS,
    SATISFACTION,
    SHADOW_DURATION,
    SHADOW_PAIRS,
)

from cutover_operator.evidence.samples import (
    Answer,
    Sample,
    Series,
    growth,
    increments,
    merged,
    newest_before,
    series_id,
    usable,
)
from cutover_operator.rollout.evalue import Bettor

SCHEMA_VERSION = 1
LEDGER_KEY = "ledger.json"
MARKS_KEPT = 40
SERIES_KEPT = 2000
IDLE_SECONDS = 3600.0
HIGHEST = "max:"
"""Begins the name of a total kept in the database: never folded away, since it comes back with its whole value."""
EPOCH_SECONDS = 12 * 3600.0
COHORT_SECONDS = 60.0
COHORT_REQUESTS = 20.0
COST_CAP = 4.0
"""A cohort's mean cost counts up to this many times the limit."""

ANSWERED = ("ok", "error", "deferred")
Totals = Mapping[str, float]


class LedgerError(ValueError):
    """The stored text is not a ledger this operator can read."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The totals at a moment. `k` counts the epochs of the drift tests from 1."""

    k: int
    at: float
    step: int | None
    totals: Totals


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a fold looks for."""

    rollout: str
    version: str
    edges: tuple[float, ...] = ()
    """Latency edges the gates ask for."""
    cost_limit: float | None = None
    custom: tuple[tuple[str, str, str], ...] = ()
    """(gate name, selector of the bad counter, selector of the total)."""


@dataclass(frozen=True, slots=True)
class Ledger:
    uid: str
    version: str
    """Candidate version the evidence is about."""
    started_at: float
    files: str = ""
    """Digest of the files the version named when the evidence began."""
    epoch: int = 1
    """Counts fresh starts asked for by `retry`."""
    revision: int = 0
    written_at: float = 0.0
    control: Mapping[str, Any] | None = None
    """The control arm this rollout is compared with, as it stands in the route."""
    series: Mapping[str, Sample] = field(default_factory=dict)
    totals: Totals = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    bettor: Bettor = field(default_factory=Bettor)
    cost_limit: float | None = None
    cohorts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Open cost cohorts: minute -> (USD, requests)."""
    fresh_from: int = 1
    """Errors and latency are judged from the mark with this k on: what came before was a shared incident."""
    incidents: int = 0
    resets: int = 0
    ended: int = 0
    """Series that ended: what they counted after their last scrape is lost, and flagged here instead of guessed."""
    refused: int = 0
    """Samples that no counter can have (NaN, infinite, negative)."""

    # ------------------------------------------------------------ reading
    def total(self, key: str) -> float:
        return self.totals.get(key, 0.0)

    def mark_of_step(self, step: int) -> Mark | None:
        return max((m for m in self.marks if m.step == step), key=lambda m: m.k, default=None)

    def since_step(self, step: int) -> Totals:
        """What was counted since the step's mark; everything when it has none."""
        mark = self.mark_of_step(step)
        return dict(self.totals) if mark is None else minus(self.totals, mark.totals)

    def epochs(self, fresh_from: int = 1) -> list[tuple[int, Totals]]:
        """(index from 1, totals since then) of the marks at or after `fresh_from`."""
        return [(m.k - fresh_from + 1, minus(self.totals, m.totals)) for m in self.marks if m.k >= fresh_from]

    # ------------------------------------------------------------ moving on
    def with_mark(self, at: float, step: int | None = None) -> Ledger:
        """A new epoch; for a step, it takes the place of marks a crashed pass left for this step or later ones."""
        kept = tuple(m for m in self.marks if step is None or m.step is None or m.step < step)
        k = max((m.k for m in kept), default=0) + 1
        marks = (*kept, Mark(k, at, step, dict(self.totals)))
        if len(marks) > MARKS_KEPT:
            current = max((m.step for m in marks if m.step is not None), default=None)
            spare = [
                m
                for m in marks
                if m.k not in (1, self.fresh_from, k) and (m.step is None or m.step != current)
            ]
            marks = tuple(m for m in marks if m is not spare[0]) if spare else marks
        # A mark that was replaced may have been the one a shared incident ended at.
        return replace(self, marks=marks, fresh_from=min(self.fresh_from, k))

    def without_steps(self) -> Ledger:
        """The steps were rewritten: the epochs stay, so that an unwelcome trend is not forgotten by an edit."""
        return replace(self, marks=tuple(replace(m, step=None) for m in self.marks))

    def pinned(self, control: Mapping[str, Any] | None) -> Ledger:
        return replace(self, control=control)

    def after_incident(self, at: float) -> Ledger:
        """Judge errors and latency anew from here: both arms were hit by something that was not the candidate."""
        step = max((m.step for m in self.marks if m.step is not None), default=None)
        k = max((m.k for m in self.marks), default=0) + 1
        marks = (*self.marks, Mark(k, at, step, dict(self.totals)))
        return replace(self, marks=marks, fresh_from=k, incidents=self.incidents + 1)

    def rolled_incident(self, at: float) -> Ledger:
        """While the incident lasts: the look at both arms begins anew, without spending more of the risk."""
        marks = tuple(
            Mark(m.k, at, m.step, dict(self.totals)) if m.k == self.fresh_from else m for m in self.marks
        )
        return replace(self, marks=marks)

    def restarted_watch(self, at: float, step: int) -> Ledger:
        """A new week of watching a promoted candidate: the risk is quoted per week."""
        mark = Mark(1, at, step, dict(self.totals))
        return replace(self, marks=(mark,), fresh_from=1, incidents=0, bettor=Bettor())

    def afresh(self, at: float, version: str, files: str = "") -> Ledger:
        """A fresh start that forgets the counts but not which samples were counted already."""
        return replace(
            self,
            version=version,
            files=files,
            started_at=at,
            epoch=self.epoch + 1,
            totals={},
            marks=(),
            bettor=Bettor(),
            cohorts={},
            fresh_from=1,
            incidents=0,
        )

    def at_revision(self, revision: int) -> Ledger:
        return replace(self, revision=revision)

    def stamped(self, at: float) -> Ledger:
        """The next revision, with series that ended long ago folded away when there are too many."""
        series = dict(self.series)
        ended = self.ended
        if len(series) > SERIES_KEPT:
            newest = max(at_ for at_, _ in series.values())
            idle = sorted(
                (
                    s
                    for s in series.items()
                    if newest - s[1][0] > IDLE_SECONDS and not s[0].startswith(HIGHEST)
                ),
                key=lambda s: s[1][0],
            )
            for name, _ in idle[: len(series) - SERIES_KEPT]:
                del series[name]
                ended += 1
        return replace(self, revision=self.revision + 1, written_at=at, series=series, ended=ended)

    # ------------------------------------------------------------ text
    def to_json(self) -> str:
        document = asdict(self) | {"schema_version": SCHEMA_VERSION}
        return json.dumps(document, separators=(",", ":"), allow_nan=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Raises LedgerError."""
        try:
            document = json.loads(text)
            schema = document.pop("schema_version")
            if schema > SCHEMA_VERSION:
                raise LedgerError(f"ledger schema {schema} is newer than this operator's {SCHEMA_VERSION}")
            document["series"] = {k: (float(at), float(v)) for k, (at, v) in document["series"].items()}
            document["marks"] = tuple(Mark(**m) for m in document["marks"])
            document["bettor"] = Bettor(**document["bettor"])
            document["cohorts"] = {k: (float(c), float(n)) for k, (c, n) in document["cohorts"].items()}
            return cls(**document)
        except LedgerError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(f"not a ledger: {type(error).__name__}: {error}"[:256]) from error


def minus(totals: Totals, earlier: Totals) -> dict[str, float]:
    """Totals since a snapshot; never negative."""
    return {key: max(0.0, value - earlier.get(key, 0.0)) for key, value in totals.items()}


def edge_key(edge: float) -> str:
    return f"{edge:g}"


def fold(ledger: Ledger, answers: Mapping[str, Answer], wanted: Wanted) -> Ledger:
    """The ledger with every sample counted that is newer than those it counted already."""
    folding = _Folding(ledger, wanted)
    rollout = wanted.rollout
    if REQUESTS in answers:
        for one in folding.own(answers[REQUESTS].of(rollout)):
            key = f"requests/{one.label('arm')}/{one.label('outcome')}"
            counted = one.label("arm") == "candidate" and one.label("outcome") in ANSWERED
            folding.count(REQUESTS, one, key, cohort=1 if counted else None)
    if COST in answers:
        for one in folding.own(answers[COST].of(rollout)):
            folding.count(
                COST, one, f"cost/{one.label('arm')}", cohort=0 if one.label("arm") == "candidate" else None
            )
    if DURATION in answers:
        folding.histogram(DURATION, "duration", folding.own(answers[DURATION].of(rollout)))
    if SHADOW_PAIRS in answers:
        for one in folding.own(answers[SHADOW_PAIRS].of(rollout), "candidate"):
            folding.count(SHADOW_PAIRS, one, f"shadow/{one.label('agreement')}")
    if SHADOW_DURATION in answers:
        folding.histogram(
            SHADOW_DURATION, "shadow", folding.own(answers[SHADOW_DURATION].of(rollout), "candidate")
        )
    if LABELS_MATURED in answers:
        parts = ("rollout", "arm", "version", "field", "stratum", "result")
        folding.highest(
            LABELS_MATURED, folding.own(answers[LABELS_MATURED].of(rollout)), parts, "labels", (1, 3, 5)
        )
    if SATISFACTION in answers:
        names = ("rollout", "arm", "version", "score")
        folding.highest(
            SATISFACTION, folding.own(answers[SATISFACTION].of(rollout)), names, "satisfaction", (1, 3)
        )
    for gate, bad, total in wanted.custom:
        for part, selector in (("bad", bad), ("total", total)):
            if selector in answers:
                for one in answers[selector].series:
                    folding.count(
                        f"{gate}/{part}/{selector}", one, f"custom/{gate}/{part}", born_at=ledger.started_at
                    )
    return folding.done()


class _Folding:
    """The workings of one fold; lives as long as the call."""

    def __init__(self, ledger: Ledger, wanted: Wanted) -> None:
        self.ledger = ledger
        self.wanted = wanted
        self.series = dict(ledger.series)
        self.totals = dict(ledger.totals)
        same_limit = ledger.cost_limit == wanted.cost_limit
        self.bettor = ledger.bettor if same_limit else Bettor()
        self.cohorts = (
            {int(minute): list(pair) for minute, pair in ledger.cohorts.items()} if same_limit else {}
        )
        self.newest = -math.inf
        self.resets, self.refused = ledger.resets, ledger.refused

    def own(self, series: Iterable[Series], arm: str = "") -> list[Series]:
        """Series of the control, and of the candidate in the version the evidence is about."""
        return [
            s
            for s in merged(series)
            if (arm or s.label("arm")) != "candidate" or s.label("version") == self.wanted.version
        ]

    def add(self, key: str, amount: float) -> None:
        self.totals[key] = self.totals.get(key, 0.0) + amount

    def count(
        self, metric: str, one: Series, key: str, cohort: int | None = None, born_at: float | None = None
    ) -> None:
        name = series_id(metric, one.labels)
        last = self.series.get(name)
        if last is None and born_at is not None:
            # A counter of somebody else: what it held before the rollout began is no evidence about it.
            first = min((s for s in one.samples if usable(s[1])), default=None)
            last = newest_before(one.samples, born_at) or (first if first and first[0] <= born_at else None)
        grown = growth(one.samples, last)
        self.add(key, grown.added)
        self.resets += grown.resets
        self.refused += grown.refused
        if grown.last is not None:
            self.series[name] = grown.last
        if cohort is not None and self.wanted.cost_limit is not None:
            for at, added, _ in increments(one.samples, last):
                self.cohorts.setdefault(int(at // COHORT_SECONDS), [0.0, 0.0])[cohort] += added
                self.newest = max(self.newest, at)

    def histogram(self, metric: str, prefix: str, series: Sequence[Series]) -> None:
        """Slow and all answers per edge, always of the same samples: an edge first asked for in mid-rollout starts
        where the count of all answers stands, never at the beginning."""
        whole: dict[str, Series] = {}
        for one in series:
            if _edge_of(one) == math.inf:
                whole[series_id(metric, {**one.labels, "le": "+Inf"})] = one
        for name, total in whole.items():
            arm = total.label("arm") or "candidate"
            before = self.series.get(name)
            everything = growth(total.samples, before)
            for one in series:
                edge = _edge_of(one)
                if edge not in self.wanted.edges or series_id(metric, {**one.labels, "le": "+Inf"}) != name:
                    continue
                own_name = series_id(metric, {**one.labels, "le": edge_key(edge)})
                last = self.series.get(own_name)
                if last is None and before is not None:
                    last = newest_before(one.samples, before[0]) or min(one.samples, default=None)
                fast = growth(one.samples, last)
                self.add(f"{prefix}/{arm}/{edge_key(edge)}/fast", fast.added)
                self.add(f"{prefix}/{arm}/{edge_key(edge)}/all", everything.added)
                self.refused += fast.refused
                if fast.last is not None:
                    self.series[own_name] = fast.last
            self.resets += everything.resets
            self.refused += everything.refused
            if everything.last is not None:
                self.series[name] = everything.last

    def highest(
        self,
        metric: str,
        series: Iterable[Series],
        names: tuple[str, ...],
        prefix: str,
        shown: tuple[int, ...],
    ) -> None:
        """Totals from a database that every replica exports alike: the highest one counts, once."""
        for one in series:
            values = [one.label(name) for name in names]
            name = HIGHEST + series_id(metric, dict(zip(names, values, strict=True)))
            seen = [s for s in one.samples if usable(s[1])]
            self.refused += len(one.samples) - len(seen) if name not in self.series else 0
            if not seen:
                continue
            at, high = max(s[0] for s in seen), max(s[1] for s in seen)
            before = self.series.get(name, (0.0, 0.0))
            if high > before[1]:
                self.add("/".join([prefix, *(values[i] for i in shown)]), high - before[1])
            self.series[name] = (max(at, before[0]), max(high, before[1]))

    def done(self) -> Ledger:
        self._close_cohorts()
        return replace(
            self.ledger,
            series=self.series,
            totals=self.totals,
            bettor=self.bettor,
            cost_limit=self.wanted.cost_limit,
            cohorts={str(minute): (pair[0], pair[1]) for minute, pair in sorted(self.cohorts.items())},
            resets=self.resets,
            refused=self.refused,
        )

    def _close_cohorts(self) -> None:
        """Bet once per minute that is over, on its mean cost per answer; thin minutes join the next one."""
        limit = self.wanted.cost_limit
        if limit is None or limit <= 0:
            return
        closed_before = (
            int((self.newest - COHORT_SECONDS) // COHORT_SECONDS) if math.isfinite(self.newest) else -1
        )
        cost = requests = 0.0
        for minute in sorted(m for m in self.cohorts if m < closed_before):
            pair = self.cohorts.pop(minute)
            cost, requests = cost + pair[0], requests + pair[1]
            if requests >= COHORT_REQUESTS:
                self.bettor = self.bettor.bet(cost / requests / (COST_CAP * limit), 1.0 / COST_CAP)
                cost = requests = 0.0
        if cost or requests:
            rest = self.cohorts.setdefault(closed_before, [0.0, 0.0])
            rest[0], rest[1] = rest[0] + cost, rest[1] + requests


def _edge_of(one: Series) -> float:
    text = one.label("le")
    try:
        return math.inf if text == "+Inf" else float(text)
    except ValueError:
        return math.nan
