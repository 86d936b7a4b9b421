"""A small town on a clock for rollout stories: an in-memory cluster, simulated traffic, people who label, a Prometheus.

Nothing here sleeps or listens: a tick moves the clock, serves the traffic of that time under the route in force, and
scrapes. The operator's real loop, gather and decide run against it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml

from cutover.contract import (
    BREAKER_OPEN,
    COST,
    DURATION,
    LABELS_MATURED,
    LATENCY_EDGES_SECONDS,
    REQUESTS,
    ROLLOUT_NONE,
    ROUTE_GENERATION,
    ROUTE_KEY,
    SHADOW_DURATION,
    SHADOW_PAIRS,
)
from cutover.route import Route, RouteReport
from cutover_operator.evidence.samples import Answer, Asked, Sample, Series, Unavailable
from cutover_operator.loop import Loop
from cutover_operator.plan import Key, Plan
from cutover_operator.port import CONFIG_MAPS, DEPLOYMENTS, MODEL_ROLLOUTS, Conflict, Kube, Object
from cutover_operator.rollout.decide import decide
from cutover_operator.rollout.gather import Watchtower
from cutover_operator.rollout.resources import Images
from cutover_operator.rollout.world import GatewayPod, Site, Unreadable, World
from fakes.kube import FakeKube

NAMESPACE = "claims"
GATEWAY = "assessor"
START = 1_900_000_000.0
SITE = Site(
    prometheus_url="http://prometheus:9090",
    allowed_urls=("http://prometheus:9090",),
    images=Images("engine:1", "vllm:1", "tgi:1"),
)
TASK = {
    "name": "building-damage",
    "systemPrompt": "s",
    "userPrompt": "u",
    "answerSchema": {
        "type": "object",
        "properties": {"damageType": {"enum": ["crack", "mould"]}, "severity": {"enum": ["minor", "severe"]}},
    },
    "scoredFields": ["damageType", "severity"],
}
CONFIG = {
    "name": GATEWAY,
    "task": TASK,
    "providers": {
        "gpt-4": {"baseUrl": "http://gpt4/v1", "model": "gpt-4o", "price": {"usdPerRequest": 0.04}},
        "backup": {"baseUrl": "http://backup/v1", "model": "gpt-4o-mini"},
    },
    "defaultProvider": "gpt-4",
}
GATES = [
    {"metric": "accuracy", "limit": 0.90},
    {"metric": "latency", "limit": 2.0},
    {"metric": "errorRate", "limit": 0.05},
    {"metric": "cost", "limit": 0.01},
]
STEPS = [
    {"shadow": 100, "minDuration": "60s", "minRequests": 50},
    {"weight": 10, "minDuration": "60s", "minRequests": 50},
    {"weight": 25, "minDuration": "60s", "minRequests": 50},
    {"weight": 50, "minDuration": "60s", "minRequests": 50},
    {"weight": 100, "minDuration": "60s", "minRequests": 50},
]


@dataclass
class Behaviour:
    """How an arm answers, from now on."""

    accuracy: float = 0.95
    errors: float = 0.005
    slow: float = 0.01
    cost_usd: float = 0.004


def rollout_spec(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "gatewayRef": GATEWAY,
        "candidate": {"model": {"uri": "claim://models/damage-v1", "version": "damage-v1"}},
        "serving": {"engine": "builtin", "startDeadline": "5m"},
        "steps": deepcopy(STEPS),
        "gates": deepcopy(GATES),
        "analysis": {"interval": "10s", "labels": {"perHour": 100000, "deadline": "60s"}},
    }
    spec.update(changes)
    return spec


@dataclass
class Town:
    """The simulated surroundings. `kube` holds the objects; the rest answers what the operator asks."""

    kube: FakeKube = field(default_factory=FakeKube)
    seed: int = 0
    requests_per_second: float = 20.0
    tick_seconds: float = 10.0
    pods: int = 2
    now: float = START
    control: Behaviour = field(default_factory=lambda: Behaviour(accuracy=0.93, cost_usd=0.04))
    candidate: Behaviour = field(default_factory=Behaviour)
    prometheus_down: str = ""
    scraping: bool = True
    control_breaker_open: bool = False
    pods_stuck: bool = False
    """Gateway pods keep the route they have."""
    candidate_starts: bool = True
    samples_kept: int = 100

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.counters: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self.history: dict[tuple[str, tuple[tuple[str, str], ...]], list[Sample]] = defaultdict(list)
        self.due_labels: list[tuple[float, str, str, str, str, float]] = []
        self.in_force: dict[str, Route] = {}
        self.names = {f"gw-{i}": f"gw-{i}" for i in range(self.pods)}
        self.kube.clock = lambda: self.clock
        self.decisions: list[tuple[World | Unreadable, Plan]] = []
        self.restart_operator(self.kube)

    @property
    def clock(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)

    # ------------------------------------------------------------ objects
    async def prepare(self) -> None:
        await self.kube.create(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": f"{GATEWAY}-config",
                    "namespace": NAMESPACE,
                    "labels": {"cutover.dev/gateway": GATEWAY},
                },
                "data": {"gateway.yaml": yaml.safe_dump(CONFIG)},
            }
        )

    async def submit(self, name: str = "cut", **changes: Any) -> Key:
        await self.kube.create(
            {
                "apiVersion": "cutover.dev/v1alpha1",
                "kind": "ModelRollout",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": rollout_spec(**changes),
            }
        )
        return Key(MODEL_ROLLOUTS, NAMESPACE, name)

    def restart_operator(self, kube: Kube) -> None:
        """A new process: nothing in memory is left of the old one."""
        self.loop = Loop(
            kube,
            [_Reconciler(Watchtower(kube, self, self, SITE, lambda: self.now), self.decisions)],
            lambda: self.clock,
        )

    async def run_pass(self, *names: str) -> None:
        """One pass per rollout; a lost race is left to the next one, as the queue does."""
        for name in names or ("cut",):
            try:
                await self.loop.run_pass(Key(MODEL_ROLLOUTS, NAMESPACE, name))
            except Conflict:
                continue

    def edit(self, name: str = "cut", **changes: Any) -> None:
        self.kube.edit(MODEL_ROLLOUTS, NAMESPACE, name, lambda obj: obj["spec"].update(changes))

    async def status(self, name: str = "cut") -> dict[str, Any]:
        obj = await self.kube.get(MODEL_ROLLOUTS, NAMESPACE, name)
        assert obj is not None
        return dict(obj.get("status") or {})

    async def route(self) -> Route | None:
        config_map = await self.kube.get(CONFIG_MAPS, NAMESPACE, f"{GATEWAY}-route")
        return None if config_map is None else Route.model_validate(json.loads(config_map["data"][ROUTE_KEY]))

    # ------------------------------------------------------------ what the operator asks
    async def ask(self, pods: list[Object]) -> tuple[GatewayPod, ...]:
        reports = []
        for name in self.names:
            route = self.in_force.get(name)
            reports.append(
                GatewayPod(
                    name,
                    RouteReport(
                        gateway=GATEWAY, pod=name, generation=route.generation if route is not None else 0
                    ),
                )
            )
        return tuple(reports)

    async def read(
        self, url: str, asked: Asked, window_seconds: int, again_in_seconds: float
    ) -> dict[str, Answer | Unavailable]:
        wanted = {metric: metric for metric in asked.metrics}
        wanted |= {selector: re.split(r"[{\[]", selector)[0] for selector in asked.custom}
        return {key: self._recent(metric, window_seconds) for key, metric in wanted.items()}

    def _recent(self, metric: str, window_seconds: int) -> Answer | Unavailable:
        if self.prometheus_down:
            return Unavailable("Unreachable", self.prometheus_down)
        found = []
        for (name, labels), samples in self.history.items():
            if name != metric:
                continue
            recent = tuple(s for s in samples if s[0] >= self.now - window_seconds)
            if recent:
                found.append(Series(dict(labels), recent))
        return Answer(tuple(found), self.now)

    # ------------------------------------------------------------ time
    async def tick(self) -> None:
        self.now += self.tick_seconds
        await self._pods_start()
        if not self.pods_stuck:
            route = await self.route()
            for name in self.names:
                if route is not None:
                    self.in_force[name] = route
        for name in self.names:
            self._serve(name)
        self._label()
        if self.scraping:
            self._scrape()

    async def _pods_start(self) -> None:
        for deployment in self.kube.all(DEPLOYMENTS, NAMESPACE):
            ready = deployment["spec"]["replicas"] if self.candidate_starts else 0
            status = {
                "observedGeneration": deployment["metadata"].get("generation", 1),
                "readyReplicas": ready,
                "updatedReplicas": deployment["spec"]["replicas"],
            }
            if deployment.get("status") != status:
                self.kube.set_status(DEPLOYMENTS, NAMESPACE, deployment["metadata"]["name"], status)

    def restart_gateway(self, name: str) -> None:
        """The pod's counters begin at zero again under the same name."""
        for key in list(self.counters):
            if dict(key[1]).get("instance") == name:
                self.counters[key] = 0.0

    def _add(self, metric: str, amount: float, **labels: str) -> None:
        self.counters[(metric, tuple(sorted(labels.items())))] += amount

    def _serve(self, pod: str) -> None:
        route = self.in_force.get(pod)
        self.counters[(ROUTE_GENERATION, (("gateway", GATEWAY), ("instance", pod)))] = (
            route.generation if route is not None else 0
        )
        self.counters[(BREAKER_OPEN, (("arm", "control"), ("gateway", GATEWAY), ("instance", pod)))] = float(
            self.control_breaker_open
        )
        if route is None or route.rollout == ROLLOUT_NONE or route.candidate is None:
            return
        n = int(self.random.poisson(self.requests_per_second * self.tick_seconds / len(self.names)))
        mine = int(self.random.binomial(n, route.weight_basis_points / 10000))
        for arm, count, behaviour, version in (
            ("candidate", mine, self.candidate, route.candidate.version),
            ("control", n - mine, self.control, route.control.version),
        ):
            self._answer(pod, route, arm, count, behaviour, version)
        mirrored = int(self.random.binomial(n - mine, route.shadow_basis_points / 10000))
        if route.shadow_basis_points:
            self._mirror(pod, route, mirrored)

    def _answer(self, pod: str, route: Route, arm: str, n: int, how: Behaviour, version: str) -> None:
        own = {"gateway": GATEWAY, "rollout": route.rollout, "arm": arm, "version": version, "instance": pod}
        errors = int(self.random.binomial(n, how.errors))
        for outcome, count in (("ok", n - errors), ("error", errors), ("deferred", 0), ("rejected", 0)):
            self._add(REQUESTS, count, **own, outcome=outcome)
        slow = int(self.random.binomial(n, how.slow))
        for edge in LATENCY_EDGES_SECONDS:
            self._add(DURATION, n - slow if edge <= 4 else n, **own, le=f"{edge:.1f}")
        self._add(DURATION, n, **own, le="+Inf")
        self._add(COST, n * how.cost_usd, **own)
        self._sample(route, arm, n - errors, how.accuracy, version)

    def _mirror(self, pod: str, route: Route, n: int) -> None:
        assert route.candidate is not None
        own = {
            "gateway": GATEWAY,
            "rollout": route.rollout,
            "version": route.candidate.version,
            "instance": pod,
        }
        errors = int(self.random.binomial(n, self.candidate.errors))
        for agreement, count in (("agree", n - errors), ("disagree", 0), ("invalid", 0), ("error", errors)):
            self._add(SHADOW_PAIRS, count, **own, agreement=agreement)
        slow = int(self.random.binomial(n, self.candidate.slow))
        for edge in LATENCY_EDGES_SECONDS:
            self._add(SHADOW_DURATION, n - slow if edge <= 4 else n, **own, le=f"{edge:.1f}")
        self._add(SHADOW_DURATION, n, **own, le="+Inf")
        self._sample(route, "candidate", n - errors, self.candidate.accuracy, route.candidate.version)

    def _sample(self, route: Route, arm: str, n: int, accuracy: float, version: str) -> None:
        chance = route.labels.probability.get("all", 0.0)
        drawn = int(self.random.binomial(max(n, 0), min(chance, 1.0)))
        right = int(self.random.binomial(drawn, accuracy))
        due = self.now + route.labels.deadline_seconds
        for result, count in (("right", right), ("wrong", drawn - right)):
            if count:
                self.due_labels.append((due, route.rollout, arm, version, result, float(count)))

    def _label(self) -> None:
        for due, rollout, arm, version, result, count in self.due_labels:
            if due > self.now:
                continue
            for replica in ("as-0", "as-1"):
                for field_name in ("overall", "damageType"):
                    self._add(
                        LABELS_MATURED,
                        count,
                        rollout=rollout,
                        arm=arm,
                        version=version,
                        field=field_name,
                        stratum="all",
                        result=result,
                        instance=replica,
                    )
        self.due_labels = [d for d in self.due_labels if d[0] > self.now]

    def _scrape(self) -> None:
        for key, value in self.counters.items():
            samples = self.history[key]
            samples.append((self.now, value))
            del samples[: -self.samples_kept]


