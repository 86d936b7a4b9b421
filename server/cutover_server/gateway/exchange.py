"""One request from its body to its answer: assigned, asked, asked elsewhere if it must be, written down, answered.

The order is the promise. Pictures go to the spool while the arm thinks; the record is on disk before the answer leaves;
counts follow the arm that was chosen (see `settlement`); mirrored copies go beside the path. A full spool costs the
record, never the answer, and is counted and logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import aiohttp

from cutover import contract
from cutover.fetch import FetchPolicy
from cutover.records import ArmName
from cutover.route import Arm, Route, assigned_to_candidate, mirrored, mirrored_for_label
from cutover_server.gateway import settlement as rules
from cutover_server.gateway.arms import ArmCaller
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.breakers import Breakers
from cutover_server.gateway.chat_request import ChatRequest, body_for_arm, messages_for_record
from cutover_server.gateway.identity import uuid7
from cutover_server.gateway.metrics import GatewayMetrics
from cutover_server.gateway.openai_shape import ApiError, rewritten
from cutover_server.gateway.pictures import Picture, open_pictures
from cutover_server.gateway.pressure import Reservation
from cutover_server.gateway.reading import Reading
from cutover_server.gateway.record import assessment_record, record_line
from cutover_server.gateway.route_board import InForce, RouteBoard
from cutover_server.gateway.shadow import Copy, Shadow
from cutover_server.gateway.spool import Spool, SpoolFull

log = logging.getLogger(__name__)
_HEADER_SAFE = "!#$%&'()*+,/:;=?@[]~|^`{}<> \""
_SPOOL_SECONDS = 5.0
"""A disk slower than this counts as full: callers do not wait for it."""


@dataclass(frozen=True, slots=True)
class Answered:
    completion: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Case:
    """What is fixed about a request once its arm is chosen."""

    request: ChatRequest
    request_id: str
    in_force: InForce
    chosen: ArmName
    arm: Arm
    pictures: list[Picture]

    @property
    def route(self) -> Route:
        return self.in_force.route

    @property
    def digests(self) -> list[str]:
        return list(dict.fromkeys(picture.digest for picture in self.pictures))

    def body_for(self, arm: Arm) -> bytes:
        # Log-probabilities are asked of the candidate alone: a hosted model may refuse the parameter.
        measured = arm == self.route.candidate
        urls = [picture.data_url for picture in self.pictures]
        return body_for_arm(self.request, arm, urls, self.route.task, measured)


@dataclass(slots=True)
class Exchange:
    gateway: str
    board: RouteBoard
    caller: ArmCaller
    breakers: Breakers
    spool: Spool
    shadow: Shadow
    metrics: GatewayMetrics
    fetch_policy: FetchPolicy
    fetch_session: aiohttp.ClientSession
    last_arm_seconds: float
    wall_clock: Callable[[], float] = time.time

    async def answer(self, request: ChatRequest, reservation: Reservation) -> Answered:
        """Raises ApiError, with the identifying headers set, when there is no answer to give."""
        received = self.wall_clock()
        started = time.monotonic()
        request_id = uuid7(int(received * 1000), os.urandom(10))
        in_force = self.board.current
        route = in_force.route
        to_candidate = assigned_to_candidate(route, request.assessment_id or request_id)
        chosen: ArmName = "candidate" if to_candidate else "control"
        arm = route.candidate if to_candidate and route.candidate is not None else route.control
        headers = {
            contract.HEADER_ASSESSMENT_ID: quote(request.assessment_id or request_id, safe=_HEADER_SAFE),
            contract.HEADER_ARM: chosen,
        }
        try:
            pictures = await open_pictures(
                request.picture_urls, self.fetch_policy, self.fetch_session, reservation.add
            )
        except ApiError as refusal:
            self.metrics.request(route, chosen, arm, "rejected")
            raise _with_headers(refusal, headers) from None
        case = _Case(request, request_id, in_force, chosen, arm, pictures)
        kept = self.spool.keep_pictures([(one.digest, one.body) for one in _distinct(pictures)])
        written = False
        try:
            attempts = await self._attempts(case)
            settled = rules.settle(
                [one.reading.kind for one in attempts],
                [one.reading.completion is not None for one in attempts],
            )
            if settled.outcome == "error" and attempts[0].reading.kind == "refused":
                self.breakers.failed(attempts[0])
            written = await self._write_down(case, settled, attempts, received, kept)
        except asyncio.CancelledError:
            written = (
                True  # the write may still happen; the next process removes pictures that no record names
            )
            raise
        finally:
            if not written:
                await asyncio.gather(*kept, return_exceptions=True)
                self.spool.folder.let_go(case.digests)
        self._count(case, settled, attempts, time.monotonic() - started)
        self._mirror(case, settled, attempts, written)
        return _reply(case, settled, attempts, headers, int(received))

    # ------------------------------------------------------------------ asking

    async def _attempts(self, case: _Case) -> list[Attempt]:
        others = rules.alternatives(case.route, case.chosen)
        limit = self.last_arm_seconds
        if others and "timeout" in case.route.fallback_rules.on:
            limit = case.route.fallback_rules.deadline_seconds
        attempts = [await self._attempt(case, case.arm, limit, may_skip=bool(others))]
        kept_back = attempts[0].reading.kind == "answered"
        if kept_back and not rules.deferring(case.route, case.chosen, attempts[0].confidence):
            return attempts
        if not kept_back and not rules.moves_on(case.route, attempts[0].reading.kind):
            return attempts
        for at, arm in enumerate(others):
            # The last arm is asked whatever its breaker says, unless an answer is already at hand.
            may_skip = kept_back or at + 1 < len(others)
            attempts.append(await self._attempt(case, arm, self.last_arm_seconds, may_skip))
            if attempts[-1].reading.kind == "answered":
                break
        return attempts

    async def _attempt(self, case: _Case, arm: Arm, limit_seconds: float, may_skip: bool) -> Attempt:
        if not self.breakers.allows(arm) and may_skip:
            return Attempt(arm, Reading("breaker", "not asked, its breaker is open"))
        try:
            attempt = await self.caller.ask(
                arm, case.body_for(arm), limit_seconds, case.route.task, case.in_force.is_valid
            )
        except BaseException:
            self.breakers.abandoned(arm)
            raise
        kind = attempt.reading.kind
        if kind == "answered":
            self.breakers.succeeded(arm)
        elif kind == "refused" or not rules.moves_on(case.route, kind):
            self.breakers.abandoned(arm)  # a failure that must reach the caller opens no breaker either
        else:
            self.breakers.failed(attempt)
        if kind not in ("answered", "refused"):
            log.warning(
                "request %s: arm %s (%s): %s", case.request_id, arm.name, arm.version, attempt.reading.problem
            )
        return attempt

    # ------------------------------------------------------------------ writing down

    async def _write_down(
        self,
        case: _Case,
        settled: rules.Settlement,
        attempts: list[Attempt],
        received: float,
        kept: list[asyncio.Future[None]],
    ) -> bool:
        record = assessment_record(
            request_id=case.request_id,
            assessment_id=case.request.assessment_id,
            received_at=datetime.fromtimestamp(received, UTC).isoformat(timespec="milliseconds"),
            gateway=self.gateway,
            route=case.route,
            chosen=case.chosen,
            settlement=settled,
            attempts=attempts,
            messages=messages_for_record(case.request, [picture.digest for picture in case.pictures]),
            pictures=case.digests,
            drawn_later=case.route.labels.by_stratum and _makes_pair(case, settled, attempts),
        )
        line = record_line(record)

        async def write() -> None:
            await asyncio.gather(*kept)
            await self.spool.append(line)

        writing = asyncio.ensure_future(write())
        try:
            await asyncio.wait_for(asyncio.shield(writing), _SPOOL_SECONDS)
        except SpoolFull as problem:
            log.error("request %s is not recorded: the spool is full (%s)", case.request_id, problem)
        except TimeoutError:
            log.error("request %s is answered unrecorded: the spool's disk is too slow", case.request_id)
            writing.add_done_callback(lambda done: done.exception())
            self.metrics.spool_full.inc()
            return True  # it may still reach the disk, and then names its pictures
        else:
            return True
        self.metrics.spool_full.inc()
        return False

    def _count(self, case: _Case, settled: rules.Settlement, attempts: list[Attempt], seconds: float) -> None:
        route, chosen, arm = case.route, case.chosen, case.arm
        self.metrics.request(route, chosen, arm, settled.outcome)
        if settled.outcome in ("ok", "error"):
            self.metrics.answered(route, chosen, arm, seconds)
        if settled.reason:
            self.metrics.fallback(route, chosen, settled.reason)
        self.metrics.cost(route, chosen, arm, sum(attempt.cost_usd for attempt in attempts))
        if chosen == "candidate" and attempts[0].reading.kind == "answered":
            self.metrics.confidence(route, arm.version, attempts[0].confidence)

    def _mirror(self, case: _Case, settled: rules.Settlement, attempts: list[Attempt], written: bool) -> None:
        route, candidate, answer = case.route, case.route.candidate, attempts[0].reading.answer
        if candidate is None or not _copied(case):
            return
        if answer is None or not written or not _makes_pair(case, settled, attempts):
            if settled.outcome != "rejected":
                self.metrics.shadow_dropped(route, "no_control_answer")
            return
        self.shadow.offer(Copy(case.in_force, candidate, case.request_id, case.body_for(candidate), answer))


def _copied(case: _Case) -> bool:
    """Whether the candidate is to be asked beside the path."""
    key = case.request.assessment_id or case.request_id
    return mirrored(case.route, key) or mirrored_for_label(case.route, key, case.request_id)


def _makes_pair(case: _Case, settled: rules.Settlement, attempts: list[Attempt]) -> bool:
    """Whether there is an answer of the control to compare the candidate's with."""
    return _copied(case) and settled.outcome == "ok" and attempts[0].reading.answer is not None


