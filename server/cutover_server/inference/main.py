"""`cutover-engine`: serve a model, fetch one into a cache, or prove one that another server serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cutover_server.inference.settings import FetchSettings, ProveSettings, read_settings


def main(argv: Sequence[str] | None = None) -> int:
    settings = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
    if isinstance(settings, FetchSettings):
        from cutover_server.inference.fetching import fetch_command

        return fetch_command(settings)
    if isinstance(settings, ProveSettings):
        from cutover_server.inference.proving import prove_command

        return prove_command(settings)
    # torch reads these when it is imported, which takes seconds: the other commands do without it.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if argv is None:
        # The trainer's package in the same image, which peft would import for nothing: 5 s of CPU, 50 MB.
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
    from cutover_server.inference.process import serve

    return serve(settings)


if __name__ == "__main__":
    raise SystemExit(main())
