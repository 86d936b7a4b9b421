"""A pass carries out its plan in one order, and drops the rest when somebody else wrote."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from cutover.api.base import Condition
from cutover.contract import FINALIZER, LABEL_OWNER_KIND, LABEL_OWNER_NAME
from cutover_operator import conditions, events, health, watches
from cutover_operator.conditions import Fact
from cutover_operator.loop import SAY_AFTER_FAILURES, Loop
from cutover_operator.plan import Apply, Delete, Key, Notice, Plan, SetFinalizer, Swap
from cutover_operator.port import CONFIG_MAPS, EVENTS, JOBS, TRAINING_RUNS, Conflict, KubeError, Object
from cutover_operator.telemetry import JsonFormatter, Telemetry
from cutover_operator.workqueue import WorkQueue
from fakes.kube import Change, FakeKube
from fakes.kube_faults import Crash, Fault, FaultyKube
from fakes.training_town import KEY, NAMESPACE, RUN, SPEC, START

NOW = START


def note(name: str, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": data,
    }


@dataclass
class Seen:
    parent: Object


@dataclass
class Fixed:
    """Always the same plan."""

    kube: FakeKube
    plan: Plan = field(default_factory=Plan)
    error: Exception | None = None
    resource = TRAINING_RUNS

    async def gather(self, key: Any, now: datetime) -> Seen | None:
        parent = await self.kube.get(TRAINING_RUNS, key.namespace, key.name)
        return None if parent is None else Seen(parent)

    def decide(self, world: Seen, now: datetime) -> Plan:
        if self.error:
            raise self.error
        return self.plan


@pytest.fixture
async def kube() -> FakeKube:
    fake = FakeKube(lambda: NOW)
    await fake.as_user().create(
        {
            "apiVersion": TRAINING_RUNS.api_version,
            "kind": TRAINING_RUNS.kind,
            "metadata": {"name": RUN, "namespace": NAMESPACE},
            "spec": SPEC,
        }
    )
    return fake


PLAN = Plan(
    before=(SetFinalizer(True), Swap(note("ledger", n="1"))),
    status={"stage": "train"},
    after=(Apply(note("child")), Delete(CONFIG_MAPS, NAMESPACE, "nothing")),
    notices=(Notice("Began", "it began"),),
    again_in_seconds=7.0,
)


async def test_before_then_status_then_after_then_events(kube: FakeKube) -> None:
    faulty = FaultyKube(kube)
    telemetry = Telemetry()
    loop = Loop(faulty, [Fixed(kube, PLAN)], lambda: NOW, telemetry)
    assert await loop.run_pass(KEY) == 7.0
    kinds = [write.split("/")[0] for write in faulty.writes]
    assert kinds == [
        "apply TrainingRun",
        "create ConfigMap",
        "apply_status TrainingRun",
        "apply ConfigMap",
        "delete ConfigMap",
        "apply Event",
    ]
    live = kube.peek(TRAINING_RUNS, NAMESPACE, RUN)
    assert live["metadata"]["finalizers"] == [FINALIZER]
    assert (
        'cutover_operator_passes_total{kind="TrainingRun",outcome="ok"} 1.0'
        in telemetry.exposition().decode()
    )


async def test_an_equal_status_is_not_written(kube: FakeKube) -> None:
    fixed = Fixed(kube, Plan(status={"stage": "train"}))
    faulty = FaultyKube(kube)
    loop = Loop(faulty, [fixed], lambda: NOW)
    await loop.run_pass(KEY)
    stored = kube.peek(TRAINING_RUNS, NAMESPACE, RUN)["status"]
    fixed.plan = Plan(status=stored)
    await loop.run_pass(KEY)
    assert len(faulty.writes) == 1


async def test_a_conflict_drops_what_would_have_followed(kube: FakeKube) -> None:
    faulty = FaultyKube(kube, (Fault(3, "conflict"),))
    loop = Loop(faulty, [Fixed(kube, PLAN)], lambda: NOW)
    with pytest.raises(Conflict):
        await loop.run_pass(KEY)
    assert len(faulty.writes) == 3
    assert "status" not in kube.peek(TRAINING_RUNS, NAMESPACE, RUN)


async def test_somebody_who_writes_between_look_and_commit_wins(kube: FakeKube) -> None:
    class Slow(Fixed):
        def decide(self, world: Seen, now: datetime) -> Plan:
            kube.edit(TRAINING_RUNS, NAMESPACE, RUN, lambda obj: obj["spec"].update(suspend=True))
            return Plan(status={"stage": "train"}, after=(Apply(note("child")),))

    loop = Loop(kube, [Slow(kube)], lambda: NOW)
    with pytest.raises(Conflict):
        await loop.run_pass(KEY)
    assert not kube.all(CONFIG_MAPS)


@pytest.mark.parametrize("kind", ["before", "after"])
async def test_killed_anywhere_and_started_again_the_end_is_the_same(kube: FakeKube, kind: Any) -> None:
    for place in range(1, 6):
        fake = FakeKube(lambda: NOW)
        await fake.create(kube.peek(TRAINING_RUNS, NAMESPACE, RUN))
        plan = Plan(before=(SetFinalizer(True),), status={"stage": "train"}, after=(Apply(note("child")),))
        faulty = FaultyKube(fake, (Fault(place, kind),))
        for _ in range(2):
            try:
                await Loop(faulty, [Fixed(fake, plan)], lambda: NOW).run_pass(KEY)
            except Crash:
                continue
        assert fake.peek(TRAINING_RUNS, NAMESPACE, RUN)["status"]["stage"] == "train"
        assert len(fake.all(CONFIG_MAPS)) == 1


async def test_a_gone_object_is_no_error(kube: FakeKube) -> None:
    kube.vanish(TRAINING_RUNS, NAMESPACE, RUN)
    assert await Loop(kube, [Fixed(kube, PLAN)], lambda: NOW).run_pass(KEY) is None
    assert not kube.all(CONFIG_MAPS)


async def test_an_error_that_stays_is_said_on_the_object_and_taken_back(kube: FakeKube) -> None:
    fixed = Fixed(kube, Plan(status={"stage": "train"}), error=ZeroDivisionError("by zero"))
    failures = 0
    loop = Loop(kube, [fixed], lambda: NOW, failures=lambda key: failures)
    for failures in range(SAY_AFTER_FAILURES + 2):  # noqa: B007
        with pytest.raises(ZeroDivisionError):
            await loop.run_pass(KEY)
    status = kube.peek(TRAINING_RUNS, NAMESPACE, RUN)["status"]
    (stalled,) = status["conditions"]
    assert (stalled["status"], stalled["reason"]) == ("True", "OperatorError")
    assert "ZeroDivisionError: by zero" in stalled["message"]
    fixed.error = None
    await loop.run_pass(KEY)
    assert (
        "conditions" not in kube.peek(TRAINING_RUNS, NAMESPACE, RUN)["status"]
        or not kube.peek(TRAINING_RUNS, NAMESPACE, RUN)["status"]["conditions"]
    )


async def test_events_are_counted_and_told_apart_by_what_they_are_about(kube: FakeKube) -> None:
    parent = kube.peek(TRAINING_RUNS, NAMESPACE, RUN)
    for number in range(3):
        moment = NOW + timedelta(minutes=number)
        await events.record(kube, parent, Notice("Began", f"time {number}", about="a"), moment)
    await events.record(kube, parent, Notice("Began", "other", about="b"), NOW)
    found = sorted(kube.all(EVENTS), key=lambda event: -event["count"])
    assert [(one["count"], one["message"]) for one in found] == [(3, "time 2"), (1, "other")]
    assert found[0]["firstTimestamp"] < found[0]["lastTimestamp"]


async def test_an_event_that_cannot_be_written_fails_no_pass(kube: FakeKube) -> None:
    faulty = FaultyKube(kube, (Fault(1, "unavailable"),))
    plan = Plan(notices=(Notice("Began", "x"),))
    assert await Loop(faulty, [Fixed(kube, plan)], lambda: NOW).run_pass(KEY) is None


def test_a_transition_time_moves_with_the_status_only() -> None:
    first = conditions.merge([], [Fact("Ready", "False", "Why", "one")], 1, NOW)
    later = NOW + timedelta(hours=1)
    second = conditions.merge(first, [Fact("Ready", "False", "Other", "two")], 2, later)
    assert second[0].last_transition_time == first[0].last_transition_time
    assert (second[0].reason, second[0].observed_generation) == ("Other", 2)
    third = conditions.merge(second, [Fact("Ready", "True", "Done")], 2, later)
    assert third[0].last_transition_time == "2026-11-22T09:00:00Z"
    assert conditions.merge(third, [], 3, later) == []
    assert conditions.find(third, "Ready") == third[0]
    assert isinstance(third[0], Condition)


def test_a_change_asks_for_the_owners_pass() -> None:
    labels = {LABEL_OWNER_KIND: "TrainingRun", LABEL_OWNER_NAME: RUN}
    assert watches.keys_of(JOBS, {"namespace": NAMESPACE, "name": "x", "labels": labels}) == [KEY]
    assert watches.keys_of(TRAINING_RUNS, {"namespace": NAMESPACE, "name": RUN}) == [KEY]
    assert watches.keys_of(JOBS, {"namespace": NAMESPACE, "name": "x"}) == []
    odd = {LABEL_OWNER_KIND: "Deployment", LABEL_OWNER_NAME: "x"}
    assert watches.keys_of(JOBS, {"namespace": NAMESPACE, "name": "x", "labels": odd}) == []


def test_log_lines_are_json_with_their_extras_and_traceback() -> None:
    try:
        raise ValueError("odd")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("a.b", logging.ERROR, "f.py", 1, "pass %s", ("failed",), info)
    record.key = "TrainingRun/ns/x"
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["key"], line["level"]) == ("pass failed", "TrainingRun/ns/x", "ERROR")
    assert "ValueError: odd" in line["traceback"]


async def test_health_and_metrics_are_served() -> None:
    telemetry = Telemetry()
    telemetry.leader.set(1)
    ready = False
    runner, port = await health.serve(telemetry, 0, ready=lambda: ready, host="127.0.0.1")
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            assert (await session.get("/healthz")).status == 200
            assert (await session.get("/readyz")).status == 503
            ready = True
            assert (await session.get("/readyz")).status == 200
            assert "cutover_operator_leader 1.0" in await (await session.get("/metrics")).text()
    finally:
        await runner.cleanup()


def test_timestamps_are_utc_to_the_second() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=UTC)
    assert conditions.timestamp(moment) == "2026-01-02T03:04:05Z"
    assert conditions.parse_timestamp("2026-01-02T03:04:05Z") == moment.replace(microsecond=0)


class Noting:
    """A memory that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def changed(self, key: Key) -> None:
        self.told.append("changed")

    def changes(self, key: Key) -> int:
        return 0

    def gone(self, key: Key) -> None:
        self.told.append("gone")

    def keep(self, key: Key, world: Seen, written: Sequence[Object], changes: int, looked: bool) -> None:
        self.told.append(f"keep {len(written)}")

    async def recall(self, key: Key, now: datetime) -> Seen | None:
        return None


