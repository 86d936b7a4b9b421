"""Leads a rollout once more through recorded samples: the operator's own gather, fold and decide on a shelf of objects.

Reads no network and no clock; time is that of the recording. What the candidate is, and whether its pods and the
gateways were well, is not recorded: they are taken to have been, so that only the evidence decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cutover.api.base import API_VERSION, to_seconds
from cutover.api.modelrollout import ModelRollout, ModelRolloutSpec, ModelRolloutStatus
from cutover.contract import (
    FINALIZER,
    GATEWAY_KEY,
    gateway_config_map,
    rollout_key,
    route_config_map,
)
from cutover.route import RouteReport
from cutover_cli.following import Following
from cutover_cli.manifest import task_of
from cutover_cli.recording import Recording, RecordingError, everything
from cutover_operator.evidence.folding import fold
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.ledger_map import from_config_map, ledger_name, to_config_map
from cutover_operator.evidence.samples import Answer, Asked, custom_key
from cutover_operator.plan import Plan, Swap
from cutover_operator.port import CONFIG_MAPS, MODEL_ROLLOUTS, Object, Resource
from cutover_operator.rollout.decide import decide
from cutover_operator.rollout.gather import Watchtower, wish_of
from cutover_operator.rollout.resources import Images, Owner
from cutover_operator.rollout.routing import read_route
from cutover_operator.rollout.world import GatewayPod, Site
from cutover_operator.turns import Turn

NAMESPACE = "recorded"
PROMETHEUS = "http://recorded.invalid"
POD = "recorded"
LEAST_PAUSE_SECONDS = 0.1
MOST_LOOKS = 500_000
SITE = Site(PROMETHEUS, (PROMETHEUS,), Images("", "", ""))


@dataclass(frozen=True, slots=True)
class Look:
    """One pass: when, and what the operator would have written."""

    at: datetime
    status: ModelRolloutStatus
    followed: bool
    """False once the recorded share of the traffic was another than the one decided here."""


@dataclass(frozen=True, slots=True)
class Told:
    """What came of it: the passes at which something new was decided or said, and the end."""

    changes: tuple[Look, ...]
    status: ModelRolloutStatus
    """Of the last look."""
    ended: ModelRolloutStatus | None
    """Of the look that decided the end; the reasons in later ones are those of later looks."""
    passes: int
    ended_at: datetime


class Shelf:
    """The few objects a rollout needs, by kind and name; only what `Watchtower` reads."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Resource, str], Object] = {}

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self.objects.get((resource, name))

    async def list(self, resource: Resource, namespace: str | None, label_selector: str = "") -> list[Object]:
        return []

    def put(self, resource: Resource, obj: Object) -> None:
        self.objects[resource, obj["metadata"]["name"]] = obj


