"""The breakers of the arms in force, by endpoint: control and fallback that are the same model share one.

A route change keeps the breakers of endpoints that stay and forgets the others; the gauge follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cutover.route import Arm, Route
from cutover_server.gateway.attempt import Attempt
from cutover_server.gateway.breaker import Breaker, BreakerRules
from cutover_server.gateway.settlement import same_endpoint

_Endpoint = tuple[str, str, str]


class Breakers:
    def __init__(
        self,
        gauge: Callable[[str, bool], None],
        chance: Callable[[], float],
        rules: BreakerRules | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gauge = gauge
        self._chance = chance
        self._rules = rules or BreakerRules()
        self._clock = clock
        self._breakers: dict[_Endpoint, Breaker] = {}
        self._names: dict[str, _Endpoint] = {}
        self._shown: dict[str, bool] = {}

    def follow(self, route: Route) -> None:
        """A route takes force."""
        arms = {"control": route.control}
        if route.candidate is not None:
            arms["candidate"] = route.candidate
        if route.fallback is not None and not any(
            same_endpoint(route.fallback, arm) for arm in arms.values()
        ):
            arms["fallback"] = route.fallback
        gone = set(self._names) - set(arms)
        self._names = {name: _endpoint(arm) for name, arm in arms.items()}
        wanted = set(self._names.values())
        if route.fallback is not None:
            wanted.add(_endpoint(route.fallback))
        self._breakers = {end: breaker for end, breaker in self._breakers.items() if end in wanted}
        for name in gone:
            self._gauge(name, False)
        self._shown.clear()
        self._show_all()

    def allows(self, arm: Arm) -> bool:
        allowed = self._of(arm).allows(self._clock())
        self._show_all()
        return allowed

    def succeeded(self, arm: Arm) -> None:
        self._of(arm).succeeded(self._clock())
        self._show_all()

    def failed(self, attempt: Attempt) -> None:
        self._of(attempt.arm).failed(self._clock(), attempt.retry_after_seconds or 0.0)
        self._show_all()

    def abandoned(self, arm: Arm) -> None:
        self._of(arm).abandoned()

    def _of(self, arm: Arm) -> Breaker:
        # An arm of a route that has just been replaced gets a breaker too; the next change forgets it.
        endpoint = _endpoint(arm)
        breaker = self._breakers.get(endpoint)
        if breaker is None:
            breaker = self._breakers[endpoint] = Breaker(self._rules, self._chance)
        return breaker

    def _show_all(self) -> None:
        for name, endpoint in self._names.items():
            breaker = self._breakers.get(endpoint)
            is_open = breaker is not None and breaker.is_open()
            if self._shown.get(name) is not is_open:
                self._shown[name] = is_open
                self._gauge(name, is_open)


def _endpoint(arm: Arm) -> _Endpoint:
    return (arm.base_url.rstrip("/"), arm.model, arm.version)
