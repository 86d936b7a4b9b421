"""A keyed work queue: one pass per key at a time, asked-for passes merged, errors retried with growing back-off.

A key added while its pass runs is passed once more afterwards. Nothing is lost and nothing piles up: the memory is at
most one entry per key.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable

from cutover_operator.plan import Key
from cutover_operator.port import Conflict
from cutover_operator.turns import Turn

log = logging.getLogger(__name__)

FIRST_BACK_OFF_SECONDS = 0.5
LONGEST_BACK_OFF_SECONDS = 300.0
CONFLICT_SECONDS = 0.02
"""A lost race is read again at once; only one that keeps being lost slows down."""
LONGEST_CONFLICT_SECONDS = 5.0

Handle = Callable[[Key], Awaitable[float | None]]
"""One pass; answers after how many seconds it wants another."""


class WorkQueue:
    def __init__(self, handle: Handle, workers: int) -> None:
        self._handle = handle
        self._workers = workers
        self._ready: deque[Key] = deque()
        self._waiting: set[Key] = set()
        """In `_ready`, or to be put there when its pass ends."""
        self._busy: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._conflicts: dict[Key, int] = {}
        self._wake = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._nudges: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._ready)

    def failures(self, key: Key) -> int:
        """Passes of this key that failed in a row."""
        return self._failures.get(key, 0)

    def add(self, key: Key) -> None:
        """Ask for a pass as soon as possible. Of the loop's own thread only."""
        if self._closed or key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._busy:
            self._ready.append(key)
            self._nudge()

    def add_after(self, key: Key, seconds: float) -> None:
        """Ask for a pass later; the earliest wish wins."""
        if self._closed or key in self._waiting:
            return
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        at = Turn(str(key), seconds).after(loop.time())
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= at:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(at, self._due, key)

    def ensure(self, key: Key, after_seconds: float, within_seconds: float) -> None:
        """Ask for a pass, unless one comes within that time anyway."""
        timer = self._timers.get(key)
        if timer is None or timer.when() - asyncio.get_running_loop().time() > within_seconds:
            self.add_after(key, after_seconds)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work(), name=f"worker-{n}") for n in range(self._workers)]

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Take nothing new, let running passes end for a while, then cancel them."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        self._waiting.clear()
        async with self._wake:
            self._wake.notify_all()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def idle(self) -> None:
        """Return when no pass runs or waits for a worker; timers do not count."""
        async with self._wake:
            await self._wake.wait_for(lambda: not self._waiting and not self._busy)

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _nudge(self) -> None:
        async def notify() -> None:
            async with self._wake:
                self._wake.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._nudges.add(task)
        task.add_done_callback(self._nudges.discard)

    async def _work(self) -> None:
        while True:
            async with self._wake:
                await self._wake.wait_for(lambda: bool(self._ready) or self._closed)
                if self._closed:
                    return
                key = self._ready.popleft()
                self._waiting.discard(key)
                self._busy.add(key)
            timer = self._timers.pop(key, None)
            if timer is not None:
                timer.cancel()
            try:
                again = await self._pass(key)
            finally:
                self._busy.discard(key)
                if key in self._waiting:
                    self._ready.append(key)
                self._nudge()
            if again is not None:
                self.add_after(key, again)

    async def _pass(self, key: Key) -> float | None:
        try:
            again = await self._handle(key)
        except Conflict as conflict:
            count = self._conflicts[key] = self._conflicts.get(key, 0) + 1
            log.info("pass dropped, somebody wrote in between", extra={"key": str(key), "why": str(conflict)})
            return _grown(CONFLICT_SECONDS, count, LONGEST_CONFLICT_SECONDS)
        except Exception:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            wait = _grown(FIRST_BACK_OFF_SECONDS, count, LONGEST_BACK_OFF_SECONDS)
            log.exception(
                "pass failed", extra={"key": str(key), "failures": count, "again_in_seconds": round(wait, 2)}
            )
            return wait
        self._failures.pop(key, None)
        self._conflicts.pop(key, None)
        return again


def _grown(first_seconds: float, count: int, longest_seconds: float) -> float:
    grown = min(first_seconds * 2.0 ** min(count - 1, 30), longest_seconds)
    return float(grown * (0.75 + random.random() / 2))  # noqa: S311
