"""The evidence of one rollout: what has been counted, and since when. Pure data.

`folding.fold` adds the samples that came after the last counted ones: folding is associative, so evidence is always
checkpoint + what Prometheus still remembers, and nothing has to be written between checkpoints. Totals only grow.
Marks are snapshots of the totals at step entries and every twelve hours: what happened in a step, and the epochs of
the tests for drift. A ledger says which object (uid) and which candidate version it belongs to.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from sys import intern
from typing import Any

import orjson

from cutover_operator.evidence.samples import Sample
from cutover_operator.rollout.betting import Purse

SCHEMA_VERSION = 3
"""1: without hours and without totals of pairs, pools, second labels and confidence; read as if they had not begun.
2: with one bettor on costs, against the lowest limit; what it won is played on with against that limit, and other
limits are bet against from now on; a user's own counters are read back to the beginning once."""
LEDGER_KEY = "ledger.json"
MARKS_KEPT = 40
SERIES_KEPT = 2000
IDLE_SECONDS = 3600.0
ENDED_SECONDS = 300.0
"""A series that is this much older than the newest one has ended."""
HIGHEST = "max:"
"""Begins the name of a total kept in the database: never folded away, since it comes back with its whole value."""
EPOCH_SECONDS = 12 * 3600.0
HOUR_SECONDS = 3600.0
LATE_SECONDS = 300.0
"""How long after its end an hour still takes samples. What comes later counts in the oldest hour still open."""
HOURS_KEPT = 2000

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
    """Until when everything has been counted: the moment it was written, or that of the last look that could read."""
    control: Mapping[str, Any] | None = None
    """The control arm this rollout is compared with, as it stands in the route."""
    series: Mapping[str, Sample] = field(default_factory=dict)
    totals: Totals = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    cost_bets: Mapping[str, Purse] = field(default_factory=dict)
    """By limit (`limit_key`): bets against "a cost within it", in the epochs of the marks."""
    cohorts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Open cost cohorts: minute -> (USD, requests)."""
    hours: Mapping[int, Totals] = field(default_factory=dict)
    """What the label totals grew by, hour by hour since 1970: the cohorts that are bet on once each is closed."""
    labels_until: float = 0.0
    """Newest sample of a label total."""
    fresh_from: int = 1
    """Errors and latency are judged from the mark with this k on: what came before was a shared incident."""
    incidents: int = 0
    resets: int = 0
    ended: int = 0
    """Ended series that were folded away because there were too many; see `lost_tails`."""
    refused: int = 0
    """Samples that no counter can have (NaN, infinite, negative)."""
    own_read: Mapping[str, float] = field(default_factory=dict)
    """Until when a user's own counters have been read, by gate and selectors (`folding.own_counters`)."""

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

    def segments(self, fresh_from: int = 1) -> list[Totals]:
        """What was counted from each mark at or after `fresh_from` to the next, one for each of `epochs`."""
        bounds = [*(m.totals for m in self.marks if m.k >= fresh_from), self.totals]
        return [minus(later, earlier) for earlier, later in itertools.pairwise(bounds)]

    @property
    def first_open_hour(self) -> int:
        return int((self.labels_until - LATE_SECONDS) // HOUR_SECONDS)

    def closed_hours(self) -> list[tuple[int, Totals]]:
        """The hours that take no more samples, oldest first."""
        return [(h, self.hours[h]) for h in sorted(self.hours) if h < self.first_open_hour]

    @property
    def lost_tails(self) -> int:
        """Series that ended or began anew: what each counted after its last scrape nobody can know. 0 means that the
        totals are whole. While all are away together (Prometheus is), none has ended."""
        newest = max((at for at, _ in self.series.values()), default=0.0)
        idle = sum(
            newest - at > ENDED_SECONDS
            for name, (at, _) in self.series.items()
            if not name.startswith(HIGHEST)
        )
        return self.resets + self.ended + idle

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
            # Where a step began the arms' shares changed: without that mark two shares would be compared as one.
            given_up = min(spare, key=lambda m: m.step is not None, default=None)
            marks = tuple(m for m in marks if m is not given_up)
        # A mark that was replaced may have been the one a shared incident ended at.
        return replace(self, marks=marks, fresh_from=min(self.fresh_from, k), cost_bets=self._bets_at(k))

    def _bets_at(self, k: int) -> Mapping[str, Purse]:
        """The bets once this mark is made: each begins an epoch, but for the one in which everything begins and for a
        mark that is set again, whose epoch began already."""
        if k == 1 or any(m.k >= k for m in self.marks):
            return self.cost_bets
        return {key: purse.next_epoch() for key, purse in self.cost_bets.items()}

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
        return replace(
            self, marks=marks, fresh_from=k, incidents=self.incidents + 1, cost_bets=self._bets_at(k)
        )

    def rolled_incident(self, at: float, totals: Totals) -> Ledger:
        """While the incident lasts: the look at both arms begins anew from `totals`, without spending more of the risk.

        Whatever began meanwhile, an epoch or a step, begins anew as well: it would hold the bad stretch.
        """
        marks = tuple(m if m.k < self.fresh_from else Mark(m.k, at, m.step, dict(totals)) for m in self.marks)
        return replace(self, marks=marks)

    def restarted_watch(self, at: float, step: int) -> Ledger:
        """A new week of watching a promoted candidate: the risk is quoted per week."""
        mark = Mark(1, at, step, dict(self.totals))
        hours = {h: grown for h, grown in self.hours.items() if h >= at // HOUR_SECONDS}
        return replace(self, marks=(mark,), fresh_from=1, incidents=0, cost_bets={}, hours=hours)

    def afresh(self, at: float, version: str, files: str = "") -> Ledger:
        """A fresh start that forgets the counts but not which samples were counted already."""
        return replace(
            self,
            version=version,
            files=files,
            started_at=at,
            written_at=at,
            epoch=self.epoch + 1,
            totals={},
            marks=(),
            cost_bets={},
            cohorts={},
            hours={},
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
        hours = dict(sorted(self.hours.items())[-HOURS_KEPT:])
        return replace(
            self, revision=self.revision + 1, written_at=at, series=series, ended=ended, hours=hours
        )

    # ------------------------------------------------------------ text
    def to_json(self) -> str:
        document = asdict(self) | {"schema_version": SCHEMA_VERSION, "hours": _table(self.hours)}
        return json.dumps(document, separators=(",", ":"), allow_nan=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Raises LedgerError."""
        try:
            document = orjson.loads(text)
            schema = document.pop("schema_version")
            if schema > SCHEMA_VERSION:
                raise LedgerError(f"ledger schema {schema} is newer than this operator's {SCHEMA_VERSION}")
            document["series"] = {
                intern(k): (float(at), float(v)) for k, (at, v) in document["series"].items()
            }
            document["marks"] = tuple(Mark(**m) for m in document["marks"])
            document["cost_bets"] = _cost_bets(document, schema)
            document["cohorts"] = {k: (float(c), float(n)) for k, (c, n) in document["cohorts"].items()}
            document["hours"] = _hours(document.get("hours") or {"columns": [], "rows": {}})
            return cls(**document)
        except LedgerError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(f"not a ledger: {type(error).__name__}: {error}"[:256]) from error


def _table(hours: Mapping[int, Totals]) -> dict[str, Any]:
    """Rows under one header: the names of the totals would make up most of the text."""
    columns = sorted({key for grown in hours.values() for key in grown})
    rows = {str(hour): [_short(grown.get(key, 0.0)) for key in columns] for hour, grown in hours.items()}
    return {"columns": columns, "rows": rows}


def _short(value: float) -> float:
    return int(value) if value.is_integer() else value


def _hours(table: Mapping[str, Any]) -> dict[int, Totals]:
    columns = [str(column) for column in table["columns"]]
    return {
        int(hour): {key: float(value) for key, value in zip(columns, row, strict=True) if value}
        for hour, row in table["rows"].items()
    }


def _cost_bets(document: dict[str, Any], schema: int) -> dict[str, Purse]:
    if schema > 2:
        bets = document["cost_bets"].items()
        return {key: Purse(tuple(map(float, purse["in_play"])), int(purse["epochs"])) for key, purse in bets}
    won, limit = float(document.pop("bettor")["log_wealth"]), document.pop("cost_limit")
    if not limit:
        return {}
    # Half of the old capital plays on; what the epochs so far would have got is given up.
    in_play = tuple(v + won for v in Purse.begun(drift=True).in_play)
    return {limit_key(limit): Purse(in_play, max((m.k for m in document["marks"]), default=1))}


def minus(totals: Totals, earlier: Totals) -> dict[str, float]:
    """Totals since a snapshot; never negative."""
    return {key: max(0.0, value - earlier.get(key, 0.0)) for key, value in totals.items()}


def limit_key(limit: float) -> str:
    return str(float(limit))


def edge_key(edge: float) -> str:
    return f"{edge:g}"
