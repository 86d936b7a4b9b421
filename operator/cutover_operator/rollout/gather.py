"""Looks at the cluster, the gateways and Prometheus for one pass. Reads only; decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Protocol

import yaml
from pydantic import ValidationError

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRollout, ModelRolloutSpec, ModelRolloutStatus, RegistryStatus
from cutover.contract import (
    GATEWAY_KEY,
    LABEL_GATEWAY,
    gateway_config_map,
    rollout_key,
    route_config_map,
)
from cutover.route import GatewayConfig, Route
from cutover_operator.evidence.folding import Wanted
from cutover_operator.evidence.ledger import Ledger, LedgerError, Totals
from cutover_operator.evidence.ledger_map import from_config_map, ledger_name
from cutover_operator.evidence.reading import Samples, Wish, own_age, own_counted, read_evidence
from cutover_operator.evidence.samples import Unavailable
from cutover_operator.origins import is_allowed
from cutover_operator.plan import Key
from cutover_operator.port import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    MODEL_ROLLOUTS,
    PODS,
    SERVICES,
    TRAINING_RUNS,
    Object,
    Reader,
)
from cutover_operator.rollout.accuracy import by_stratum, has_pairs
from cutover_operator.rollout.candidate import short_name
from cutover_operator.rollout.gates import cost_limits, edges, named_gates
from cutover_operator.rollout.report_map import report_name
from cutover_operator.rollout.resources import Owner, selector_text
from cutover_operator.rollout.routing import holder_of, read_route
from cutover_operator.rollout.threshold import governing_gate
from cutover_operator.rollout.world import Evidence, GatewayPod, Neighbour, Site, Unreadable, World
from cutover_operator.training.observed import LABEL_JOB
from cutover_operator.turns import Turn

ONE_LOOK_SECONDS = 1.0
"""What is read again within this time, before something is written, is the same look."""


class Gateways(Protocol):
    async def ask(self, pods: list[Object]) -> tuple[GatewayPod, ...]: ...


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a checkpoint amounts to with all samples up to a moment. Folding goes on from here: it is associative."""

    stored: Ledger
    wish: Wish
    current: Ledger
    before: Totals
    """What had been counted at the look before."""
    at: float


