"""The work queue: one pass per key, nothing lost, errors slow down, conflicts do not."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover_operator import workqueue
from cutover_operator.plan import Key
from cutover_operator.port import TRAINING_RUNS, Conflict
from cutover_operator.turns import SLOT_SECONDS, Turn
from cutover_operator.workqueue import WorkQueue


def key(name: str) -> Key:
    return Key(TRAINING_RUNS, "ns", name)


async def until(reached: asyncio.Event, seconds: float = 5.0) -> None:
    await asyncio.wait_for(reached.wait(), seconds)


async def test_a_key_is_passed_once_at_a_time_and_once_more_for_what_came_meanwhile() -> None:
    running: dict[Key, int] = defaultdict(int)
    passes: dict[Key, int] = defaultdict(int)
    gate, both = asyncio.Event(), asyncio.Event()

    async def handle(one: Key) -> float | None:
        running[one] += 1
        assert running[one] == 1
        passes[one] += 1
        if len(passes) == 2:
            both.set()
        await gate.wait()
        running[one] -= 1
        return None

    queue = WorkQueue(handle, 4)
    queue.start()
    for _ in range(50):
        queue.add(key("a"))
        queue.add(key("b"))
    await until(both)
    for _ in range(50):
        queue.add(key("a"))
    gate.set()
    await queue.idle()
    assert passes == {key("a"): 2, key("b"): 1}
    assert queue.depth == 0
    await queue.stop()


async def test_errors_back_off_and_a_good_pass_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workqueue, "FIRST_BACK_OFF_SECONDS", 0.02)
    times: list[float] = []
    done = asyncio.Event()

    async def handle(one: Key) -> float | None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 5:
            raise ValueError("odd")
        done.set()
        return None

    queue = WorkQueue(handle, 1)
    queue.start()
    queue.add(key("a"))
    await until(done)
    await queue.idle()
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[3] > 2 * gaps[0]
    assert queue.failures(key("a")) == 0
    await queue.stop()


async def test_a_lost_race_is_passed_again_at_once() -> None:
    count = 0
    done = asyncio.Event()

    async def handle(one: Key) -> float | None:
        nonlocal count
        count += 1
        if count < 3:
            raise Conflict(409, "somebody wrote")
        done.set()
        return None

    queue = WorkQueue(handle, 1)
    queue.start()
    queue.add(key("a"))
    await until(done, 1.0)
    assert queue.failures(key("a")) == 0
    await queue.stop()


async def test_the_earliest_wish_wins_and_a_pass_replaces_it() -> None:
    seen = asyncio.Queue[float]()
    answers = iter([0.05, None, None])

    async def handle(one: Key) -> float | None:
        seen.put_nowait(asyncio.get_running_loop().time())
        return next(answers)

    queue = WorkQueue(handle, 1)
    queue.start()
    started = asyncio.get_running_loop().time()
    queue.add_after(key("a"), 60.0)
    queue.add_after(key("a"), 0.05)
    queue.add_after(key("a"), 30.0)
    first = await asyncio.wait_for(seen.get(), 5)
    second = await asyncio.wait_for(seen.get(), 5)
    assert 0.04 < first - started < 2
    assert 0.04 < second - first < 2
    await queue.idle()
    assert seen.empty()
    await queue.stop()


async def test_stop_lets_a_running_pass_end_and_takes_no_more() -> None:
    entered, leave, ended = asyncio.Event(), asyncio.Event(), []

    async def handle(one: Key) -> float | None:
        entered.set()
        await leave.wait()
        ended.append(one)
        return 0.0

    queue = WorkQueue(handle, 2)
    queue.start()
    queue.add(key("a"))
    await entered.wait()
    stopping = asyncio.create_task(queue.stop())
    await asyncio.sleep(0)
    leave.set()
    await stopping
    queue.add(key("b"))
    assert ended == [key("a")]
    assert queue.depth == 0


async def test_many_keys_over_few_workers() -> None:
    passes: dict[Key, int] = defaultdict(int)

    async def handle(one: Key) -> float | None:
        await asyncio.sleep(0)
        passes[one] += 1
        return None

    queue = WorkQueue(handle, 3)
    queue.start()
    for number in range(500):
        queue.add(key(str(number)))
    await asyncio.wait_for(queue.idle(), 20)
    assert len(passes) == 500
    assert set(passes.values()) == {1}
    await queue.stop()


async def test_wishes_for_later_come_in_company() -> None:
    """Rounded down to a whole second, so that one question to Prometheus answers for all; short ones stay exact."""

    async def handle(one: Key) -> float | None:
        return None

    queue = WorkQueue(handle, 1)
    now = asyncio.get_running_loop().time()
    for number in range(20):
        queue.add_after(key(str(number)), 3.0 + number / 20)
    queue.add_after(key("soon"), 0.3)
    times = {timer.when() for one, timer in queue._timers.items() if one != key("soon")}
    assert len(times) <= 2
    for when in times:
        assert when == int(when)
        assert now + 2.0 <= when <= now + 4.0
    assert 0.25 <= queue._timers[key("soon")].when() - now <= 0.5
    await queue.stop()


async def test_a_pass_that_comes_anyway_is_not_asked_for_again() -> None:
    async def handle(one: Key) -> float | None:
        return None

    queue = WorkQueue(handle, 1)
    queue.add_after(key("soon"), 20.0)
    queue.add_after(key("late"), 100.0)
    before = {one: timer.when() for one, timer in queue._timers.items()}
    for name in ("soon", "late", "never"):
        queue.ensure(key(name), 1.0, within_seconds=30.0)
    after = {one: timer.when() for one, timer in queue._timers.items()}
    assert after[key("soon")] == before[key("soon")]
    assert after[key("late")] < before[key("late")]
    assert key("never") in after
    await queue.stop()


@given(st.floats(0, 1e6), st.floats(5.0, 3600.0))
def test_a_crowd_that_began_together_is_spread_over_its_interval(start: float, interval: float) -> None:
    whole = SLOT_SECONDS * int(interval / SLOT_SECONDS)
    seconds: Counter[float] = Counter()
    for number in range(200):
        at = start
        for _ in range(4):
            wanted = Turn(str(number), whole).after(at)
            assert at + whole / 2 <= wanted <= at + whole
            assert wanted % SLOT_SECONDS == 0
            at = wanted + 0.05  # a pass takes its time
        assert Turn(str(number), whole).after(at) == wanted + whole, "and then keeps its second"
        seconds[wanted % whole] += 1
    assert max(seconds.values()) <= 3 * 200 * SLOT_SECONDS / whole + 20
