"""What Prometheus would have kept of a rollout in the simulated town: as rows, as a file of samples, as OpenMetrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import yaml

from cutover_operator.port import MODEL_ROLLOUTS
from fakes.rollout_town import NAMESPACE, START, Town, finished, rollout_spec, run_until, started

STEPS = [
    {"shadow": 100, "minDuration": "60s", "minRequests": 50},
    {"weight": 25, "minDuration": "120s", "minRequests": 50},
    {"weight": 100, "minDuration": "120s", "minRequests": 50},
]
SPEC: dict[str, Any] = {
    "steps": STEPS,
    "analysis": {"interval": "10s", "labels": {"perHour": 1500, "deadline": "60s"}},
}


def rows(town: Town) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for (name, labels), samples in town.history.items():
        found.setdefault(name, []).append(
            {"metric": {**dict(labels), "__name__": name}, "values": [[at, str(v)] for at, v in samples]}
        )
    return found


def kept(town: Town, folder: Path) -> str:
    answers = {
        name: [{"status": "success", "data": {"resultType": "matrix", "result": series}}]
        for name, series in rows(town).items()
    }
    path = folder / "samples.json"
    path.write_text(json.dumps({"schemaVersion": 1, "from": START, "to": town.now, "answers": answers}))
    return str(path)


def manifest(folder: Path, **changes: Any) -> str:
    path = folder / "rollout.yaml"
    document = {
        "apiVersion": "cutover.dev/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {"name": "cut"},
        "spec": rollout_spec(**{**SPEC, **changes}),
    }
    path.write_text(yaml.safe_dump_all([{"kind": "Other"}, document]))
    return str(path)


def recorded(ticks: int | None = None, outage: range = range(0), **settings: Any) -> Town:
    """A town whose rollout has been led to its end, or for so many ticks; not scraped during the outage."""

    async def lead() -> Town:
        town = await started(spec=SPEC, samples_kept=10_000, **settings)
        if ticks is None:
            await run_until(town, finished)
            for _ in range(6):
                await town.tick()
                await town.run_pass()
        for tick in range(ticks or 0):
            town.scraping = tick not in outage
            await town.tick()
            await town.run_pass()
        return town

    return asyncio.run(lead())


def led(town: Town) -> dict[str, Any]:
    return town.kube.peek(MODEL_ROLLOUTS, NAMESPACE, "cut")


def open_metrics(town: Town) -> str:
    """All samples with their times, as `promtool tsdb create-blocks-from openmetrics` reads them."""
    lines = []
    for (name, labels), samples in sorted(town.history.items()):
        named = ",".join(f'{key}="{value}"' for key, value in labels)
        shown = f"{name}_bucket" if "le" in dict(labels) else name
        lines += [f"{shown}{{{named}}} {value:.17g} {at:.3f}" for at, value in samples]
    return "\n".join([*lines, "# EOF", ""])