class Replay:
    """One rollout on one recording; `run` it once."""

    def __init__(
        self,
        name: str,
        spec: ModelRolloutSpec,
        recording: Recording,
        rollout: str,
        version: str,
        tick_seconds: float | None = None,
    ) -> None:
        self.spec = replayable(spec, version)
        self._recording = recording
        self._tick_seconds = tick_seconds or to_seconds(spec.analysis.interval)
        self._now = self._begin_at = recording.first_seen(rollout)
        looks = (recording.end - self._begin_at) / self._tick_seconds
        if looks > MOST_LOOKS:
            raise RecordingError(
                f"a look every {self._tick_seconds:g} s until the end makes {looks:,.0f} looks, more than {MOST_LOOKS:,}; "
                "name an earlier --to or a longer --tick"
            )
        self._following = Following(recording, rollout, self._tick_seconds)
        self._owner = Owner(name, NAMESPACE, rollout)
        self._shelf = Shelf()
        self._watchtower = Watchtower(self._shelf, self, self, SITE, lambda: self._now)
        self._parent: Object = {
            "apiVersion": API_VERSION,
            "kind": ModelRollout.kind_name,
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": rollout,
                "generation": 1,
                "resourceVersion": "1",
                "finalizers": [FINALIZER],
            },
            "spec": self.spec.to_wire(),
        }
        self._shelf.put(MODEL_ROLLOUTS, self._parent)
        self._shelf.put(CONFIG_MAPS, _gateway(self.spec))
        self._begin(version)

    # ------------------------------------------------------------ what the watchtower asks
    async def read(
        self, url: str, asked: Asked, window_seconds: int, turn: Turn, own_window_seconds: int
    ) -> Mapping[str, Answer]:
        # Reading more than was asked for costs nothing here.
        return self._recorded(asked, self._now - max(window_seconds, own_window_seconds), self._now)

    def _recorded(self, asked: Asked, start: float, end: float) -> dict[str, Answer]:
        keys = (*asked.metrics, *map(custom_key, asked.custom))
        return {key: self._recording.answer(key, start, end) for key in keys}

    async def ask(self, pods: list[Object]) -> tuple[GatewayPod, ...]:
        route = read_route(self._shelf.objects.get((CONFIG_MAPS, route_config_map(self.spec.gateway_ref))))
        generation = route.generation if route is not None else 0
        return (GatewayPod(POD, RouteReport(gateway=self.spec.gateway_ref, pod=POD, generation=generation)),)

    # ------------------------------------------------------------ time
    async def run(self) -> Told:
        """Pass after pass until the end of the recording, or until the candidate is given up."""
        found: list[Look] = []
        passes, followed, orders = 0, True, 0
        last: Any = None
        ended: ModelRolloutStatus | None = None
        status, at = ModelRolloutStatus(), datetime.fromtimestamp(self._recording.start, UTC)
        while at.timestamp() < self._recording.end:
            self._now = min(self._now, self._recording.end)
            at = datetime.fromtimestamp(self._now, UTC)
            world = await self._watchtower.look(NAMESPACE, self._owner.name, at)
            assert world is not None
            plan = decide(world, at)
            status = self._carry_out(plan)
            if status.step_confirmed_at:
                followed &= self._following.follows(self._now, status.weight, status.shadow)
            if _only_the_share_is_missing(status):
                # The traffic of the recording did not follow: go on as if it had, and say so.
                followed, orders = False, orders + 1
                self._order(f"share-{orders}")
                continue
            passes += 1
            if (said := (followed, _said(status))) != last:
                last = said
                found.append(Look(at, status, followed))
            if status.finish != (ended.finish if ended is not None else None):
                ended = status
            if status.finish not in (None, "Promoted"):
                break
            self._now = self._next(plan)
        return Told(tuple(found), status, ended, passes, at)

    def ledger(self) -> Ledger | None:
        """The evidence as of the last checkpoint."""
        return from_config_map(
            self._shelf.objects.get((CONFIG_MAPS, ledger_name(self._owner.name))), self._owner.uid
        )

    def _next(self, plan: Plan) -> float:
        """The next look: at once while the rollout is on the move, else on an even grid of ticks."""
        wanted = plan.again_in_seconds if plan.again_in_seconds is not None else self._tick_seconds
        if wanted < min(1.0, self._tick_seconds):
            return self._now + max(wanted, LEAST_PAUSE_SECONDS)
        ticks = math.floor((self._now - self._begin_at) / self._tick_seconds + 1e-6)
        return self._begin_at + (ticks + 1) * self._tick_seconds

    # ------------------------------------------------------------ objects
    def _begin(self, version: str) -> None:
        """What was counted before the range began is known, and is no evidence."""
        before = self._recorded(
            everything(self.spec, rollout_key(self._owner.uid)), -math.inf, self._recording.start
        )
        known = Ledger(uid=self._owner.uid, version=version, started_at=self._recording.start)
        wanted = wish_of(self._owner, self.spec, known, PROMETHEUS).wanted
        earlier = fold(known, before, wanted)
        fresh = earlier.afresh(self._recording.start, version).stamped(self._recording.start)
        self._shelf.put(CONFIG_MAPS, _versioned(to_config_map(replace(fresh, epoch=1), self._owner, None)))

    def _carry_out(self, plan: Plan) -> ModelRolloutStatus:
        for action in (*plan.before, *plan.after):
            if isinstance(action, Swap):
                self._shelf.put(CONFIG_MAPS, _versioned(action.obj))
        if plan.status is not None:
            self._parent["status"] = plan.status
        return ModelRolloutStatus.model_validate(self._parent.get("status") or {})

    def _order(self, identity: str) -> None:
        self._parent["spec"] = {**self._parent["spec"], "request": {"id": identity, "action": "skip"}}


def replayable(spec: ModelRolloutSpec, version: str) -> ModelRolloutSpec:
    """The spec with the candidate that was recorded, served elsewhere, and without what people ordered meanwhile."""
    wire = spec.to_wire()
    wire["candidate"] = {"model": {"uri": f"{PROMETHEUS}/v1", "version": version}}
    wire["serving"] = {"engine": "external"}
    wire.setdefault("analysis", {}).pop("prometheus", None)
    for name in ("freeze", "hold", "request", "supersede"):
        wire.pop(name, None)
    return ModelRolloutSpec.model_validate(wire)


def _said(status: ModelRolloutStatus) -> object:
    """What makes a pass worth a line: a step, a reason or a verdict; after the promotion only one that fails."""
    verdicts = tuple((g.name, g.verdict) for g in status.gates if not status.finish or g.verdict == "fail")
    return len(status.steps), status.phase, status.reason, verdicts


def _only_the_share_is_missing(status: ModelRolloutStatus) -> bool:
    return status.reason == "WeightNotObserved" and ";" not in status.message


def _versioned(obj: Object) -> Object:
    version = int(obj["metadata"].get("resourceVersion", "0")) + 1
    metadata = {**obj["metadata"], "resourceVersion": str(version)}
    metadata.setdefault("uid", f"{metadata['name']}-uid")
    return {**obj, "metadata": metadata}


def _gateway(spec: ModelRolloutSpec) -> Object:
    """A gateway's configuration that scores every field the gates name and knows every provider the spec names."""
    names = {"recorded-control", spec.control.provider, spec.fallback.provider} - {None}
    config = {
        "name": spec.gateway_ref,
        "task": task_of(spec).to_wire(),
        "providers": {
            str(name): {"baseUrl": f"{PROMETHEUS}/v1", "model": str(name)} for name in sorted(map(str, names))
        },
        "defaultProvider": "recorded-control",
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": gateway_config_map(spec.gateway_ref), "namespace": NAMESPACE, "labels": {}},
        "data": {GATEWAY_KEY: json.dumps(config)},
    }