async def test_what_a_routine_pass_wrote_itself_asks_for_no_pass(kube: FakeKube) -> None:
    memory = Noting()
    plan = Plan(before=(Swap(note("ledger", n="1")),), status={"stage": "train"}, routine=True)
    loop = Loop(kube, [Fixed(kube, plan)], lambda: NOW, memories={TRAINING_RUNS: memory})
    await loop.run_pass(KEY)
    parent = await kube.get(TRAINING_RUNS, NAMESPACE, RUN)
    ledger = await kube.get(CONFIG_MAPS, NAMESPACE, "ledger")
    assert parent is not None
    assert ledger is not None
    assert memory.told == ["keep 2"]
    for obj in (parent, ledger):
        assert not loop.changed(KEY, obj["metadata"]["resourceVersion"])
    assert memory.told == ["keep 2"]
    assert loop.changed(KEY, "of somebody else")
    assert memory.told == ["keep 2", "changed"]


async def test_a_pass_that_changed_something_is_followed_by_a_whole_look(kube: FakeKube) -> None:
    memory = Noting()
    plan = Plan(status={"stage": "train"})
    loop = Loop(kube, [Fixed(kube, plan)], lambda: NOW, memories={TRAINING_RUNS: memory})
    await loop.run_pass(KEY)
    parent = await kube.get(TRAINING_RUNS, NAMESPACE, RUN)
    assert parent is not None
    assert loop.changed(KEY, parent["metadata"]["resourceVersion"])
    await kube.as_user().delete(TRAINING_RUNS, NAMESPACE, RUN)
    await loop.run_pass(KEY)
    assert memory.told == ["changed", "gone"]