class _Reconciler:
    resource = MODEL_ROLLOUTS

    def __init__(self, watchtower: Watchtower, decisions: list[tuple[World | Unreadable, Plan]]) -> None:
        self._watchtower = watchtower
        self._decisions = decisions

    async def gather(self, key: Key, now: datetime) -> World | Unreadable | None:
        return await self._watchtower.look(key.namespace, key.name, now)

    def decide(self, world: World | Unreadable, now: datetime) -> Plan:
        plan = decide(world, now)
        self._decisions.append((world, plan))
        return plan


async def started(**settings: Any) -> Town:
    """A town with the rollout `cut` submitted. Keyword `spec` changes its spec."""
    spec = settings.pop("spec", {})
    town = Town(**settings)
    await town.prepare()
    await town.submit(**spec)
    return town


async def run_until(
    town: Town,
    done: Callable[[dict[str, Any]], bool],
    ticks: int = 300,
    each: Callable[[dict[str, Any]], None] = lambda status: None,
) -> list[dict[str, Any]]:
    """Tick and run passes until `done(status)`; the statuses seen. Fails when it takes too long."""
    seen: list[dict[str, Any]] = []
    for _ in range(ticks):
        await town.tick()
        await town.run_pass()
        status = await town.status()
        if not seen or status != seen[-1]:
            seen.append(status)
        if done(status):
            return seen
        each(status)
    last = seen[-1]
    raise AssertionError(
        f"not done after {ticks} ticks: {last.get('phase')} {last.get('reason')} {last.get('message')}"
    )


def finished(status: dict[str, Any]) -> bool:
    return "finish" in status
