"""Every event that was ever scraped is counted once: whatever dies, restarts, lags, or is away, and however it is read.

A small world makes the history of a rollout's gateways: replicas count, die with what they had not yet shown, come back
under the same or another name, are scraped late, twice or not at all; Prometheus forgets what is older than its
retention and may be away. The operator reads windows of it, keeps checkpoints, and is started anew at any point.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutover.contract import COST, DURATION, LABELS_MATURED, REQUESTS, ROUTE_GENERATION
from cutover_operator.evidence.folding import Wanted, fold
from cutover_operator.evidence.ledger import Ledger, limit_key
from cutover_operator.evidence.query import window_for
from cutover_operator.evidence.reading import Wish, digest
from cutover_operator.evidence.samples import Answer, Sample, Series
from cutover_operator.rollout.betting import Purse

SCRAPE_SECONDS = 10.0
USD = 0.004
WANTED = Wanted("r", "v1", edges=(2.0,), cost_limits=(0.01,))
NEW = Ledger(uid="u", version="v1", started_at=0.0)
Row = tuple[str, tuple[tuple[str, str], ...]]
T = TypeVar("T")


@dataclass
class Replica:
    """One life of a gateway pod."""

    name: str
    ok: int = 0
    errors: int = 0
    shown_ok: int = 0
    shown_errors: int = 0
    """What the last scrape saw."""


@dataclass
class World:
    """Gateways and a Prometheus on a clock of its own."""

    seed: int
    closed_windows: bool = True
    """Prometheus 2.x includes the left end of a range, 3.x does not."""
    jobs: int = 1
    """Scrape jobs that all find the same targets."""
    retention_seconds: float = math.inf
    deaths: float = 0.05
    missed: float = 0.1
    now: float = 0.0
    lives: list[Replica] = field(default_factory=list)
    alive: dict[str, Replica] = field(default_factory=dict)
    history: dict[Row, list[Sample]] = field(default_factory=dict)
    late: list[tuple[float, Row, Sample]] = field(default_factory=list)
    labelled: int = 0
    """Right labels in the database."""
    labels_shown: int = 0
    """The most that any replica of the assessments service has shown."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        for name in ("gw-0", "gw-1"):
            self.born(name, name)

    def born(self, place: str, name: str) -> None:
        self.alive[place] = Replica(name)
        self.lives.append(self.alive[place])

    def tick(self) -> None:
        """Ten seconds of traffic, accidents and one round of scrapes."""
        self.now += SCRAPE_SECONDS
        for place, replica in list(self.alive.items()):
            replica.ok += self.random.randrange(20)
            replica.errors += self.random.randrange(2)
            if self.random.random() < self.deaths and replica.shown_ok > 100:
                # The same pod name, as a StatefulSet has it, or a new pod; what was not scraped is lost with it.
                self.born(place, replica.name if self.random.random() < 0.5 else f"{replica.name}x")
            elif self.random.random() >= self.missed:
                self.scrape(replica)
        self.labelled += self.random.randrange(3)
        for name in ("as-0", "as-1"):
            if self.random.random() >= self.missed:
                self.scrape_labels(name, self.labelled - self.random.randrange(3))
        due = [one for one in self.late if one[0] <= self.now]
        self.late = [one for one in self.late if one[0] > self.now]
        for _, row, sample in due:
            self.history.setdefault(row, []).append(sample)

    def scrape(self, replica: Replica) -> None:
        replica.shown_ok, replica.shown_errors = replica.ok, replica.errors
        answered = replica.ok + replica.errors
        own = {"rollout": "r", "arm": "candidate", "version": "v1", "instance": replica.name}
        visible = self.now + self.random.choice((0.0, 0.0, SCRAPE_SECONDS))
        for job in range(self.jobs):
            at = self.now - 3.0 * job
            values: list[tuple[str, dict[str, str], float]] = [
                (REQUESTS, {"outcome": "ok"}, replica.ok),
                (REQUESTS, {"outcome": "error"}, replica.errors),
                (DURATION, {"le": "2.0"}, replica.ok),
                (DURATION, {"le": "+Inf"}, answered),
                (COST, {}, answered * USD),
            ]
            for metric, labels, value in values:
                named = {**own, **labels} | ({"job": f"j{job}"} if self.jobs > 1 else {})
                row = (metric, tuple(sorted(named.items())))
                self.late.append((visible, row, (at, float(value))))

    def scrape_labels(self, replica: str, value: int) -> None:
        """Every replica exports the database's total, some of them a moment later."""
        self.labels_shown = max(self.labels_shown, value)
        labels = {
            "rollout": "r",
            "arm": "candidate",
            "version": "v1",
            "field": "overall",
            "stratum": "all",
            "result": "right",
            "instance": replica,
        }
        row = (LABELS_MATURED, tuple(sorted(labels.items())))
        self.late.append((self.now, row, (self.now, float(max(value, 0)))))

    def read(self, window_seconds: float) -> dict[str, Answer]:
        """What Prometheus answers now, in an order of its own."""
        oldest = max(self.now - window_seconds, self.now - self.retention_seconds)
        found: dict[str, list[Series]] = {REQUESTS: [], DURATION: [], COST: [], LABELS_MATURED: []}
        for (metric, labels), samples in self.history.items():
            inside = [s for s in samples if s[0] > oldest or (self.closed_windows and s[0] == oldest)]
            if inside:
                found[metric].append(Series(dict(labels), shuffled(self.random, inside)))
        return {
            metric: Answer(tuple(shuffled(self.random, rows)), self.now) for metric, rows in found.items()
        }

    def all_scraped(self) -> None:
        """Quiet at the end: whoever lives is scraped, and everything late has come."""
        for _ in range(2):
            self.now += SCRAPE_SECONDS
            for replica in self.alive.values():
                self.scrape(replica)
            for _, row, sample in self.late:
                self.history.setdefault(row, []).append(sample)
            self.late = []

    def exposed(self) -> dict[str, float]:
        """The truth, as far as anybody but the dead can know it."""
        ok = sum(life.shown_ok for life in self.lives)
        errors = sum(life.shown_errors for life in self.lives)
        return {
            "requests/candidate/ok": ok,
            "requests/candidate/error": errors,
            "duration/candidate/2/fast": ok,
            "duration/candidate/2/all": ok + errors,
            "cost/candidate": (ok + errors) * USD,
            "labels/candidate/overall/right": self.labels_shown,
        }


