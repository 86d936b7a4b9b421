"""`cutover-gateway`: reads the environment and serves until it is told to stop."""

from __future__ import annotations

import os
import sys

import uvloop

from cutover_server.gateway.log_lines import start_logging
from cutover_server.gateway.process import serve_until_told
from cutover_server.gateway.settings import SettingsError, read_settings


def main() -> None:
    start_logging(os.environ.get("CUTOVER_LOG_LEVEL", "info"))
    try:
        settings = read_settings(os.environ)
    except SettingsError as problem:
        print(f"cutover-gateway: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    uvloop.run(serve_until_told(settings))


if __name__ == "__main__":
    main()
