"""The route in force: taken from whatever the source says, kept on disk, never replaced by one that makes no sense.

Promises: a document that is not a valid route is refused with a log line and a count, and the last good route stays.
Any other document is followed as it stands, a lower generation too: the source is the truth, and an operator restored
from a backup is right about it. At start the cached route serves until the source is heard; without one, the idle route
of the gateway's own configuration sends everything to the default provider.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema_rs
from pydantic import ValidationError

from cutover.route import GatewayConfig, Route, RouteReport

log = logging.getLogger(__name__)
NEWEST_SCHEMA = 2
"""Documents one version ahead are read too: unknown keys are ignored."""


@dataclass(frozen=True, slots=True)
class InForce:
    route: Route
    is_valid: Callable[[object], bool]
    """Whether an answer fits the task's schema."""

    def with_route(self, route: Route) -> InForce:
        """Another route to the same task."""
        return InForce(route, self.is_valid)


class RouteRefused(ValueError):
    """The document is no route; the message says why and holds no more of it than that."""


def read_route(text: str) -> InForce:
    try:
        route = Route.model_validate_json(text)
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'document'}: {one['msg']}"
            for one in error.errors(include_input=False, include_url=False)[:5]
        )
        raise RouteRefused(details) from None
    if route.schema_version > NEWEST_SCHEMA:
        raise RouteRefused(
            f"schemaVersion: {route.schema_version} is newer than {NEWEST_SCHEMA}; update the gateway"
        )
    for field, arm in (
        ("control", route.control),
        ("candidate", route.candidate),
        ("fallback", route.fallback),
    ):
        parts = urlsplit(arm.base_url) if arm is not None else None
        if parts is not None and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise RouteRefused(f"{field}.baseUrl: an http or https URL is needed")
    if route.weight_basis_points and route.candidate is None:
        raise RouteRefused("weightBasisPoints: there is no candidate to give a weight to")
    return in_force(route)


def in_force(route: Route) -> InForce:
    """Raises RouteRefused when the answer schema cannot be used; references to other documents are never opened."""
    try:
        validator = jsonschema_rs.validator_for(route.task.answer_schema, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise RouteRefused(f"task.answerSchema: {str(error)[:200]}") from None
    return InForce(route, validator.is_valid)


class RouteBoard:
    def __init__(
        self,
        config: GatewayConfig,
        cache: Path,
        changed: Callable[[Route], None],
        refused: Callable[[], None],
    ) -> None:
        self._cache = cache
        self._changed = changed
        self._refused = refused
        self._text: str | None = None
        self._last_refused: str | None = None
        self._absence_told = False
        self.current = in_force(config.idle_route())
        self._load_cache()
        self._changed(self.current.route)

    def report(self, pod: str, gateway: str) -> RouteReport:
        route = self.current.route
        return RouteReport(
            gateway=gateway,
            pod=pod,
            generation=route.generation,
            rollout=route.rollout,
            weight_basis_points=route.weight_basis_points,
        )

    async def take(self, text: str | None) -> bool:
        """What the source says now; none when it has no document. True when the route in force is what it says."""
        if text is None:
            if not self._absence_told:
                log.info("route: the source has none; generation %d stays", self.current.route.generation)
            self._absence_told = True
            return False
        self._absence_told = False
        if text == self._text:
            return True
        try:
            new = read_route(text)
        except RouteRefused as problem:
            if text != self._last_refused:
                self._last_refused = text
                self._refused()
                log.error("route refused, generation %d stays: %s", self.current.route.generation, problem)
            return False
        old = self.current.route
        self._put(text, new)
        if new.route.generation < old.generation:
            log.warning("route: generation goes back from %d to %d", old.generation, new.route.generation)
        log.info(
            "route: generation %d, rollout %s, weight %d, shadow %d",
            new.route.generation,
            new.route.rollout,
            new.route.weight_basis_points,
            new.route.shadow_basis_points,
        )
        await asyncio.to_thread(self._save_cache, text)
        return True

    def _put(self, text: str, new: InForce) -> None:
        self._text, self.current, self._last_refused = text, new, None
        self._changed(new.route)

    def _load_cache(self) -> None:
        try:
            text = self._cache.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            log.error("route cache %s cannot be read: %s", self._cache.name, type(error).__name__)
            return
        try:
            self.current, self._text = read_route(text), text
        except RouteRefused as problem:
            log.error("route cache %s is refused: %s", self._cache.name, problem)

    def _save_cache(self, text: str) -> None:
        temporary = self._cache.with_name(f".{self._cache.name}.{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._cache)
        except OSError as error:
            log.error("route cache %s cannot be written: %s", self._cache.name, error.strerror)