async def test_a_change_seen_while_a_routine_pass_writes_is_told_apart_from_its_own(kube: FakeKube) -> None:
    """A watch may tell of a write before the write is answered."""
    memory = Noting()
    plan = Plan(before=(Swap(note("ledger", n="1")),), status={"stage": "train"}, routine=True)

    class Hasty(FaultyKube):
        strangers: tuple[str, ...] = ()

        async def create(self, obj: Object) -> Object:
            made = await super().create(obj)
            for version in (made["metadata"]["resourceVersion"], *self.strangers):
                assert not loop.changed(KEY, version)
            return made

    hasty = Hasty(kube)
    loop = Loop(hasty, [Fixed(kube, plan)], lambda: NOW, memories={TRAINING_RUNS: memory})
    await loop.run_pass(KEY)
    assert memory.told == ["keep 2"]
    await kube.as_user().delete(CONFIG_MAPS, NAMESPACE, "ledger")
    hasty.strangers = ("of somebody else",)
    assert await loop.run_pass(KEY) == 0.0, "looked at again at once"
    assert memory.told == ["keep 2", "changed"]


class Watched:
    """A loop and its queue, told of every change by a watch, as the process has them."""

    def __init__(self, kube: FakeKube, port: Any, reconciler: Fixed, failures: int = 0) -> None:
        """`failures`: of passes before."""
        self.telemetry = Telemetry()
        self.loop = Loop(
            port,
            [reconciler],
            lambda: NOW,
            self.telemetry,
            failures=lambda key: failures + self.queue.failures(key),
            memories={TRAINING_RUNS: Noting()},
            ask=lambda key: self.queue.add(key),
        )
        self.queue = WorkQueue(self._pass, 1)
        self.late: list[str] | None = None
        """Where a list is, the watch is behind: it tells of what is there when asked to `catch_up`."""
        kube.watch(self._seen)

    async def passes(self) -> dict[str, float]:
        """How passes ended until none was wanted at once; back-offs are not waited for."""
        self.queue.start()
        self.queue.add(KEY)
        try:
            await asyncio.wait_for(self.queue.idle(), 10)
        finally:
            await self.queue.stop()
        ends = {
            end: self.telemetry.registry.get_sample_value(
                "cutover_operator_passes_total", {"kind": "TrainingRun", "outcome": end}
            )
            for end in ("ok", "error", "conflict")
        }
        return {end: count for end, count in ends.items() if count}

    def catch_up(self) -> list[bool]:
        """Whether each change that the watch was behind with asks for a pass."""
        late, self.late = self.late or [], None
        return [self.loop.changed(KEY, version) for version in late]

    async def _pass(self, key: Key) -> float | None:
        # Nothing in memory waits for anything: without this, passes without end would let no deadline be noticed.
        await asyncio.sleep(0)
        return await self.loop.run_pass(key)

    def _seen(self, change: Change) -> None:
        version = change.obj["metadata"]["resourceVersion"]
        if self.late is not None:
            self.late.append(version)
        elif self.loop.changed(KEY, version):
            self.queue.add(KEY)


