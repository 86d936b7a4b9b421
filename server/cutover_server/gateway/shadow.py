"""Mirrored requests: the candidate is asked beside the path, and its answer compared with the control's.

Nothing here delays a caller. The queue is bounded in number and in bytes, and copies are the first thing given up
under pressure, each counted. A pair agrees when every scored field does; where labels are drawn by stratum, that is
where the request is drawn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cutover.contract import STRATUM_AGREE, STRATUM_DISAGREE
from cutover.route import Arm, Route, in_label_pool, label_probability, sampled_for_label
from cutover.task import Task
from cutover_server.gateway.arms import ArmCaller
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.metrics import GatewayMetrics
from cutover_server.gateway.pressure import InFlight
from cutover_server.gateway.record import shadow_line
from cutover_server.gateway.route_board import InForce
from cutover_server.gateway.settlement import too_unsure
from cutover_server.gateway.spool import SpoolFull

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Copy:
    """A request to ask the candidate as well, and what the control answered."""

    in_force: InForce
    candidate: Arm
    request_id: str
    body: bytes
    control_answer: Mapping[str, Any]


def agreement(task: Task, control: Mapping[str, Any], attempt: Attempt, limit: float | None = None) -> str:
    """Value of the label `agreement`; `limit` is the threshold of confidence in force."""
    if attempt.reading.kind == "invalid":
        return "invalid"
    answer = attempt.reading.answer
    if answer is None:
        return "error"
    if too_unsure(limit, attempt.confidence):
        return "deferred"
    same = all(answer.get(field) == control.get(field) for field in task.scored_fields)
    return "agree" if same else "disagree"


def _draw(route: Route, request_id: str, result: str) -> dict[str, Any]:
    """Where pairs are drawn by stratum: whether people label this one, which only its second answer can tell.

    An answer nobody would have been given has no stratum, and no label is spent on it.
    """
    if not route.labels.by_stratum or result == "deferred":
        return {}
    if not in_label_pool(route, request_id):
        return {}
    stratum = STRATUM_AGREE if result == "agree" else STRATUM_DISAGREE
    return {
        "pooled": True,
        "sampled": sampled_for_label(route, request_id, stratum),
        "stratum": stratum,
        "samplingProbability": label_probability(route, stratum) / route.labels.pair_probability,
    }


class Shadow:
    def __init__(
        self,
        caller: ArmCaller,
        metrics: GatewayMetrics,
        in_flight: InFlight,
        write: Callable[[bytes], Awaitable[None]],
        *,
        queue_length: int,
        concurrency: int,
        limit_seconds: float,
    ) -> None:
        self._caller = caller
        self._metrics = metrics
        self._in_flight = in_flight
        self._write = write
        self._limit_seconds = limit_seconds
        self._queue: asyncio.Queue[Copy] = asyncio.Queue(queue_length)
        self._workers = [asyncio.create_task(self._work()) for _ in range(concurrency)]
        self._draining = False

    def offer(self, copy: Copy) -> None:
        """Takes the copy or counts why not; never waits."""
        route = copy.in_force.route
        if self._draining:
            self._metrics.shadow_dropped(route, "drain")
        elif self._queue.full():
            self._metrics.shadow_dropped(route, "queue_full")
        elif not self._in_flight.take_if_calm(len(copy.body)):
            self._metrics.shadow_dropped(route, "pressure")
        else:
            self._queue.put_nowait(copy)

    async def drain(self, patience_seconds: float) -> None:
        """Gives up what waits, lets what was asked finish."""
        self._draining = True
        while not self._queue.empty():
            copy = self._queue.get_nowait()
            self._in_flight.give_back(len(copy.body))
            self._queue.task_done()
            self._metrics.shadow_dropped(copy.in_force.route, "drain")
        try:
            async with asyncio.timeout(patience_seconds):
                await self._queue.join()
        except TimeoutError:
            log.warning("mirrored requests are given up at the end of the drain")
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            copy = await self._queue.get()
            try:
                await self._ask(copy)
            except SpoolFull:
                self._metrics.spool_full.inc()
            except Exception:
                log.exception("mirrored request %s failed", copy.request_id)
            finally:
                self._in_flight.give_back(len(copy.body))
                self._queue.task_done()

    async def _ask(self, copy: Copy) -> None:
        route = copy.in_force.route
        attempt = await self._caller.ask(
            copy.candidate, (copy.body,), self._limit_seconds, route.task, copy.in_force.is_valid
        )
        limit = route.fallback_rules.confidence
        result = agreement(route.task, copy.control_answer, attempt, limit)
        self._metrics.shadow_pair(route, copy.candidate.version, result, attempt.seconds)
        if attempt.reading.kind == "answered":
            self._metrics.confidence(route, copy.candidate.version, attempt.confidence)
        draw = _draw(route, copy.request_id, result)
        await self._write(shadow_line(copy.request_id, attempt, result != "deferred", draw))
