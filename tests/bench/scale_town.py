"""What many rollouts stand on, played by one process: gateway pods that follow their routes, and their metrics.

Objects are real ones on a real API server; Prometheus is a real one that scrapes `/metrics` here. Only the gateways, the
kubelet and the candidates' engines are played: their traffic is arithmetic on the route in force, the same in every run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import yaml
from aiohttp import web

from cutover.contract import (
    BREAKER_OPEN,
    COST,
    DURATION,
    LABEL_GATEWAY,
    LATENCY_EDGES_SECONDS,
    OUTCOMES,
    PATH_ROUTE_REPORT,
    REQUESTS,
    ROUTE_GENERATION,
    ROUTE_KEY,
    gateway_config_map,
)
from cutover_operator.access import Access
from cutover_operator.kube import KubeClient
from cutover_operator.port import DEPLOYMENTS, MODEL_ROLLOUTS, KubeError, Object
from fakes.rollout_town import CONFIG

PER_NAMESPACE = 25
AT_ONCE = 16
CANDIDATE_PER_SECOND = 2.0
CONTROL_PER_SECOND = 18.0
ERRORS_OF_A_BREACH = 1000
SPEC: dict[str, Any] = {
    "candidate": {"model": {"uri": "claim://models/damage-v1", "version": "damage-v1"}},
    "serving": {"engine": "builtin"},
    "steps": [{"weight": 10, "minDuration": "1d"}, {"weight": 100, "minDuration": "1d"}],
    "gates": [
        {"metric": "latency", "limit": 2.0},
        {"metric": "errorRate", "limit": 0.05},
        {"metric": "cost", "limit": 0.01},
    ],
    "analysis": {"interval": "10s"},
}
"""Three metrics, a look every ten seconds, and a step that lasts for the whole bench."""


@dataclass
class Gateway:
    """One gateway pod: the route it serves and what it has counted."""

    index: int
    route: dict[str, Any] | None = None
    counts: dict[str, float] = field(default_factory=dict)
    breached_at: float | None = None
    """Time of the scrape that showed the breach."""
    breach_next: bool = False
    named: tuple[dict[str, Any] | None, list[str]] | None = None
    """The route for which the names of its series were made, and these."""

    @property
    def namespace(self) -> str:
        return f"team-{self.index // PER_NAMESPACE}"

    @property
    def name(self) -> str:
        return f"gateway-{self.index}"

    @property
    def rollout(self) -> str:
        return f"cut-{self.index}"

    @property
    def address(self) -> str:
        return f"127.{10 + self.index // 62500}.{self.index // 250 % 250}.{1 + self.index % 250}"


@dataclass
class Fleet:
    """All gateways of the bench. `serve` listens, `follow` keeps up with routes and Deployments."""

    size: int
    gateways: list[Gateway] = field(init=False)
    port: int = 0
    reports_asked: int = 0
    scrapes: int = 0
    zeroed: dict[str, float] = field(default_factory=dict)
    """Gateway -> when its route first said weight 0 after a breach."""
    _served_at: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.gateways = [Gateway(index) for index in range(self.size)]
        self.by_name = {one.name: one for one in self.gateways}
        self.by_address = {one.address: one for one in self.gateways}

    # ------------------------------------------------------------ HTTP
    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get(PATH_ROUTE_REPORT, self._report)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        # Every gateway pod has an address of its own in 127.0.0.0/8.
        site = web.TCPSite(runner, "0.0.0.0", 0)
        await site.start()
        self.port = int(runner.addresses[0][1])
        try:
            yield
        finally:
            await runner.cleanup()

    async def _report(self, request: web.Request) -> web.Response:
        self.reports_asked += 1
        assert request.transport is not None
        gateway = self.by_address[request.transport.get_extra_info("sockname")[0]]
        route = gateway.route or {}
        return web.json_response(
            {"gateway": gateway.name, "pod": f"{gateway.name}-0", "generation": route.get("generation", 0)}
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        self.scrapes += 1
        now = time.time()
        elapsed, self._served_at = now - self._served_at, now
        lines: list[str] = []
        for gateway in self.gateways:
            _answer(gateway, elapsed, now)
            lines.extend(_exposed(gateway))
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")

    # ------------------------------------------------------------ the cluster
    async def create(self, kube: KubeClient) -> None:
        namespaces = sorted({one.namespace for one in self.gateways})
        for name in namespaces:
            await _raw(kube, "POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            account = f"/api/v1/namespaces/{name}/serviceaccounts"
            await _raw(kube, "POST", account, {"metadata": {"name": "default"}})
        await _many(self._create_one(kube, gateway) for gateway in self.gateways)

    async def _create_one(self, kube: KubeClient, gateway: Gateway) -> None:
        where = {"namespace": gateway.namespace, "labels": {LABEL_GATEWAY: gateway.name}}
        text = yaml.safe_dump({**CONFIG, "name": gateway.name})
        await kube.create(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": gateway_config_map(gateway.name), **where},
                "data": {"gateway.yaml": text},
            }
        )
        ports = [{"name": "ops", "containerPort": self.port}]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{gateway.name}-0", **where},
            "spec": {"containers": [{"name": "gateway", "image": "server:1", "ports": ports}]},
        }
        await kube.create(pod)
        status = {
            "podIP": gateway.address,
            "podIPs": [{"ip": gateway.address}],
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await _merge(
            kube, f"/api/v1/namespaces/{gateway.namespace}/pods/{gateway.name}-0/status", {"status": status}
        )
        await kube.create(
            {
                "apiVersion": MODEL_ROLLOUTS.api_version,
                "kind": MODEL_ROLLOUTS.kind,
                "metadata": {"name": gateway.rollout, "namespace": gateway.namespace},
                "spec": {**SPEC, "gatewayRef": gateway.name},
            }
        )

    async def follow(self, kube: KubeClient, access: Access) -> None:
        """As gateways follow their routes, and a kubelet starts what a Deployment asks for. Ends by cancellation."""
        async with asyncio.TaskGroup() as both:
            both.create_task(_watched(access, "/api/v1/configmaps", LABEL_GATEWAY, self._routed))
            both.create_task(
                _watched(access, "/apis/apps/v1/deployments", "", lambda obj: self._deployed(kube, obj))
            )

    async def _routed(self, obj: Object) -> None:
        text = (obj.get("data") or {}).get(ROUTE_KEY)
        if text is None:
            return
        gateway = self.by_name[obj["metadata"]["labels"][LABEL_GATEWAY]]
        gateway.route = json.loads(text)
        stopped = gateway.route["weightBasisPoints"] == 0
        if stopped and gateway.breached_at is not None and gateway.name not in self.zeroed:
            self.zeroed[gateway.name] = time.time()

    async def _deployed(self, kube: KubeClient, obj: Object) -> None:
        meta, replicas = obj["metadata"], obj["spec"]["replicas"]
        if (obj.get("status") or {}).get("observedGeneration") == meta["generation"]:
            return
        status = {
            "observedGeneration": meta["generation"],
            "replicas": replicas,
            "readyReplicas": replicas,
            "updatedReplicas": replicas,
            "availableReplicas": replicas,
        }
        path = f"{DEPLOYMENTS.root}/namespaces/{meta['namespace']}/deployments/{meta['name']}/status"
        await _merge(kube, path, {"status": status})


def _answer(gateway: Gateway, elapsed: float, now: float) -> None:
    """Serve the traffic since the last scrape under the route in force."""
    route, counts = gateway.route, gateway.counts
    if route is None or route.get("candidate") is None or not route["weightBasisPoints"]:
        return
    for arm, rate, usd in (("candidate", CANDIDATE_PER_SECOND, 0.004), ("control", CONTROL_PER_SECOND, 0.04)):
        n = rate * elapsed
        counts[f"{arm}/ok"] = counts.get(f"{arm}/ok", 0.0) + n * 0.995
        counts[f"{arm}/error"] = counts.get(f"{arm}/error", 0.0) + n * 0.005
        counts[f"{arm}/usd"] = counts.get(f"{arm}/usd", 0.0) + n * usd
    if gateway.breach_next:
        gateway.breach_next, gateway.breached_at = False, now
        counts["candidate/error"] += ERRORS_OF_A_BREACH


def _exposed(gateway: Gateway) -> Iterable[str]:
    """The series a gateway pod exports, as the contract has them. Their names are made once for each route: this process
    has its part of two cores, too."""
    route, counts = gateway.route, gateway.counts
    if gateway.named is None or gateway.named[0] is not route:
        gateway.named = route, _names(gateway)
    values: list[float] = [(route or {}).get("generation", 0), 0, 0]
    if len(gateway.named[1]) > len(values):
        for arm in ("candidate", "control"):
            done = [int(counts.get(f"{arm}/{outcome}", 0.0)) for outcome in OUTCOMES]
            answered = int(counts.get(f"{arm}/ok", 0.0)) + int(counts.get(f"{arm}/error", 0.0))
            fast = int(answered * 0.99)
            values += done
            values += [0 if edge < 0.1 else fast if edge < 5 else answered for edge in LATENCY_EDGES_SECONDS]
            values += [answered, answered, round(counts.get(f"{arm}/usd", 0.0), 6)]
    return map("%s %s".__mod__, zip(gateway.named[1], values, strict=True))


def _names(gateway: Gateway) -> list[str]:
    route = gateway.route
    place = f'gateway="{gateway.name}",instance="{gateway.address}:9090",pod="{gateway.name}-0"'
    names = [f"{ROUTE_GENERATION}{{{place}}}"]
    names += [f'{BREAKER_OPEN}{{{place},arm="{arm}"}}' for arm in ("candidate", "control")]
    if route is None or route.get("candidate") is None:
        return names
    for arm in ("candidate", "control"):
        own = f'{place},rollout="{route["rollout"]}",arm="{arm}",version="{route[arm]["version"]}"'
        names += [f'{REQUESTS}{{{own},outcome="{outcome}"}}' for outcome in OUTCOMES]
        edges = [f"{edge:.1f}" if edge >= 0.1 else f"{edge}" for edge in LATENCY_EDGES_SECONDS]
        names += [f'{DURATION}_bucket{{{own},le="{edge}"}}' for edge in (*edges, "+Inf")]
        names += [f"{DURATION}_count{{{own}}}", f"{COST}{{{own}}}"]
    return names


# ---------------------------------------------------------------- the API server, for what the port has no verb for
async def _raw(kube: KubeClient, method: str, path: str, body: Object, content_type: str = "") -> None:
    await kube._json(method, path, body, content_type=content_type)


async def _merge(kube: KubeClient, path: str, body: Object) -> None:
    await _raw(kube, "PATCH", path, body, "application/merge-patch+json")


async def _many(work: Iterable[Awaitable[None]]) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(job: Awaitable[None]) -> None:
        async with limit:
            await job

    await asyncio.gather(*(one(job) for job in work))


async def _watched(access: Access, path: str, selector: str, changed: Any) -> None:
    """Call `changed` with every object as it is, and again whenever it changes."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    tls: ssl.SSLContext | bool = access.tls or True
    chosen = f"labelSelector={quote(selector)}&" if selector else ""
    async with aiohttp.ClientSession(
        headers=access.headers(), timeout=timeout, read_bufsize=2**22
    ) as session:
        while True:
            # Without a resourceVersion a watch begins with what there is.
            url = f"{access.server}{path}?{chosen}watch=true"
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url, ssl=tls) as answer:
                    async for line in answer.content:
                        event = json.loads(line)
                        if event["type"] in ("ADDED", "MODIFIED"):
                            with contextlib.suppress(KubeError):
                                await changed(event["object"])