def shuffled(chance: random.Random, rows: Iterable[T]) -> list[T]:
    mixed = list(rows)
    chance.shuffle(mixed)
    return mixed


@dataclass
class Reader:
    """The operator's way with evidence: a checkpoint, and what came since."""

    stored: Ledger = NEW
    current: Ledger = NEW
    read_at: float = 0.0

    def look(self, world: World) -> None:
        self.current = fold(self.current, world.read(window_for(world.now - self.read_at)), WANTED)
        self.read_at = world.now

    def keep(self, world: World) -> None:
        self.stored = self.current = self.current.stamped(world.now)

    def restart(self) -> None:
        """A new process, perhaps of another version: it has what was written, in whatever form that came back."""
        self.stored = self.current = Ledger.from_json(self.stored.to_json())
        self.read_at = self.stored.written_at


def assert_exact(ledger: Ledger, world: World) -> None:
    for key, value in world.exposed().items():
        assert ledger.total(key) == pytest.approx(value), key


ACTIONS = st.lists(
    st.sampled_from(("look", "look", "keep", "restart", "away", "nothing", "nothing")), max_size=60
)
WORLDS = st.builds(
    World,
    seed=st.integers(0, 10**6),
    closed_windows=st.booleans(),
    jobs=st.integers(1, 2),
    retention_seconds=st.sampled_from((math.inf, 3600.0)),
)


@settings(max_examples=60, deadline=None)
@given(WORLDS, ACTIONS)
def test_no_event_is_lost_or_counted_twice(world: World, actions: list[str]) -> None:
    reader = Reader()
    for action in actions:
        world.tick()
        if action == "away":  # neither scraping nor answering, for longer than the narrow windows
            for _ in range(30):
                world.now += SCRAPE_SECONDS
        elif action == "look":
            reader.look(world)
        elif action == "keep":
            reader.look(world)
            reader.keep(world)
        elif action == "restart":
            reader.restart()
    world.all_scraped()
    reader.look(world)
    assert_exact(reader.current, world)
    reader.look(world)
    assert_exact(reader.current, world)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 25), min_size=1, max_size=12), st.booleans())
