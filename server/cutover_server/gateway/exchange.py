"""One request from its body to its answer: assigned, asked, asked elsewhere if it must be, written down, answered.

The order is the promise. Pictures go to the spool while the arm thinks; the record is on disk before the answer leaves;
counts follow the arm that was chosen (see `settlement`); mirrored copies go beside the path. A full spool costs the
record, never the answer, and is counted and logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from cutover import contract
from cutover.fetch import FetchPolicy
from cutover.records import ArmName
from cutover.route import Arm, assigned_to_candidate, mirrored, mirrored_for_label
from cutover_server.gateway import settlement as rules
from cutover_server.gateway.arms import ArmCaller
from cutover_server.gateway.asking import Asking
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.case import Case
from cutover_server.gateway.chat_request import (
    ChatRequest,
    holds_markdown_picture,
    markdown_picture_refused,
    messages_as_kept,
)
from cutover_server.gateway.metrics import GatewayMetrics
from cutover_server.gateway.openai_shape import ApiError, header_text, rewritten
from cutover_server.gateway.overriding import has_fetching_arm, outside_the_rollout, past_fetching_arms
from cutover_server.gateway.pictures import Picture, open_pictures
from cutover_server.gateway.pressure import Reservation
from cutover_server.gateway.reading import Reading
from cutover_server.gateway.record import record_line
from cutover_server.gateway.route_board import InForce, RouteBoard
from cutover_server.gateway.shadow import Copy, Shadow
from cutover_server.gateway.spool import Spool, SpoolFull

log = logging.getLogger(__name__)
_SPOOL_SECONDS = 5.0
"""A disk slower than this counts as full: callers do not wait for it."""


@dataclass(frozen=True, slots=True)
class Answered:
    completion: dict[str, Any]
    headers: dict[str, str]


@dataclass(slots=True)
class Exchange:
    gateway: str
    board: RouteBoard
    caller: ArmCaller
    asking: Asking
    spool: Spool
    shadow: Shadow
    metrics: GatewayMetrics
    fetch_policy: FetchPolicy
    fetch_session: aiohttp.ClientSession
    request_seconds: float
    """Time of a whole request, every arm included."""
    wall_clock: Callable[[], float] = time.time

    async def answer(self, case: Case) -> Answered:
        """The answer in one piece. Raises ApiError, with the identifying headers set, when there is none to give."""

        async def ask(arm: Arm, limit_seconds: float) -> Attempt:
            return await self.caller.ask(
                arm, case.body_for(arm), limit_seconds, case.route.task, case.in_force.is_valid
            )

        attempts = await self.asking.until_answered(case, ask)
        await self.conclude(case, attempts)
        return self.reply(case, attempts)

    async def admit(self, request: ChatRequest, request_id: str, reservation: Reservation) -> Case:
        """Chooses the arm, opens the pictures and sends them on their way to the spool. Raises ApiError."""
        received, started = self.wall_clock(), time.monotonic()
        key = request.assessment_id or request_id
        in_force, chosen, unanswerable = self._assign(request, key)
        route = in_force.route
        arm = route.candidate if chosen == "candidate" else route.control
        if arm is None:
            raise ApiError(400, "There is no candidate to ask.", param=contract.HEADER_ARM)
        headers = {
            contract.HEADER_ASSESSMENT_ID: header_text(key),
            contract.HEADER_ARM: chosen,
        }
        try:
            if unanswerable is not None:
                raise unanswerable
            pictures = await open_pictures(
                request.pictures, self.fetch_policy, self.fetch_session, reservation.add
            )
        except ApiError as refusal:
            self.metrics.request(route, chosen, arm, "rejected")
            raise _with_headers(refusal, headers) from None
        return Case(
            request=request,
            request_id=request_id,
            in_force=in_force,
            chosen=chosen,
            arm=arm,
            pictures=pictures,
            messages=messages_as_kept(request, [picture.digest for picture in pictures]),
            headers=headers,
            received=received,
            started=started,
            deadline=started + self.request_seconds,
        )

    def _assign(self, request: ChatRequest, key: str) -> tuple[InForce, ArmName, ApiError | None]:
        """The route for this request, its arm, and why no arm may answer it, if that is so."""
        in_force = self.board.current
        route, forced = in_force.route, request.forced_arm
        chosen: ArmName = forced or ("candidate" if assigned_to_candidate(route, key) else "control")
        # Only a route with an arm that opens what it reads costs a look at every text.
        if has_fetching_arm(route) and holds_markdown_picture(request):
            found = past_fetching_arms(route, chosen, fixed=forced is not None)
            if found is None:
                return in_force.with_route(outside_the_rollout(route)), chosen, markdown_picture_refused()
            return in_force.with_route(found[0]), found[1], None
        if forced is not None:
            in_force = in_force.with_route(outside_the_rollout(route))
        return in_force, chosen, None

    async def conclude(self, case: Case, attempts: list[Attempt]) -> None:
        """Writes down, counts and mirrors what came of a request."""
        settled = settle(attempts)
        if settled.outcome == "error" and attempts[0].reading.kind == "refused":
            self.asking.breakers.failed(attempts[0])
        written = await self._write_down(case, settled, attempts)
        self._count(case, settled, attempts, time.monotonic() - case.started)
        self._mirror(case, settled, attempts, written)

    # ------------------------------------------------------------------ writing down

    async def _write_down(self, case: Case, settled: rules.Settlement, attempts: list[Attempt]) -> bool:
        line = record_line(
            request_id=case.request_id,
            assessment_id=case.request.assessment_id,
            received_at=datetime.fromtimestamp(case.received, UTC).isoformat(timespec="milliseconds"),
            gateway=self.gateway,
            route=case.route,
            chosen=case.chosen,
            settlement=settled,
            attempts=attempts,
            messages=case.messages,
            pictures=case.digests,
            drawn_later=case.route.labels.by_stratum and _makes_pair(case, settled, attempts),
        )
        pictures = [(picture.digest, picture.body) for picture in case.pictures]
        try:
            async with asyncio.timeout(_SPOOL_SECONDS):
                await self.spool.append(line, pictures)
            return True
        except SpoolFull as problem:
            log.error("request %s is not recorded: the spool is full (%s)", case.request_id, problem)
        except TimeoutError:
            log.error("request %s is answered unrecorded: the spool's disk is too slow", case.request_id)
            self.metrics.spool_full.inc()
            return True  # it may still reach the disk
        self.metrics.spool_full.inc()
        return False

    def _count(self, case: Case, settled: rules.Settlement, attempts: list[Attempt], seconds: float) -> None:
        route, chosen, arm = case.route, case.chosen, case.arm
        self.metrics.request(route, chosen, arm, settled.outcome)
        if settled.outcome in ("ok", "error"):
            self.metrics.answered(route, chosen, arm, seconds)
        if settled.reason:
            self.metrics.fallback(route, chosen, settled.reason)
        self.metrics.cost(route, chosen, arm, sum(attempt.cost_usd for attempt in attempts))
        if chosen == "candidate" and attempts[0].reading.kind == "answered":
            self.metrics.confidence(route, arm.version, attempts[0].confidence)

    def _mirror(self, case: Case, settled: rules.Settlement, attempts: list[Attempt], written: bool) -> None:
        route, candidate, answer = case.route, case.route.candidate, attempts[0].reading.answer
        if candidate is None or not _copied(case):
            return
        if answer is None or not written or not _makes_pair(case, settled, attempts):
            if settled.outcome != "rejected":
                self.metrics.shadow_dropped(route, "no_control_answer")
            return
        body = b"".join(case.body_for(candidate))
        self.shadow.offer(Copy(case.in_force, candidate, case.request_id, body, answer))

    # ------------------------------------------------------------------ answering

    def reply(self, case: Case, attempts: list[Attempt]) -> Answered:
        """What the caller gets of attempts that are over. Raises ApiError when that is an error."""
        settled = settle(attempts)
        if settled.served is None:
            raise _with_headers(nobody_answered(attempts), case.headers)
        served = attempts[settled.served]
        headers = {**case.headers, contract.HEADER_VERSION: header_text(served.arm.version)}
        if settled.reason:
            headers[contract.HEADER_FALLBACK] = settled.reason
        if served.reading.completion is None:
            raise _with_headers(_refusal(served.reading), headers)
        completion = rewritten(
            served.reading.completion,
            case.request_id,
            served.arm.model,
            int(case.received),
            case.request.wants_logprobs,
        )
        return Answered(completion, headers)


def _copied(case: Case) -> bool:
    """Whether the candidate is to be asked beside the path."""
    return mirrored(case.route, case.key) or mirrored_for_label(case.route, case.key, case.request_id)


def _makes_pair(case: Case, settled: rules.Settlement, attempts: list[Attempt]) -> bool:
    """Whether there is an answer of the control to compare the candidate's with."""
    return _copied(case) and settled.outcome == "ok" and attempts[0].reading.answer is not None