# ------------------------------------------------------------------ answering


def _reply(
    case: _Case, settled: rules.Settlement, attempts: list[Attempt], headers: dict[str, str], created: int
) -> Answered:
    if settled.served is None:
        raise _with_headers(_nobody_answered(attempts), headers)
    served = attempts[settled.served]
    headers[contract.HEADER_VERSION] = quote(served.arm.version, safe=_HEADER_SAFE)
    if settled.reason:
        headers[contract.HEADER_FALLBACK] = settled.reason
    if served.reading.completion is None:
        raise _with_headers(_refusal(served.reading), headers)
    keep = case.request.wants_logprobs
    return Answered(
        rewritten(served.reading.completion, case.request_id, served.arm.model, created, keep), headers
    )


def _refusal(reading: Reading) -> ApiError:
    error = reading.error or {}

    def text(key: str) -> str | None:
        return str(error[key])[:2000] if error.get(key) is not None else None

    return ApiError(
        reading.status,
        text("message") or "The model refused the request.",
        text("type") or "invalid_request_error",
        param=text("param"),
        code=text("code"),
    )


def _nobody_answered(attempts: list[Attempt]) -> ApiError:
    first = attempts[0]
    tried = ", ".join(f"{one.arm.version}: {one.reading.kind}" for one in attempts)
    if first.reading.kind == "overload":
        wait = max((one.retry_after_seconds or 1.0 for one in attempts), default=1.0)
        return ApiError(
            503,
            f"No model could answer ({tried}).",
            "server_error",
            code="overloaded",
            retry_after_seconds=wait,
        )
    if first.reading.kind == "timeout":
        return ApiError(504, f"No model answered in time ({tried}).", "server_error", code="timeout")
    return ApiError(502, f"No model could answer ({tried}).", "server_error", code="bad_gateway")


def _with_headers(error: ApiError, headers: dict[str, str]) -> ApiError:
    error.extra_headers = dict(headers)
    return error


def _distinct(pictures: list[Picture]) -> list[Picture]:
    return list({picture.digest: picture for picture in pictures}.values())