ROUTINE = Plan(before=(Swap(note("ledger", n="1")),), status={"stage": "train"}, routine=True)


class Refusing(FaultyKube):
    """The first status write fails, and somebody edits the object meanwhile, if told to."""

    def __init__(self, inner: FakeKube, edited: bool) -> None:
        super().__init__(inner)
        self._inner = inner
        self._edited = edited
        self._refuse = True

    async def apply_status(self, obj: Object) -> Object:
        if not self._refuse:
            return await super().apply_status(obj)
        self._refuse = False
        if self._edited:
            self._inner.edit(TRAINING_RUNS, NAMESPACE, RUN, lambda live: live["spec"].update(suspend=True))
        raise KubeError(500, "etcdserver: request timed out")


async def test_a_change_seen_while_a_routine_write_fails_does_not_wait_for_the_back_off(
    kube: FakeKube,
) -> None:
    class Once(Fixed):
        def decide(self, world: Seen, now: datetime) -> Plan:
            return Plan() if world.parent["spec"].get("suspend") else self.plan

    watched = Watched(kube, Refusing(kube, edited=True), Once(kube, ROUTINE))
    assert await watched.passes() == {"error": 1, "ok": 1}
    assert 'errors_total{error="KubeError",kind="TrainingRun"} 1.0' in watched.telemetry.exposition().decode()


async def test_what_a_routine_pass_wrote_before_it_failed_does_not_end_the_back_off(kube: FakeKube) -> None:
    watched = Watched(kube, Refusing(kube, edited=False), Fixed(kube, ROUTINE))
    assert await watched.passes() == {"error": 1}
    assert kube.all(CONFIG_MAPS), "it was written"


async def test_a_watch_that_is_late_tells_nothing_new_of_a_routine_pass_that_failed(kube: FakeKube) -> None:
    watched = Watched(kube, Refusing(kube, edited=False), Fixed(kube, ROUTINE))
    watched.late = []
    assert await watched.passes() == {"error": 1}
    assert watched.catch_up() == [False]


def stalled(kube: FakeKube) -> Condition:
    conditions_ = kube.peek(TRAINING_RUNS, NAMESPACE, RUN)["status"]["conditions"]
    (found,) = [one for one in conditions_ if one["type"] == "Stalled"]
    return Condition.model_validate(found)


