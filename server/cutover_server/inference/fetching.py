"""The `fetch` command: what an init container runs before an engine of any kind starts."""

from __future__ import annotations

from pathlib import Path

from cutover.contract import ExitCode
from cutover_server.inference.content import fetch
from cutover_server.inference.failure import report_failure
from cutover_server.inference.lines import log
from cutover_server.inference.settings import FetchSettings


def fetch_command(settings: FetchSettings) -> int:
    try:
        content = fetch(settings.uri, Path(settings.destination))
    except Exception as error:  # whatever a store's client raises ends as one log line and an exit code
        return report_failure(error)
    log("fetch_done", uri=settings.uri, destination=settings.destination, key=content.name)
    return ExitCode.DONE
