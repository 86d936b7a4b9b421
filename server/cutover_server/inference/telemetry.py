"""The engine's metrics. One registry a process; no label holds anything a caller wrote."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

GENERATION_EDGES_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)


class Telemetry:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cutover_engine_requests",
            "Chat requests by HTTP status; 499 when the client went away.",
            ["status"],
            registry=self.registry,
        )
        self.generation_seconds = Histogram(
            "cutover_engine_generation_seconds",
            "From the start of a request's batch to its last token.",
            buckets=GENERATION_EDGES_SECONDS,
            registry=self.registry,
        )
        self.busy_seconds = Counter(
            "cutover_engine_busy_seconds", "Compute seconds spent on answers.", registry=self.registry
        )
        self.tokens = Counter(
            "cutover_engine_tokens", "Tokens by kind: prompt or completion.", ["kind"], registry=self.registry
        )
        self.schema_checks = Counter(
            "cutover_engine_schema_checks",
            "Answers checked against the request's JSON schema, by result: valid or invalid.",
            ["result"],
            registry=self.registry,
        )
        self._gauge("cutover_engine_queued", "Requests admitted and not running yet.")
        self._gauge("cutover_engine_running", "Requests in the running batch.")
        self._gauge("cutover_engine_ready", "1 while requests are taken.")

    def _gauge(self, name: str, text: str) -> None:
        setattr(self, f"_{name}", Gauge(name, text, registry=self.registry))

    def watch(
        self, queued: Callable[[], float], running: Callable[[], float], ready: Callable[[], float]
    ) -> None:
        """Read the gauges from the engine at every scrape."""
        for name, source in (("queued", queued), ("running", running), ("ready", ready)):
            getattr(self, f"_cutover_engine_{name}").set_function(source)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