def test_how_the_samples_are_cut_makes_no_difference(seed: int, cuts: list[int], closed: bool) -> None:
    """Whatever is read when, and whether an operator goes on in memory or from a checkpoint: one and the same ledger."""
    world = World(seed, closed_windows=closed, missed=0.0, deaths=0.03)
    often, seldom = Reader(), Reader()
    for cut in cuts:
        for _ in range(cut):
            world.tick()
            often.look(world)
        seldom.look(world)
        seldom.keep(world)
        seldom.restart()
    world.all_scraped()
    for reader in (often, seldom):
        reader.look(world)
    assert_exact(often.current, world)
    for key, value in often.current.totals.items():
        assert seldom.current.total(key) == pytest.approx(value), key
    assert often.current.series == seldom.current.series
    assert (often.current.resets, often.current.refused) == (seldom.current.resets, seldom.current.refused)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(0, 60))
def test_a_restart_at_any_point_changes_nothing(seed: int, kept_at: int, died_after: int) -> None:
    """What was counted after the last checkpoint is lost with the process, and counted again from the samples."""
    world, straight, restarted = World(seed), Reader(), Reader()
    for tick in range(1, kept_at + died_after + 5):
        world.tick()
        for reader in (straight, restarted):
            reader.look(world)
            if tick == kept_at:
                reader.keep(world)
        if tick == kept_at + died_after:
            restarted.restart()
            restarted.look(world)
    assert restarted.current.totals == pytest.approx(straight.current.totals)
    assert restarted.current.series == straight.current.series


def test_a_checkpoint_older_than_retention_loses_nothing_but_unseen_resets() -> None:
    """A step longer than retention: what matters is the last value counted, not the samples on the way."""
    world = World(3, retention_seconds=600.0, deaths=0.0)
    reader = Reader()
    for _ in range(30):
        world.tick()
    reader.look(world)
    reader.keep(world)
    for _ in range(2000):  # five and a half hours without an operator
        world.tick()
    reader.restart()
    world.all_scraped()
    reader.look(world)
    assert_exact(reader.current, world)


def test_what_a_dead_replica_never_showed_is_flagged_not_guessed() -> None:
    world = World(5, deaths=0.0, missed=0.0)
    reader = Reader()
    for _ in range(20):
        world.tick()
    world.all_scraped()
    reader.look(world)
    assert reader.current.lost_tails == 0
    dead, lives_on = world.alive.pop("gw-0"), world.alive["gw-1"]
    dead.ok += 7
    for _ in range(40):
        world.now += SCRAPE_SECONDS
        lives_on.ok += 1
        world.scrape(lives_on)
        world.history |= {row: [*world.history.get(row, []), sample] for _, row, sample in world.late}
        world.late = []
        reader.look(world)
    assert_exact(reader.current, world)
    assert reader.current.lost_tails == 5, "every series of the dead replica"


def test_a_prometheus_that_was_away_is_no_death() -> None:
    world = World(6, deaths=0.0, missed=0.0)
    reader = Reader()
    for _ in range(20):
        world.tick()
    reader.look(world)
    world.now += 7200.0
    reader.look(world)
    assert reader.current.lost_tails == 0
    world.all_scraped()
    reader.look(world)
    assert reader.current.lost_tails == 0
    assert_exact(reader.current, world)


def test_a_reset_is_flagged_as_what_it_may_have_lost() -> None:
    own = {"rollout": "r", "arm": "candidate", "version": "v1", "outcome": "ok", "instance": "gw-0"}
    rows = Series(own, [(10.0, 40.0), (20.0, 3.0)])
    ledger = fold(NEW, {REQUESTS: Answer((rows,), 20.0)}, WANTED)
    assert ledger.total("requests/candidate/ok") == 43
    assert ledger.lost_tails == 1


