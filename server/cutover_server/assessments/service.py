"""The running service: its database, its pictures, and the loops that mature cohorts, refresh counters and delete.

Starts without a database and keeps trying; every loop survives every error, because the next turn does all that is due.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from cutover_server.assessments.accuracy import AccuracyCounts, count_accuracy
from cutover_server.assessments.auth import Gatekeeper
from cutover_server.assessments.cohorts import BATCH_ROWS, count_feedback, mature
from cutover_server.assessments.counters import TotalsCollector, read_snapshot
from cutover_server.assessments.database import Clock, Database, DatabaseDown
from cutover_server.assessments.pictures import PictureStore, purge
from cutover_server.assessments.settings import Settings

log = logging.getLogger(__name__)

BATCHES_PER_TICK = 20
ACCURACY_KEPT_SECONDS = 10.0
PURGE_EVERY_SECONDS = 3600.0
_RETRY_SECONDS = (0.2, 5.0)
"""First and longest pause between attempts to reach the database at start."""


class Service:
    def __init__(self, settings: Settings, clock: Clock = time.time) -> None:
        self.settings = settings
        self.clock = clock
        self.database = Database(settings.database_url)
        self.store = PictureStore(settings.pictures_uri)
        self.gatekeeper = Gatekeeper(settings, clock)
        self.collector = TotalsCollector()
        self._tasks: list[asyncio.Task[None]] = []
        self._accuracy: tuple[float, AccuracyCounts] | None = None
        self._accuracy_lock = asyncio.Lock()

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(), name="cutover-assessments")]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.database.close()

    @property
    def alive(self) -> bool:
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    async def tick(self) -> None:
        """Everything that is due now; raises `DatabaseDown`."""
        for _ in range(BATCHES_PER_TICK):
            if await mature(self.database, self.settings.tasks, self.clock()) < BATCH_ROWS:
                break
        for _ in range(BATCHES_PER_TICK):
            if await count_feedback(self.database) < BATCH_ROWS:
                break
        self.collector.snapshot = await read_snapshot(self.database)
        self.collector.database_up = True

    async def accuracy(self) -> AccuracyCounts:
        """Read at most every few seconds, by one reader at a time: it goes through all labelled requests."""
        async with self._accuracy_lock:
            now = time.monotonic()
            if self._accuracy is None or now - self._accuracy[0] > ACCURACY_KEPT_SECONDS:
                self._accuracy = (now, await count_accuracy(self.database, self.settings.tasks))
            return self._accuracy[1]

    async def purge(self) -> None:
        while await purge(self.database, self.store, self.clock(), self.settings.picture_retention_days):
            pass

    async def _run(self) -> None:
        await self._migrate()
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._every(self.settings.tick_seconds, self.tick))
            loops.create_task(self._every(PURGE_EVERY_SECONDS, self.purge))

    async def _migrate(self) -> None:
        pause, longest = _RETRY_SECONDS
        while True:
            try:
                await self.database.migrate()
                return
            except Exception as error:
                log.error("the database is not ready, trying again in %.1f s: %s", pause, _short(error))
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except DatabaseDown as error:
                self.collector.database_up = False
                log.warning("%s: %s", work.__name__, error)
            except Exception:
                log.exception("%s failed; the next turn tries again", work.__name__)
            await asyncio.sleep(seconds)


def _short(error: Exception) -> str:
    return str(error) if isinstance(error, DatabaseDown) else f"{type(error).__name__}: {str(error)[:300]}"
