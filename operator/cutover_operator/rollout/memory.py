"""What was last seen of each rollout, so that a look at which nothing happens costs no read of the cluster.

A remembered world is good until a watch reports a change of the rollout or of what belongs to it, and for two minutes
at most. Only its evidence is read anew. It can decide nothing but "nothing to do": before anything is written everything
is looked at again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from cutover_operator.plan import Key
from cutover_operator.rollout.world import Evidence, Unreadable, World

LOOK_SECONDS = 120.0
"""What no watch reports (gateway pods, the gateway's own configuration) is seen after this time at the latest."""


class Evident(Protocol):
    async def evidence(self, world: World, now: datetime) -> Evidence:
        """The evidence of this world as it is by now."""
        ...


@dataclass(frozen=True, slots=True)
class _Remembered:
    world: World
    good_until: float


class Memory:
    """Remembered worlds by key. `clock` is monotonic."""

    def __init__(self, evident: Evident, clock: Callable[[], float] = time.monotonic) -> None:
        self._evident = evident
        self._clock = clock
        self._worlds: dict[Key, _Remembered] = {}
        self._changes: dict[Key, int] = {}

    def changed(self, key: Key) -> None:
        """A watch saw the rollout, or something that belongs to it, in a new state."""
        self._worlds.pop(key, None)
        self._changes[key] = self._changes.get(key, 0) + 1

    def changes(self, key: Key) -> int:
        """Taken before a look, so that a change seen during it is not forgotten."""
        return self._changes.get(key, 0)

    def keep(self, key: Key, world: World | Unreadable | None, changes: int) -> None:
        """After a look that found nothing to do: remember it, if it is one that lasts."""
        if isinstance(world, World) and _lasts(world) and changes == self.changes(key):
            self._worlds[key] = _Remembered(world, self._clock() + LOOK_SECONDS)
        else:
            self._worlds.pop(key, None)
        if world is None:
            self._changes.pop(key, None)

    async def recall(self, key: Key, now: datetime) -> World | None:
        """The remembered world with the evidence of now; None when it must be looked at."""
        known = self._worlds.get(key)
        if known is None or self._clock() >= known.good_until:
            self._worlds.pop(key, None)
            return None
        evidence = await self._evident.evidence(known.world, now)
        if self._worlds.get(key) is not known:
            return None
        if evidence.scraped_replicas != known.world.evidence.scraped_replicas:
            # Gateway pods came or went.
            return None
        return replace(known.world, evidence=evidence)


def _lasts(world: World) -> bool:
    """A rollout at a step that every gateway serves, or one that is watched after its promotion."""
    status = world.status
    return (
        world.deleted_at is None
        and status.finish in (None, "Promoted")
        and status.step_confirmed_at is not None
        and world.evidence.stored is not None
        and bool(world.gateways)
        and all(
            pod.report is not None and pod.report.generation >= status.route_generation
            for pod in world.gateways
        )
    )