def settle(attempts: list[Attempt]) -> rules.Settlement:
    return rules.settle([one.reading.kind for one in attempts], attempts[0].stumbled is not None)


def nobody_answered(attempts: list[Attempt]) -> ApiError:
    """The error of a request for which every arm failed, named after the chosen arm's failure."""
    first = attempts[0].reading.kind
    tried = ", ".join(f"{one.arm.version}: {one.reading.kind}" for one in attempts)
    if first == "overload":
        wait = max((one.retry_after_seconds or 1.0 for one in attempts), default=1.0)
        return ApiError(
            503,
            f"No model could answer ({tried}).",
            "server_error",
            code="overloaded",
            retry_after_seconds=wait,
        )
    if first == "timeout":
        return ApiError(504, f"No model answered in time ({tried}).", "server_error", code="timeout")
    if all(one.reading.kind == "invalid" for one in attempts):
        return ApiError(
            502,
            f"No model gave an answer that fits the task ({tried}).",
            "server_error",
            code="invalid_answer",
        )
    return ApiError(502, f"No model could answer ({tried}).", "server_error", code="bad_gateway")


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


def _with_headers(error: ApiError, headers: dict[str, str]) -> ApiError:
    error.extra_headers = dict(headers)
    return error


def _distinct(pictures: list[Picture]) -> list[Picture]:
    return list({picture.digest: picture for picture in pictures}.values())
