"""The gateway's metrics, with the names and labels of the contract, in a registry of their own.

When a route takes force, every series its arms can touch exists at zero, so that the first increment is seen as one.
Series of rollouts long gone are removed: a gateway outlives many of them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from cutover import contract
from cutover.route import Arm, Route, label_probability
from cutover_server.gateway.settlement import FALLBACK_REASONS

DROP_REASONS = ("queue_full", "pressure", "no_control_answer", "drain")
REFUSALS = ("token", "size", "pressure", "format")
_ROLLOUTS_KEPT = 8
_Metric = TypeVar("_Metric", Counter, Histogram)

disable_created_metrics()  # type: ignore[no-untyped-call]


class GatewayMetrics:
    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        by_arm = ("gateway", "rollout", "arm", "version")
        edges = contract.LATENCY_EDGES_SECONDS

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        self._requests = counter(
            contract.REQUESTS, "Live requests by the arm that was chosen.", (*by_arm, "outcome")
        )
        self._duration = Histogram(
            contract.DURATION, "What the caller waited.", by_arm, buckets=edges, registry=self.registry
        )
        self._cost = counter(
            contract.COST, "Price of the answers of the chosen arm, fallback included.", by_arm
        )
        self._fallbacks = counter(
            contract.FALLBACKS, "Requests the fallback answered.", ("gateway", "rollout", "arm", "reason")
        )
        self._breaker_open = gauge(contract.BREAKER_OPEN, "1 while the arm is not asked.", ("gateway", "arm"))
        self._shadow_pairs = counter(
            contract.SHADOW_PAIRS,
            "Mirrored requests by agreement.",
            ("gateway", "rollout", "version", "agreement"),
        )
        self._shadow_duration = Histogram(
            contract.SHADOW_DURATION,
            "The candidate's time for mirrored requests.",
            ("gateway", "rollout", "version"),
            buckets=edges,
            registry=self.registry,
        )
        self._shadow_dropped = counter(
            contract.SHADOW_DROPPED, "Mirrored copies given up unasked.", ("gateway", "rollout", "reason")
        )
        self._confidence = counter(
            contract.CONFIDENCE,
            "The candidate's valid answers by confidence.",
            ("gateway", "rollout", "version", "bin"),
        )
        self._label_probability = gauge(
            contract.LABEL_PROBABILITY, "Share of requests people label.", ("gateway", "rollout", "stratum")
        )
        generation = gauge(contract.ROUTE_GENERATION, "Generation of the route in force.", ("gateway",))
        self._generation = generation.labels(gateway)
        self.spool_records = gauge(
            contract.SPOOL_RECORDS, "Records not yet in the database.", ("gateway",)
        ).labels(gateway)
        self.spool_full = counter(
            contract.SPOOL_FULL, "Records refused by a full spool.", ("gateway",)
        ).labels(gateway)
        self.dead_letters = counter(
            contract.SPOOL_DEAD_LETTERS, "Entries put aside as unfit.", ("gateway",)
        ).labels(gateway)
        self.route_refused = counter(
            contract.ROUTE_REFUSED, "Route documents refused as invalid.", ("gateway",)
        ).labels(gateway)
        self._refused = counter(
            contract.REQUESTS_REFUSED, "Requests turned away before an arm was chosen.", ("gateway", "reason")
        )
        for reason in REFUSALS:
            self._refused.labels(gateway, reason)
        self._rollouts: OrderedDict[str, None] = OrderedDict()
        self._children: dict[tuple[object, tuple[str, ...]], object] = {}
        """Series in use; forgotten at each route."""

    def render(self) -> bytes:
        return generate_latest(self.registry)

    # ------------------------------------------------------------------ events

    def request(self, route: Route, arm_label: str, arm: Arm, outcome: str) -> None:
        self._child(self._requests, route.rollout, arm_label, arm.version, outcome).inc()

    def answered(self, route: Route, arm_label: str, arm: Arm, seconds: float) -> None:
        self._child(self._duration, route.rollout, arm_label, arm.version).observe(seconds)

    def cost(self, route: Route, arm_label: str, arm: Arm, usd: float) -> None:
        self._child(self._cost, route.rollout, arm_label, arm.version).inc(usd)

    def fallback(self, route: Route, arm_label: str, reason: str) -> None:
        self._child(self._fallbacks, route.rollout, arm_label, reason).inc()

    def shadow_pair(self, route: Route, version: str, agreement: str, seconds: float) -> None:
        self._child(self._shadow_pairs, route.rollout, version, agreement).inc()
        self._child(self._shadow_duration, route.rollout, version).observe(seconds)

    def confidence(self, route: Route, version: str, confidence: float | None) -> None:
        sure = contract.confidence_bin(confidence)
        self._child(self._confidence, route.rollout, version, sure).inc()

    def shadow_dropped(self, route: Route, reason: str) -> None:
        self._child(self._shadow_dropped, route.rollout, reason).inc()

    def _child(self, metric: _Metric, *labels: str) -> _Metric:
        """The series of this gateway with these labels. Finding it anew costs more than counting."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(self.gateway, *labels)
        return cast(_Metric, child)

    def refused(self, reason: str) -> None:
        self._refused.labels(self.gateway, reason).inc()

    def breaker(self, arm_label: str, is_open: bool) -> None:
        self._breaker_open.labels(self.gateway, arm_label).set(is_open)

    # ------------------------------------------------------------------ a route takes force

    def route_in_force(self, route: Route) -> None:
        self._generation.set(route.generation)
        self._children.clear()
        self._begin_at_zero(route)
        self._rollouts[route.rollout] = None
        self._rollouts.move_to_end(route.rollout)
        while len(self._rollouts) > _ROLLOUTS_KEPT:
            self._forget(self._rollouts.popitem(last=False)[0])
        self._label_probability.clear()
        for stratum in route.labels.probability:
            self._label_probability.labels(self.gateway, route.rollout, stratum).set(
                label_probability(route, stratum)
            )

    def _begin_at_zero(self, route: Route) -> None:
        for arm_label, arm in arms_of(route):
            for outcome in contract.OUTCOMES:
                self._requests.labels(self.gateway, route.rollout, arm_label, arm.version, outcome)
            self._duration.labels(self.gateway, route.rollout, arm_label, arm.version)
            self._cost.labels(self.gateway, route.rollout, arm_label, arm.version)
            for reason in FALLBACK_REASONS:
                self._fallbacks.labels(self.gateway, route.rollout, arm_label, reason)
        if route.candidate is not None:
            for sure in contract.CONFIDENCE_BINS:
                self._confidence.labels(self.gateway, route.rollout, route.candidate.version, sure)
            for agreement in contract.AGREEMENTS:
                self._shadow_pairs.labels(self.gateway, route.rollout, route.candidate.version, agreement)
            self._shadow_duration.labels(self.gateway, route.rollout, route.candidate.version)
            for reason in DROP_REASONS:
                self._shadow_dropped.labels(self.gateway, route.rollout, reason)

    def _forget(self, rollout: str) -> None:
        for metric in (
            self._requests,
            self._duration,
            self._cost,
            self._fallbacks,
            self._shadow_pairs,
            self._shadow_duration,
            self._shadow_dropped,
            self._confidence,
        ):
            metric.remove_by_labels({"rollout": rollout})


def arms_of(route: Route) -> list[tuple[str, Arm]]:
    """The arms a request can be assigned to, with the value of the label `arm`."""
    arms = [("control", route.control)]
    if route.candidate is not None:
        arms.append(("candidate", route.candidate))
    return arms
