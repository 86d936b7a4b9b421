"""Says why the process cannot go on: in the log, in the pod's termination message, and as an exit code."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cutover.contract import TERMINATION_LIMIT_BYTES, TERMINATION_LOG, ExitCode
from cutover_server.inference.lines import log
from cutover_server.inference.refusal import Unservable


def report_failure(error: BaseException) -> int:
    """65 when trying again cannot help, else 1."""
    if isinstance(error, Unservable):
        reason, message, code = error.reason, error.message, ExitCode.BAD_INPUT
    else:
        reason, message, code = type(error).__name__, str(error)[:2000], ExitCode.FAILED
    log("not_servable", level="error", reason=reason, message=message, exit_code=int(code))
    with contextlib.suppress(OSError):
        path = Path(TERMINATION_LOG)
        if path.is_file():
            path.write_bytes(f"{reason}: {message}".encode()[:TERMINATION_LIMIT_BYTES])
    return int(code)