class Broken(Fixed):
    """Fails with another port each time, until the run is suspended."""

    what = "connection reset by peer"
    ports = itertools.count(40_000)

    def decide(self, world: Seen, now: datetime) -> Plan:
        if world.parent["spec"].get("suspend"):
            return Plan()
        raise KubeError(500, f"read tcp 10.0.0.1:{next(self.ports)}->10.0.0.2:443: {self.what}")


async def test_that_the_operator_is_stuck_is_said_within_the_back_off(kube: FakeKube) -> None:
    watched = Watched(kube, kube, Broken(kube), failures=SAY_AFTER_FAILURES)
    assert await watched.passes() == {"error": 1}
    assert (stalled(kube).status, stalled(kube).reason) == ("True", "OperatorError")


async def test_a_watch_that_is_late_tells_only_the_owner_that_the_operator_is_stuck(kube: FakeKube) -> None:
    watched = Watched(kube, kube, Broken(kube), failures=SAY_AFTER_FAILURES)
    watched.late = []
    assert await watched.passes() == {"error": 1}
    (version,) = watched.late
    assert watched.catch_up() == [False]
    assert watched.loop.changed(Key(TRAINING_RUNS, NAMESPACE, "owner"), version)


async def test_an_error_is_said_again_for_other_words_or_another_spec_and_not_for_other_figures(
    kube: FakeKube,
) -> None:
    broken = Broken(kube)
    loop = Loop(kube, [broken], lambda: NOW, failures=lambda key: SAY_AFTER_FAILURES)

    async def said() -> Condition:
        with pytest.raises(KubeError):
            await loop.run_pass(KEY)
        return stalled(kube)

    first = await said()
    assert await said() == first
    broken.what = "no route to host"
    other = await said()
    assert "no route to host" in other.message
    kube.edit(TRAINING_RUNS, NAMESPACE, RUN, lambda live: live["spec"]["compute"].update(gpus=2))
    assert (await said()).observed_generation == first.observed_generation + 1


@pytest.mark.parametrize("refused", [False, True])
async def test_a_change_seen_while_it_is_said_that_the_operator_is_stuck_does_not_wait(
    kube: FakeKube, refused: bool
) -> None:
    class Hasty(Refusing):
        async def apply_status(self, obj: Object) -> Object:
            if refused:
                return await super().apply_status(obj)
            written = await kube.apply_status(obj)
            kube.edit(TRAINING_RUNS, NAMESPACE, RUN, lambda live: live["spec"].update(suspend=True))
            return written

    watched = Watched(kube, Hasty(kube, edited=True), Broken(kube), failures=SAY_AFTER_FAILURES)
    assert await watched.passes() == {"error": 1, "ok": 1}


async def test_a_child_that_cannot_be_made_leaves_it_said_that_the_operator_is_stuck(kube: FakeKube) -> None:
    calm = Condition(
        type="Stalled", status="False", reason="NothingBlocks", last_transition_time="2026-11-22T09:00:00Z"
    )
    ready = calm.model_copy(update={"type": "Succeeded", "status": "Unknown"})
    status = {"stage": "train", "conditions": [calm.to_wire(), ready.to_wire()]}
    fixed = Fixed(kube, Plan(status=status, after=(Apply(note("Not_A_Name")),)))
    await Watched(kube, kube, fixed, failures=SAY_AFTER_FAILURES).passes()
    for _ in range(2):
        assert await Watched(kube, kube, fixed, failures=SAY_AFTER_FAILURES).passes() == {"error": 1}
        assert (stalled(kube).status, stalled(kube).reason) == ("True", "OperatorError")
    fixed.plan = Plan(status=status, after=(Apply(note("a-name")),))
    await Loop(kube, [fixed], lambda: NOW).run_pass(KEY)
    assert (stalled(kube).status, stalled(kube).reason) == ("False", "NothingBlocks")


async def test_an_object_that_goes_is_given_up_though_the_operator_was_stuck(kube: FakeKube) -> None:
    held = Fixed(kube, Plan(after=(SetFinalizer(True), Apply(note("Not_A_Name")))))
    assert await Watched(kube, kube, held, failures=SAY_AFTER_FAILURES).passes()
    assert stalled(kube).reason == "OperatorError"
    await kube.as_user().delete(TRAINING_RUNS, NAMESPACE, RUN)
    leaving = Fixed(kube, Plan(status={"stage": "train"}, after=(SetFinalizer(False),)))
    await Loop(kube, [leaving], lambda: NOW).run_pass(KEY)
    assert not kube.all(TRAINING_RUNS)
