"""What was last seen of each rollout, so that a look at which nothing happens costs no read of the cluster.

A remembered world is good until a watch reports a change of the rollout or of what belongs to it, and for ten minutes
at most. Only its evidence is read anew. It can decide nothing but "nothing to do" and the routine checkpoint, which is
compare-and-swap: before anything else is written everything is looked at again. Kept as packed text: as objects
hundreds of worlds would take ten times the room.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol
from weakref import WeakValueDictionary

import orjson

from cutover.api.base import ApiModel
from cutover.api.modelrollout import ModelRollout, ModelRolloutSpec, ModelRolloutStatus
from cutover.route import GatewayConfig
from cutover_operator.evidence.ledger import LedgerError
from cutover_operator.evidence.ledger_map import from_config_map, ledger_name
from cutover_operator.plan import Key
from cutover_operator.port import Object
from cutover_operator.rollout.report_map import report_name
from cutover_operator.rollout.routing import read_route
from cutover_operator.rollout.world import Evidence, Unreadable, World
from cutover_operator.turns import Turn

LOOK_SECONDS = 600.0
"""What no watch reports (gateway pods, the gateway's own configuration) is seen after this time at the latest. Everybody
has a turn within it, so that what began together is not looked at together ever after."""
OBJECTS = (
    "parent",
    "route_map",
    "training_run",
    "deployment",
    "service",
    "pods",
    "report_map",
    "champion_job",
    "champion_pods",
)


class Evident(Protocol):
    async def evidence(self, world: World, now: datetime) -> Evidence:
        """The evidence of this world as it is by now."""
        ...


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A world without what its objects say; those are text."""

    rest: World
    objects: bytes
    """JSON, compressed."""
    gateway: str
    good_until: float

    @classmethod
    def of(cls, world: World, good_until: float) -> _Remembered:
        gateway = (
            world.gateway.model_dump_json(by_alias=True) if isinstance(world.gateway, GatewayConfig) else ""
        )
        seen = world.evidence
        rest = World(
            parent={},
            spec=_sharing(world.spec),
            status=None,  # type: ignore[arg-type]  # read again from the text
            site=world.site,
            remembered=True,
            known_gateways=world.known_gateways,
            rollouts=world.rollouts,
            gateways=world.gateways,
            evidence=Evidence(
                stored=seen.stored,
                config_map=_address(seen.config_map),
                scraped_replicas=seen.scraped_replicas,
            ),
        )
        text = orjson.dumps([getattr(world, name) for name in OBJECTS])
        return cls(rest, zlib.compress(text, 1), gateway, good_until)

    def world(self) -> World:
        objects = dict(zip(OBJECTS, orjson.loads(zlib.decompress(self.objects)), strict=True))
        for name in ("pods", "champion_pods"):
            objects[name] = tuple(objects[name])
        return replace(
            self.rest,
            **objects,
            status=ModelRolloutStatus.model_validate(objects["parent"].get("status") or {}),
            gateway=GatewayConfig.model_validate_json(self.gateway),
            route=read_route(objects["route_map"]),
        )


_parts: WeakValueDictionary[tuple[type[ApiModel], str], ApiModel] = WeakValueDictionary()
"""Parts of remembered specs by what they say: rollouts that were made from one template hold them together."""


def _sharing(spec: ModelRolloutSpec) -> ModelRolloutSpec:
    """The same spec, made of parts that others have too. Not the steps: two that are alike are still two."""
    parts: dict[str, Any] = {name: _part(part) for name, part in spec if isinstance(part, ApiModel)}
    return spec.model_copy(update={**parts, "gates": [_part(gate) for gate in spec.gates]})


def _part(part: ApiModel) -> ApiModel:
    return _parts.setdefault((type(part), part.model_dump_json()), part)


def _address(config_map: Object | None) -> Object | None:
    """What a compare-and-swap needs of it."""
    if config_map is None:
        return None
    return {"metadata": {name: config_map["metadata"].get(name) for name in ("uid", "resourceVersion")}}


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

    def gone(self, key: Key) -> None:
        self._worlds.pop(key, None)
        self._changes.pop(key, None)

    def keep(
        self, key: Key, world: World | Unreadable, written: Sequence[Object], changes: int, looked: bool
    ) -> None:
        """After a routine pass and what it wrote: remember how things stand now, if that lasts. `looked`: the world was
        read from the cluster, not remembered."""
        known = self._worlds.pop(key, None)
        if isinstance(world, Unreadable) or changes != self.changes(key):
            return
        try:
            for obj in written:
                world = _with(world, obj)
        except LedgerError:
            return
        if known is not None and not looked:
            until = known.good_until
        else:
            until = Turn(str(key), LOOK_SECONDS).after(self._clock())
        if _lasts(world):
            self._worlds[key] = _Remembered.of(world, until)

    async def recall(self, key: Key, now: datetime) -> World | None:
        """The remembered world with the evidence of now; None when it must be looked at."""
        known = self._worlds.get(key)
        if known is None or self._clock() >= known.good_until:
            self._worlds.pop(key, None)
            return None
        world = known.world()
        evidence = await self._evident.evidence(world, now)
        if self._worlds.get(key) is not known:
            return None
        if evidence.metrics is None and (
            evidence.scraped_replicas != known.rest.evidence.scraped_replicas
            or evidence.served_generation < world.status.route_generation
        ):
            # Gateway pods came or went, or one of them serves an old route.
            return None
        return replace(world, evidence=evidence)


def _with(world: World, obj: Object) -> World:
    """The world after one of its objects was written. Raises LedgerError."""
    metadata = obj["metadata"]
    if metadata.get("uid") == world.uid:
        return replace(world, parent=obj, status=ModelRollout.from_object(obj).status)
    if metadata["name"] == ledger_name(world.name):
        stored = from_config_map(obj, world.uid)
        return replace(world, evidence=replace(world.evidence, stored=stored, config_map=obj))
    if metadata["name"] == report_name(world.name):
        return replace(world, report_map=obj)
    return world


def _lasts(world: World) -> bool:
    """A rollout at a step whose time has begun, or one that is watched after its promotion."""
    status = world.status
    return (
        world.deleted_at is None
        and status.finish in (None, "Promoted")
        and status.step_confirmed_at is not None
        and world.evidence.stored is not None
        and isinstance(world.gateway, GatewayConfig)
        and bool(world.gateways)
        and all(
            pod.report is not None and pod.report.generation >= status.route_generation
            for pod in world.gateways
        )
    )