@pytest.mark.parametrize("metric", [REQUESTS, DURATION, COST])
def test_a_metric_that_was_never_seen_is_not_zero(metric: str) -> None:
    """No key in the totals: a verdict can tell 'none' from 'not seen'."""
    world = World(7, deaths=0.0, missed=0.0)
    for _ in range(60):
        world.tick()
    answers = world.read(3600)
    answers[metric] = Answer((), world.now)
    ledger = fold(NEW, answers, WANTED)
    prefix = {REQUESTS: "requests/", DURATION: "duration/", COST: "cost/"}[metric]
    assert not any(key.startswith(prefix) for key in ledger.totals)
    untouched = {limit_key(0.01): Purse.begun(drift=True)}
    assert ledger.cost_bets == untouched or metric == DURATION, "an answer without a price is not free"


def test_samples_that_are_no_counts_are_skipped_wherever_they_stand() -> None:
    world = World(8, deaths=0.0, missed=0.0)
    reader = Reader()
    for tick in range(40):
        world.tick()
        if tick % 3 == 0:
            for samples in world.history.values():
                samples.append((world.now - 1.0, (math.nan, math.inf, -1.0)[tick % 9 // 3]))
        reader.look(world)
    world.all_scraped()
    reader.look(world)
    assert_exact(reader.current, world)
    assert reader.current.refused > 0


@pytest.mark.parametrize("closed", [True, False])
def test_both_range_ends_of_prometheus_give_the_same_evidence(closed: bool) -> None:
    """A sample exactly on the left end is in the answer of 2.42 and not in that of 3.x."""
    world = World(9, closed_windows=closed, deaths=0.0, missed=0.0)
    reader = Reader()
    for _ in range(100):
        world.tick()
        reader.look(world)
    world.all_scraped()
    reader.look(world)
    assert_exact(reader.current, world)
    assert reader.current.totals == pytest.approx(fold(NEW, world.read(math.inf), WANTED).totals)


def test_an_outage_is_unavailable_and_adds_nothing() -> None:
    world = World(10, deaths=0.0, missed=0.0)
    for _ in range(20):
        world.tick()
    world.all_scraped()
    fresh = {**world.read(600), ROUTE_GENERATION: gauge(world.now)}
    wish = Wish("http://p", "assessor", replace(WANTED, cost_limits=()))
    counted = digest(fresh, wish, NEW)
    assert counted.metrics is None
    stale = {name: Answer(answer.series, world.now + 600.0) for name, answer in fresh.items()}
    assert isinstance(found := digest(stale, wish, counted.current).metrics, object)
    assert found is not None
    assert digest(stale, wish, counted.current).current == counted.current


def gauge(at: float) -> Answer:
    labels = {"gateway": "assessor", "instance": "gw-0"}
    return Answer((Series(labels, [(at - 10.0, 1.0), (at, 1.0)]),), at)


def test_one_counter_that_fell_tells_of_a_restart_that_the_others_do_not_show() -> None:
    """Two errors before the restart and three after it look like one more; the latency of all answers, too."""
    own = {"rollout": "r", "arm": "candidate", "version": "v1", "instance": "gw-0"}

    def pair(labels: dict[str, str], before: float, after: float) -> Series:
        return Series({**own, **labels}, [(10.0, before), (20.0, after)])

    answers = {
        REQUESTS: Answer((pair({"outcome": "ok"}, 40, 9), pair({"outcome": "error"}, 2, 3)), 20.0),
        DURATION: Answer((pair({"le": "2.0"}, 4, 10), pair({"le": "+Inf"}, 42, 12)), 20.0),
        COST: Answer((pair({}, 0.1, 0.2),), 20.0),
    }
    whole = fold(NEW, answers, WANTED)
    first = {
        m: Answer(tuple(Series(s.labels, s.samples[:1]) for s in a.series), 10.0) for m, a in answers.items()
    }
    for ledger in (whole, fold(fold(NEW, first, WANTED), answers, WANTED)):
        assert ledger.total("requests/candidate/ok") == 49
        assert ledger.total("requests/candidate/error") == 5
        assert ledger.total("duration/candidate/2/fast") == 14
        assert ledger.total("duration/candidate/2/all") == 54
        assert ledger.total("cost/candidate") == pytest.approx(0.3)
    other = Series({**own, "instance": "gw-1", "outcome": "error"}, [(10.0, 2.0), (20.0, 3.0)])
    apart = fold(NEW, {**answers, REQUESTS: Answer((*answers[REQUESTS].series, other), 20.0)}, WANTED)
    assert apart.total("requests/candidate/error") == 8, "another pod did not restart"
