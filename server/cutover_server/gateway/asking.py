"""Whom a request asks, in which order and for how long: the chosen arm, then those that may answer for it.

One deadline covers the whole request; every attempt gets its own limit or what is left of the deadline. An arm with an
alternative is never asked twice: the alternative is faster. The last arm is asked once more when it said that it did no
work (or was never reached), after the pause it asked for, unless that pause is long, the deadline near, or its breaker
open: then the caller is told, and how long to wait. An arm that was passed over because its breaker is open is asked
after all when every other one has failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from cutover.records import NOT_ASKED
from cutover.route import Arm
from cutover_server.gateway import settlement as rules
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.breakers import Breakers
from cutover_server.gateway.case import Case
from cutover_server.gateway.reading import Reading

log = logging.getLogger(__name__)
Ask = Callable[[Arm, float], Awaitable[Attempt]]
"""Asks an arm for at most so many seconds."""
_LONGEST_PAUSE_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
"""Before the second try of an arm that named no pause; drawn from half to one and a half of it."""
_LEAST_SECONDS = 0.05
"""With less than this left of the deadline nobody is asked any more."""


@dataclass(slots=True)
class Asking:
    breakers: Breakers
    last_arm_seconds: float
    """Time of an arm after which there is no other to ask."""
    chance: Callable[[], float]

    async def until_answered(self, case: Case, ask: Ask) -> list[Attempt]:
        """The attempts in order; the last one answered, or nobody did."""
        others = rules.alternatives(case.route, case.chosen)
        limit = self.last_arm_seconds
        if others and "timeout" in case.route.fallback_rules.on:
            limit = case.route.fallback_rules.deadline_seconds
        first = await self._attempt(case, case.arm, ask, limit, may_skip=bool(others), last=not others)
        attempts = [first]
        kept_back = first.reading.kind == "answered"
        if kept_back and not rules.deferring(case.route, case.chosen, first.confidence):
            return attempts
        if not kept_back and not rules.moves_on(case.route, case.chosen, first.reading):
            return attempts
        for at, arm in enumerate(others):
            # The last arm is asked whatever its breaker says, unless an answer is already at hand.
            last = not kept_back and at + 1 == len(others)
            attempts.append(
                await self._attempt(case, arm, ask, self.last_arm_seconds, may_skip=not last, last=last)
            )
            if attempts[-1].reading.kind == "answered":
                break
        if first.reading.kind == rules.BREAKER and attempts[-1].reading.kind not in ("answered", "refused"):
            # Nobody else answers either: an arm that is back already would, before its breaker knows.
            attempts.append(await self._attempt(case, case.arm, ask, limit, may_skip=False, last=False))
        return attempts

    def report(self, case: Case, attempt: Attempt) -> None:
        """Tells the breaker how an attempt that was made ended."""
        reading = attempt.reading
        if reading.kind == "answered":
            self.breakers.succeeded(attempt.arm)
        elif reading.kind == "refused" or not rules.moves_on(case.route, case.chosen, reading):
            # A failure that must reach the caller opens no breaker either.
            self.breakers.abandoned(attempt.arm)
        else:
            self.breakers.failed(attempt)
        if reading.kind not in ("answered", "refused"):
            log.warning(
                "request %s: arm %s (%s): %s",
                case.request_id,
                attempt.arm.name,
                attempt.arm.version,
                reading.problem,
            )

    async def _attempt(
        self, case: Case, arm: Arm, ask: Ask, limit_seconds: float, may_skip: bool, last: bool
    ) -> Attempt:
        if case.seconds_left < _LEAST_SECONDS:
            return Attempt(arm, Reading("timeout", f"{NOT_ASKED}, the request's time is over"))
        closed = self.breakers.allows(arm)
        if not closed and may_skip:
            return Attempt(arm, Reading("breaker", f"{NOT_ASKED}, its breaker is open"))
        first = await self._once(case, arm, ask, limit_seconds)
        if not (last and closed and first.reading.may_ask_again):
            return first
        pause = first.retry_after_seconds
        if pause is None:
            pause = _PAUSE_SECONDS * (0.5 + self.chance())
        if pause > _LONGEST_PAUSE_SECONDS or pause + first.seconds >= case.seconds_left:
            return first
        started = time.monotonic()
        await asyncio.sleep(pause)
        if not self.breakers.allows(arm):
            return first
        second = await self._once(case, arm, ask, limit_seconds)
        return replace(
            second,
            seconds=first.seconds + time.monotonic() - started,
            cost_usd=first.cost_usd + second.cost_usd,
            stumbled=first.reading.kind,
        )

    async def _once(self, case: Case, arm: Arm, ask: Ask, limit_seconds: float) -> Attempt:
        try:
            attempt = await ask(arm, min(limit_seconds, case.seconds_left))
        except BaseException:
            self.breakers.abandoned(arm)
            raise
        if not attempt.unfinished:
            self.report(case, attempt)
        return attempt
