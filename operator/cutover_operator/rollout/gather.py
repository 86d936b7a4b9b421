"""Looks at the cluster, the gateways and Prometheus for one pass. Reads only; decides nothing."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import lru_cache
from typing import Protocol

import yaml
from pydantic import ValidationError

from cutover.api.modelrollout import ModelRollout, ModelRolloutSpec
from cutover.contract import (
    GATEWAY_KEY,
    LABEL_GATEWAY,
    gateway_config_map,
    rollout_key,
    route_config_map,
)
from cutover.route import GatewayConfig, Route
from cutover_operator.evidence.folding import Wanted
from cutover_operator.evidence.ledger import Ledger, LedgerError
from cutover_operator.evidence.ledger_map import from_config_map, ledger_name
from cutover_operator.evidence.reading import Samples, Wish, read_evidence
from cutover_operator.evidence.samples import Unavailable
from cutover_operator.origins import is_allowed
from cutover_operator.port import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    MODEL_ROLLOUTS,
    PODS,
    SERVICES,
    TRAINING_RUNS,
    Object,
    Reader,
)
from cutover_operator.rollout.candidate import short_name
from cutover_operator.rollout.gates import cost_limit, edges, named_gates
from cutover_operator.rollout.report_map import report_name
from cutover_operator.rollout.resources import Owner, selector_text
from cutover_operator.rollout.routing import holder_of, read_route
from cutover_operator.rollout.world import Evidence, GatewayPod, Neighbour, Site, Unreadable, World


class Gateways(Protocol):
    async def ask(self, pods: list[Object]) -> tuple[GatewayPod, ...]: ...


class Watchtower:
    """Everything a pass reads, over kept connections."""

    def __init__(self, kube: Reader, samples: Samples, gateways: Gateways, site: Site) -> None:
        self._kube = kube
        self._samples = samples
        self._gateways = gateways
        self._site = site

    async def look(self, namespace: str, name: str, now: datetime) -> World | Unreadable | None:
        """The world of a rollout; None when there is no such object. Raises KubeError."""
        obj = await self._kube.get(MODEL_ROLLOUTS, namespace, name)
        if obj is None:
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
        config, route_map, ledger_map, deployment, service = await asyncio.gather(
            kube.get(CONFIG_MAPS, namespace, gateway_config_map(gateway)),
            kube.get(CONFIG_MAPS, namespace, route_config_map(gateway)),
            kube.get(CONFIG_MAPS, namespace, ledger_name(name)),
            kube.get(DEPLOYMENTS, namespace, child),
            kube.get(SERVICES, namespace, child),
        )
        pods, gateway_pods = await asyncio.gather(
            kube.list(PODS, namespace, selector_text(owner)),
            kube.list(PODS, namespace, f"{LABEL_GATEWAY}={gateway}"),
        )
        route = read_route(route_map)
        rollouts = await self._neighbours(owner, route_map, route)
        training_run = await kube.get(TRAINING_RUNS, namespace, run.name) if run is not None else None
        ended = rollout.status.finish is not None
        report_map = await kube.get(CONFIG_MAPS, namespace, report_name(name)) if ended else None
        known = [] if config is not None else await kube.list(CONFIG_MAPS, namespace, LABEL_GATEWAY)
        reports, evidence = await asyncio.gather(
            self._gateways.ask(gateway_pods), self._evidence(owner, spec, rollout, ledger_map, now)
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
        )

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

    async def _evidence(
        self,
        owner: Owner,
        spec: ModelRolloutSpec,
        rollout: ModelRollout,
        config_map: Object | None,
        now: datetime,
    ) -> Evidence:
        try:
            stored = from_config_map(config_map, owner.uid)
        except LedgerError as error:
            return Evidence(config_map=config_map, damaged=str(error))
        if stored is None or rollout.status.finish not in (None, "Promoted"):
            return Evidence(stored=stored, config_map=config_map, current=stored)
        url = spec.analysis.prometheus.url or self._site.prometheus_url
        allowed = (*self._site.allowed_urls, self._site.prometheus_url)
        if not url or not is_allowed(url, allowed):
            problem = Unavailable(
                "NotAllowed", f"analysis.prometheus.url {url!r} is not in the operator's allow list"
            )
            return Evidence(stored, config_map, current=stored, metrics=problem, labels=problem)
        read = await read_evidence(self._samples, _wish(owner, spec, stored, url), stored, now.timestamp())
        return Evidence(
            stored=stored,
            config_map=config_map,
            current=read.current,
            metrics=read.metrics,
            labels=read.labels,
            scraped_replicas=read.scraped_replicas,
            requests_per_second=read.requests_per_second,
            control_down=read.control_down,
        )


def _wish(owner: Owner, spec: ModelRolloutSpec, ledger: Ledger, url: str) -> Wish:
    custom = tuple(
        (g.name, g.gate.bad, g.gate.total)
        for g in named_gates(spec)
        if g.metric == "custom" and g.gate.bad and g.gate.total
    )
    return Wish(
        url=url,
        gateway=spec.gateway_ref,
        wanted=Wanted(rollout_key(owner.uid), ledger.version, edges(spec), cost_limit(spec), custom),
        shadow=any(step.shadow for step in spec.steps),
        satisfaction=any(g.metric == "satisfaction" for g in spec.gates),
    )


def _gateway_config(config_map: Object | None) -> GatewayConfig | str | None:
    if config_map is None:
        return None
    name, text = config_map["metadata"]["name"], (config_map.get("data") or {}).get(GATEWAY_KEY)
    if not text:
        return f"ConfigMap {name} has no key {GATEWAY_KEY}"
    config = _read_config(text)
    return config if isinstance(config, GatewayConfig) else f"ConfigMap {name}, key {GATEWAY_KEY}: {config}"


@lru_cache(maxsize=64)
def _read_config(text: str) -> GatewayConfig | str:
    """Reading YAML costs more than the rest of a pass, and this text hardly ever changes."""
    try:
        return GatewayConfig.model_validate(yaml.safe_load(text))
    except (ValidationError, yaml.YAMLError) as error:
        return _short(error)


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
