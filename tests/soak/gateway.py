"""`make soak-gateway`: everything around a gateway goes and comes back in turn, and then the gateways themselves.

    python -m soak.gateway              on the node: an installed chart with a live ModelRollout (twelve minutes)
    python -m soak.gateway --processes  the same phases on local processes, without Kubernetes (four minutes)

Counted by id: no request fails that an allowed, healthy arm could have answered, no record is lost or there twice, and no
gateway serves a weight for longer than the watch needs to tell it another.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from soak.gateway_account import Story, excuse
from soak.gateway_phases import ALL, FEW, FULL, PHASES, SHORT, Run
from soak.gateway_table import checks, lines, table

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "build/bench/soak-gateway.json"


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def result(story: Story, form: str, seconds: float) -> dict[str, object]:
    return {
        "form": form,
        "seconds": round(seconds, 1),
        "phases": [asdict(line) for line in lines(story)],
        "checks": [asdict(check) for check in checks(story)],
        "failed": [
            asdict(one) | {"excuse": excuse(story, one)} for one in story.asked if one.result != "answered"
        ][:500],
    }


def main() -> int:
    options = argparse.ArgumentParser(prog="soak-gateway", description=__doc__.split("\n", 1)[0])
    options.add_argument("--processes", action="store_true", help="local processes instead of the node")
    options.add_argument("--short", action="store_true", help="few phases, little time in each")
    options.add_argument(
        "--only", action="append", default=[], choices=ALL, metavar="PHASE", help=f"of {ALL}"
    )
    options.add_argument("--keep", action="store_true", help="leave the namespace (or folder) for a look")
    chosen = options.parse_args()
    pace = SHORT if chosen.short else FULL
    names = tuple(chosen.only) or (FEW if chosen.short else ALL)
    assert set(names) <= set(PHASES)
    start = time.monotonic()
    if chosen.processes:
        from soak.gateway_town import Processes

        folder = Path(tempfile.mkdtemp(prefix="cutover-soak-"))
        say(f"logs and spools in {folder}, removed at the end if every promise is kept")
        with Processes(folder) as town:
            story = Run(town, pace, say).go(names)
        form = "processes"
        if not chosen.keep and all(check.kept for check in checks(story)):
            shutil.rmtree(folder, ignore_errors=True)
    else:
        from soak.gateway_node import installed

        with installed(say, chosen.keep) as node:
            story = Run(node, pace, say).go(names)
        form = "node"
    print(table(story))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result(story, form, time.monotonic() - start), indent=1) + "\n")
    return 0 if all(check.kept for check in checks(story)) else 1


if __name__ == "__main__":
    sys.exit(main())