class Watchtower:
    """Everything a pass reads, over kept connections. `clock` is monotonic."""

    def __init__(
        self,
        kube: Reader,
        samples: Samples,
        gateways: Gateways,
        site: Site,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._samples = samples
        self._gateways = gateways
        self._site = site
        self._clock = clock
        self._counted: dict[str, _Counted] = {}
        """By namespace/name; lost with the process, and then made again from the checkpoint."""

    async def look(self, namespace: str, name: str, now: datetime) -> World | Unreadable | None:
        """The world of a rollout; None when there is no such object. Raises KubeError."""
        obj = await self._kube.get(MODEL_ROLLOUTS, namespace, name)
        if obj is None:
            self._forget(namespace, name)
            return None
        try:
            rollout = ModelRollout.from_object(obj)
        except (ValidationError, KeyError) as error:
            return Unreadable(obj, _short(error))
        spec, kube = rollout.spec, self._kube
        owner = Owner(name, namespace, str(obj["metadata"]["uid"]))
        child = short_name(name, "candidate")
        gateway = spec.gateway_ref
        run = spec.candidate.training_run_ref
        config, route_map, ledger_map, deployment, service, gateway_pods = await asyncio.gather(
            kube.get(CONFIG_MAPS, namespace, gateway_config_map(gateway)),
            kube.get(CONFIG_MAPS, namespace, route_config_map(gateway)),
            kube.get(CONFIG_MAPS, namespace, ledger_name(name)),
            kube.get(DEPLOYMENTS, namespace, child),
            kube.get(SERVICES, namespace, child),
            kube.list(PODS, namespace, f"{LABEL_GATEWAY}={gateway}"),
        )
        # A candidate's pods tell only why they are not ready.
        trouble = deployment is not None and not _all_ready(deployment)
        pods = await kube.list(PODS, namespace, selector_text(owner)) if trouble else []
        route = read_route(route_map)
        rollouts = await self._neighbours(owner, route_map, route)
        training_run = await kube.get(TRAINING_RUNS, namespace, run.name) if run is not None else None
        ended = rollout.status.finish is not None
        report_map = await kube.get(CONFIG_MAPS, namespace, report_name(name)) if ended else None
        champion_job, champion_pods = await self._champion(namespace, rollout.status.registry)
        known = [] if config is not None else await kube.list(CONFIG_MAPS, namespace, LABEL_GATEWAY)
        reports, evidence = await asyncio.gather(
            self._gateways.ask(gateway_pods), self._stored(owner, spec, rollout.status, ledger_map, now)
        )
        return World(
            parent=obj,
            spec=spec,
            status=rollout.status,
            site=self._site,
            gateway=_gateway_config(config),
            known_gateways=tuple(sorted({str(c["metadata"]["labels"][LABEL_GATEWAY]) for c in known})),
            route_map=route_map,
            route=route,
            rollouts=rollouts,
            training_run=training_run,
            deployment=deployment,
            service=service,
            pods=tuple(pods),
            gateways=reports,
            evidence=evidence,
            report_map=report_map,
            champion_job=champion_job,
            champion_pods=champion_pods,
        )

    async def _champion(
        self, namespace: str, record: RegistryStatus | None
    ) -> tuple[Object | None, tuple[Object, ...]]:
        """The Job that tells MLflow of an end, and its pods."""
        if record is None or not record.job or record.state not in ("Running", "Outdated"):
            return None, ()
        job, pods = await asyncio.gather(
            self._kube.get(JOBS, namespace, record.job),
            self._kube.list(PODS, namespace, f"{LABEL_JOB}={record.job}"),
        )
        return job, tuple(pods)

    async def _neighbours(
        self, owner: Owner, route_map: Object | None, route: Route | None
    ) -> tuple[Neighbour, ...]:
        """The rollouts that matter to this one: who holds the gateway, and whose models the route names."""
        names = {holder_of(route_map)[0]}
        if route is not None:
            names |= {arm.name for arm in (route.control, route.candidate) if arm is not None}
        found = [
            await self._kube.get(MODEL_ROLLOUTS, owner.namespace, name)
            for name in sorted(names - {"", owner.name})
        ]
        return tuple(_neighbour(obj) for obj in found if obj is not None)

    async def evidence(self, world: World, now: datetime) -> Evidence:
        """What is known by now about a rollout whose checkpoint is the one in `world`."""
        seen = world.evidence
        owner = Owner(world.name, world.namespace, world.uid)
        return await self._evidence(owner, world.spec, world.status, seen.stored, seen.config_map, now)

    async def _stored(
        self,
        owner: Owner,
        spec: ModelRolloutSpec,
        status: ModelRolloutStatus,
        config_map: Object | None,
        now: datetime,
    ) -> Evidence:
        try:
            stored = from_config_map(config_map, owner.uid)
        except LedgerError as error:
            return Evidence(config_map=config_map, damaged=str(error))
        return await self._evidence(owner, spec, status, stored, config_map, now)

    async def _evidence(
        self,
        owner: Owner,
        spec: ModelRolloutSpec,
        status: ModelRolloutStatus,
        stored: Ledger | None,
        config_map: Object | None,
        now: datetime,
    ) -> Evidence:
        if stored is None or status.finish not in (None, "Promoted"):
            self._counted.pop(_place(owner), None)
            return Evidence(stored=stored, config_map=config_map, current=stored)
        counted_until = stored.written_at or stored.started_at
        url = spec.analysis.prometheus.url or self._site.prometheus_url
        allowed = (*self._site.allowed_urls, self._site.prometheus_url)
        if not url or not is_allowed(url, allowed):
            problem = Unavailable(
                "NotAllowed", f"analysis.prometheus.url {url!r} is not in the operator's allow list"
            )
            return Evidence(
                stored,
                config_map,
                current=stored,
                metrics=problem,
                unread_since=counted_until,
                labels=problem,
            )
        wish = wish_of(owner, spec, stored, url)
        base, before, wall = stored, stored.totals, now.timestamp()
        age = wall - counted_until
        at, known = self._clock(), self._counted.get(_place(owner))
        if known is not None and (known.stored, known.wish) == (stored, wish):
            base, age = known.current, at - known.at
            before = known.before if age < ONE_LOOK_SECONDS else base.totals
        read = await read_evidence(self._samples, wish, base, age, own_age(wish, base, wall))
        current = read.current
        if read.metrics is None:
            current = own_counted(wish, read, wall)
            self._counted[_place(owner)] = _Counted(stored, wish, current, before, at)
        return Evidence(
            stored=stored,
            config_map=config_map,
            current=current,
            before=before,
            metrics=read.metrics,
            unread_since=None if read.metrics is None else wall - max(0.0, age),
            labels=read.labels,
            scraped_replicas=read.scraped_replicas,
            requests_per_second=read.requests_per_second,
            served_generation=read.served_generation,
            control_down=read.control_down,
            custom=read.custom,
        )

    def _forget(self, namespace: str, name: str) -> None:
        self._counted.pop(f"{namespace}/{name}", None)


def _place(owner: Owner) -> str:
    return f"{owner.namespace}/{owner.name}"


def wish_of(owner: Owner, spec: ModelRolloutSpec, ledger: Ledger, url: str) -> Wish:
    """What the evidence of a rollout is read by."""
    custom = tuple(
        (g.name, g.gate.bad, g.gate.total)
        for g in named_gates(spec)
        if g.metric == "custom" and g.gate.bad and g.gate.total
    )
    labels = spec.analysis.labels
    accuracy = [g for g in named_gates(spec) if g.metric == "accuracy"]
    bets = {g.field for g in accuracy if by_stratum(spec) or (g.gate.margin is not None and has_pairs(spec))}
    return Wish(
        url=url,
        gateway=spec.gateway_ref,
        wanted=Wanted(
            rollout_key(owner.uid),
            ledger.version,
            edges(spec),
            cost_limits(spec),
            custom,
            hourly_fields=tuple(sorted(bets)),
            sure_fields=_sure_fields(spec),
        ),
        shadow=by_stratum(spec) or any(step.shadow for step in spec.steps),
        satisfaction=any(g.metric == "satisfaction" for g in spec.gates),
        doubles=labels.double_share > 0 and any(g.gate.limit is not None for g in accuracy),
        turn=Turn(str(Key(MODEL_ROLLOUTS, owner.namespace, owner.name)), to_seconds(spec.analysis.interval)),
    )


def _all_ready(deployment: Object) -> bool:
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    return all(int(status.get(name) or 0) >= wanted for name in ("readyReplicas", "updatedReplicas"))


def _sure_fields(spec: ModelRolloutSpec) -> tuple[str, ...]:
    gate = governing_gate(spec) if spec.fallback.auto_confidence else None
    return (gate.field,) if gate is not None else ()


def _gateway_config(config_map: Object | None) -> GatewayConfig | str | None:
    if config_map is None:
        return None
    name, text = config_map["metadata"]["name"], (config_map.get("data") or {}).get(GATEWAY_KEY)
    if not text:
        return f"ConfigMap {name} has no key {GATEWAY_KEY}"
    config = _read_config(text)
    return config if isinstance(config, GatewayConfig) else f"ConfigMap {name}, key {GATEWAY_KEY}: {config}"


def _read_config(text: str) -> GatewayConfig | str:
    json_text, problem = _as_json(text)
    return problem or GatewayConfig.model_validate_json(json_text)


@lru_cache(maxsize=4096)
def _as_json(text: str) -> tuple[str, str]:
    """(JSON, or why it is none). Reading YAML costs more than the rest of a pass, and this text hardly ever changes."""
    try:
        return GatewayConfig.model_validate(yaml.safe_load(text)).model_dump_json(by_alias=True), ""
    except (ValidationError, yaml.YAMLError) as error:
        return "", _short(error)


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}"[:512]
    return str(error).replace("\n", " ")[:512]


def _neighbour(obj: Object) -> Neighbour:
    metadata = obj["metadata"]
    return Neighbour(
        name=str(metadata["name"]),
        uid=str(metadata["uid"]),
        finish=(obj.get("status") or {}).get("finish"),
        deleting=bool(metadata.get("deletionTimestamp")),
    )
