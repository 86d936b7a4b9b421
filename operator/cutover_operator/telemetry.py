"""The operator's own metrics and its JSON log lines. Labels are kinds and outcomes, never names of objects."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

PASS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_JSON_TYPES = (str, int, float, bool)


class Telemetry:
    """One registry per operator, so that several live side by side in tests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.passes = Counter(
            "cutover_operator_passes_total",
            "Passes over an object by how they ended: ok, unchanged, gone, conflict, error.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self.pass_seconds = Histogram(
            "cutover_operator_pass_duration_seconds",
            "Time of one pass: gather, decide, commit, act.",
            ["kind"],
            buckets=PASS_SECONDS,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "cutover_operator_queue_depth", "Objects that wait for a pass.", registry=self.registry
        )
        self.leader = Gauge(
            "cutover_operator_leader", "1 while this replica may write.", registry=self.registry
        )
        self.status_writes = Counter(
            "cutover_operator_status_writes_total",
            "Statuses written because they changed.",
            ["kind"],
            registry=self.registry,
        )
        self.errors = Counter(
            "cutover_operator_errors_total",
            "Passes that failed, by the class of the error.",
            ["kind", "error"],
            registry=self.registry,
        )
        self.watch_events = Counter(
            "cutover_operator_watch_events_total",
            "Changes seen by the watches.",
            ["kind"],
            registry=self.registry,
        )

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, what was given as `extra`, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and (value is None or isinstance(value, _JSON_TYPES)):
                line[name] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # The framework speaks of every object and request it sees; only its troubles are ours.
    for noisy in ("kopf", "aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "DEBUG" else logging.WARNING)
