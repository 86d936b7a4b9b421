"""JSON log lines on standard output. Nothing a picture or a message holds is ever given to it."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Any

_LOCK = threading.Lock()


def log(event: str, level: str = "info", **fields: Any) -> None:
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "event": event,
        **fields,
    }
    with _LOCK:
        sys.stdout.write(json.dumps(entry, default=str) + "\n")
        sys.stdout.flush()


class JsonHandler(logging.Handler):
    """Lets what the libraries log come out in the same shape."""

    def emit(self, record: logging.LogRecord) -> None:
        log("library", record.levelname.lower(), logger=record.name, message=record.getMessage()[:2000])


def capture_library_logs() -> None:
    root = logging.getLogger()
    root.handlers = [JsonHandler()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
