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
    CONFIDENCE,
    COST,
    DURATION,
    LABEL_CONFIDENCE,
    LABEL_PAIRS,
    LABEL_POOL,
    LABEL_WEIGHT,
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
from cutover_operator.evidence.samples import Answer, Asked, Sample, Series, Unavailable, custom_key
from cutover_operator.loop import Loop
from cutover_operator.plan import Key, Plan
from cutover_operator.port import CONFIG_MAPS, DEPLOYMENTS, MODEL_ROLLOUTS, Conflict, Kube, Object
from cutover_operator.rollout.decide import decide
from cutover_operator.rollout.gather import Watchtower
from cutover_operator.rollout.resources import Images
from cutover_operator.rollout.world import GatewayPod, Site, Unreadable, World
from cutover_operator.turns import Turn
from fakes.kube import FakeKube

NAMESPACE = "claims"
GATEWAY = "assessor"
START = 1_900_000_000.0
SITE = Site(
    prometheus_url="http://prometheus:9090",
    allowed_urls=("http://prometheus:9090", "http://mlflow:5000"),
    images=Images("engine:1", "vllm:1", "tgi:1", trainer="trainer:1"),
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


AGREEING = 0.85
"""Share of mirrored requests on which both models say the same."""
LABELLED_FIELDS = ("overall", "damageType")


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
    sureness: tuple[tuple[str, float, float], ...] = ()
    """(bin of confidence, share of the candidate's answers, accuracy there); none: every answer is kept."""
    pods_stuck: bool = False
    """Gateway pods keep the route they have."""
    candidate_starts: bool = True
    samples_kept: int = 100

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.counters: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self.history: dict[tuple[str, tuple[tuple[str, str], ...]], list[Sample]] = defaultdict(list)
        self.due_labels: list[tuple[float, str, dict[str, str], float]] = []
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
            [TownReconciler(Watchtower(kube, self, self, SITE, lambda: self.now), self.decisions)],
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
        self, url: str, asked: Asked, window_seconds: int, turn: Turn, own_window_seconds: int
    ) -> dict[str, Answer | Unavailable]:
        found = {metric: self._recent(metric, window_seconds) for metric in asked.metrics}
        for selector in asked.custom:
            metric = re.split(r"[{\[]", selector)[0]
            found[custom_key(selector)] = self._recent(metric, own_window_seconds)
        return found

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
            self._mirror(pod, route, mirrored, route.labels.pair_probability)
        elif route.labels.mirrored:
            copied = int(self.random.binomial(n - mine, min(route.labels.pair_probability, 1.0)))
            self._mirror(pod, route, copied, 1.0)

    def _answer(self, pod: str, route: Route, arm: str, n: int, how: Behaviour, version: str) -> None:
        own = {"gateway": GATEWAY, "rollout": route.rollout, "arm": arm, "version": version, "instance": pod}
        errors = int(self.random.binomial(n, how.errors))
        kept, right = self._kept(route, pod, n - errors) if arm == "candidate" else (n - errors, 0.0)
        deferred = n - errors - kept
        for outcome, count in (("ok", kept), ("error", errors), ("deferred", deferred), ("rejected", 0)):
            self._add(REQUESTS, count, **own, outcome=outcome)
        slow = int(self.random.binomial(n, how.slow))
        for edge in LATENCY_EDGES_SECONDS:
            self._add(DURATION, n - slow if edge <= 4 else n, **own, le=f"{edge:.1f}")
        self._add(DURATION, n, **own, le="+Inf")
        self._add(COST, n * how.cost_usd + deferred * self.control.cost_usd, **own)
        by_stratum = route.labels.by_stratum and arm == "control"
        if not by_stratum:
            accuracy = right if arm == "candidate" and self.sureness else how.accuracy
            self._sample(route, arm, kept, accuracy, version, route.labels.probability.get("all", 0.0))

    def _mirror(self, pod: str, route: Route, n: int, pooled: float) -> None:
        """`pooled`: the chance of a copy to be in the pool that labels are drawn from."""
        assert route.candidate is not None
        version = route.candidate.version
        own = {"gateway": GATEWAY, "rollout": route.rollout, "version": version, "instance": pod}
        errors = int(self.random.binomial(n, self.candidate.errors))
        kept, right = self._kept(route, pod, n - errors, pooled)
        agree = int(self.random.binomial(kept, AGREEING))
        told = (
            ("agree", agree),
            ("disagree", kept - agree),
            ("deferred", n - errors - kept),
            ("error", errors),
        )
        for agreement, count in told:
            self._add(SHADOW_PAIRS, count, **own, agreement=agreement)
        slow = int(self.random.binomial(n, self.candidate.slow))
        for edge in LATENCY_EDGES_SECONDS:
            self._add(SHADOW_DURATION, n - slow if edge <= 4 else n, **own, le=f"{edge:.1f}")
        self._add(SHADOW_DURATION, n, **own, le="+Inf")
        if route.labels.by_stratum:
            self._draw(route, agree, kept - agree, pooled)
            return
        chance = min(pooled, 1.0)
        accuracy = right if self.sureness else self.candidate.accuracy
        self._sample(route, "candidate", kept, accuracy, version, chance)
        self._pair(route, int(self.random.binomial(kept, chance)))

    def _kept(self, route: Route, pod: str, n: int, chance: float | None = None) -> tuple[int, float]:
        """How many of the candidate's answers are sure enough, and how often those are right; all are counted by their
        confidence, and labelled with it."""
        assert route.candidate is not None
        if not self.sureness:
            return n, self.candidate.accuracy
        limit = route.fallback_rules.confidence or 0.0
        drawn = route.labels.probability.get("all", 0.0) if chance is None else min(chance, 1.0)
        counts = self.random.multinomial(n, [share for _, share, _ in self.sureness])
        kept = right = 0.0
        own = {"gateway": GATEWAY, "rollout": route.rollout, "instance": pod}
        version = route.candidate.version
        for (name, _, accuracy), count in zip(self.sureness, counts, strict=True):
            self._add(CONFIDENCE, float(count), **own, version=version, bin=name)
            labelled = int(self.random.binomial(count, drawn))
            good = int(self.random.binomial(labelled, accuracy))
            for result, n_labels in (("right", good), ("wrong", labelled - good)):
                for field_name in LABELLED_FIELDS:
                    self._later(
                        route,
                        LABEL_CONFIDENCE,
                        n_labels,
                        version=version,
                        field=field_name,
                        bin=name,
                        result=result,
                    )
            if float(name) >= limit:
                kept, right = kept + count, right + count * accuracy
        return int(kept), right / kept if kept else 0.0

    def _draw(self, route: Route, agree: int, disagree: int, pooled: float) -> None:
        """Pairs of both strata into the pool, and out of it to the people who label."""
        easy = min(0.99, self.candidate.accuracy + 0.05)
        hard = (self.candidate.accuracy - AGREEING * easy) / (1 - AGREEING)
        assert route.candidate is not None
        labels = {"version": route.candidate.version}
        for stratum, n, accuracy in (("agree", agree, easy), ("disagree", disagree, hard)):
            pool = int(self.random.binomial(n, min(pooled, 1.0)))
            chance = route.labels.probability[stratum] / route.labels.pair_probability
            drawn = int(self.random.binomial(pool, chance))
            right = int(self.random.binomial(drawn, min(max(accuracy, 0.0), 1.0)))
            self._later(route, LABEL_POOL, pool, **labels, stratum=stratum)
            self._later(route, LABEL_WEIGHT, drawn / chance, **labels, stratum=stratum)
            self._labelled(route, "candidate", labels["version"], stratum, right, drawn - right)

    def _pair(self, route: Route, n: int) -> None:
        assert route.candidate is not None
        mine, theirs = self.candidate.accuracy, self.control.accuracy
        shares = [mine * theirs, mine * (1 - theirs), (1 - mine) * theirs, (1 - mine) * (1 - theirs)]
        for result, count in zip(
            ("both", "candidate", "control", "neither"), self.random.multinomial(n, shares), strict=True
        ):
            for name in LABELLED_FIELDS:
                self._later(
                    route,
                    LABEL_PAIRS,
                    float(count),
                    version=route.candidate.version,
                    field=name,
                    result=result,
                )

    def _sample(self, route: Route, arm: str, n: int, accuracy: float, version: str, chance: float) -> None:
        drawn = int(self.random.binomial(max(n, 0), min(chance, 1.0)))
        right = int(self.random.binomial(drawn, accuracy))
        self._labelled(route, arm, version, "all", right, drawn - right)
        if arm == "candidate":
            for metric in (LABEL_POOL, LABEL_WEIGHT):
                self._later(route, metric, drawn, version=version, stratum="all")

    def _labelled(self, route: Route, arm: str, version: str, stratum: str, right: int, wrong: int) -> None:
        for result, count in (("right", right), ("wrong", wrong)):
            for name in LABELLED_FIELDS:
                self._later(
                    route,
                    LABELS_MATURED,
                    count,
                    arm=arm,
                    version=version,
                    field=name,
                    stratum=stratum,
                    result=result,
                )

    def _later(self, route: Route, metric: str, count: float, **labels: str) -> None:
        """A total of the database that grows when the label deadline of these requests passes."""
        if count:
            due = self.now + route.labels.deadline_seconds
            self.due_labels.append((due, metric, labels | {"rollout": route.rollout}, count))

    def _label(self) -> None:
        for due, metric, labels, count in self.due_labels:
            for replica in ("as-0", "as-1") if due <= self.now else ():
                self._add(metric, count, **labels, instance=replica)
        self.due_labels = [d for d in self.due_labels if d[0] > self.now]

    def _scrape(self) -> None:
        for key, value in self.counters.items():
            samples = self.history[key]
            samples.append((self.now, value))
            del samples[: -self.samples_kept]


class TownReconciler:
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
