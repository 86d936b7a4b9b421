"""`make soak-search`: nine settings searched on the node, twice; the second time the operator keeps being killed.

Promised: the same losses of every trial, the same winner and the same adapter; at most 2.5 full runs' steps trained in
all, counted from the logs of the pods; the test part read once. Installs the chart and the demo's surroundings into a
namespace of its own, and removes them at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster import clusters
from demo import stack as demo_stack
from demo import story
from demo.kubectl import Kubectl
from demo.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "build/soak/search.json"
NAMESPACE = "cutover-soak"
CALM, HIT = "search-calm", "search-hit"
ROWS = 320
TRIALS, EPOCHS = 9, 9
MOST_FULL_RUNS = 2.5
OPERATOR = "app.kubernetes.io/component=operator"
KILL_AT = (1, 4, 8, 9)
"""Every operator pod is killed when so many trials have a result: among the first, amid, at the first promotion, at
the end of the first rung. And once more when the winner's training begins."""
TIMEOUT_SECONDS = 2400.0


@dataclass
class Told:
    """One search, as found when it was over."""

    name: str
    winner: int = 0
    trials: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By number: settings, rung, objective."""
    adapter: str = ""
    full_run_steps: int = 0
    trained_steps: int = 0
    resumed: int = 0
    """Pods that went on from a checkpoint."""
    gpu_seconds: float = 0.0
    seconds: float = 0.0
    evaluations: int = 0
    kills: int = 0

    @property
    def full_runs(self) -> float:
        return self.trained_steps / max(1, self.full_run_steps)


def manifest(stack: Stack, name: str, parallelism: int) -> str:
    text = stack.render(
        "trainingrun.yaml",
        LIMIT=str(ROWS),
        MIN_EXAMPLES=str(int(ROWS * 0.9)),
        EPOCHS=str(EPOCHS),
        MIN_ACCURACY="0.05",
    )
    run: dict[str, Any] = yaml.safe_load(text)
    run["metadata"]["name"] = name
    spec = run["spec"]
    spec["fineTune"]["lora"]["targets"] = "language_model"
    spec["tuning"] = {
        "trials": TRIALS,
        "parallelism": parallelism,
        "space": {
            "learningRate": {"min": 0.0002, "max": 0.006, "log": True},
            "lora.rank": {"values": [4, 8, 16]},
        },
    }
    spec["evaluation"]["compareWith"] = "none"
    spec["compute"] = {"gpus": 1, "gpuHourBudget": 5, "cpu": "300m", "memory": "1536Mi"}
    return yaml.safe_dump(run)


class Soak:
    def __init__(self, stack: Stack, parallelism: int) -> None:
        self.stack = stack
        self.parallelism = parallelism

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (self.stack.kube.get("trainingrun", name) or {}).get("status") or {}
        return found

    def search(self, name: str, *, disturbed: bool) -> Told:
        told = Told(name)
        started = time.monotonic()
        self.stack.kube.apply(manifest(self.stack, name, self.parallelism))
        marks = [*KILL_AT] if disturbed else []
        shown = ""
        winning_seen = False
        while time.monotonic() - started < TIMEOUT_SECONDS:
            status = self.status(name)
            line = f"{name}: {status.get('stage', '')} {status.get('progressText', '')} {status.get('reason', '')}"
            if line != shown:
                say(line)
                shown = line
            if self._over(name, status):
                told.seconds = round(time.monotonic() - started, 1)
                return self._read(told, status)
            settled = sum(
                one.get("rung", 0) > 0 or one.get("state") != "Running"
                for one in status.get("tuning", {}).get("trials", [])
            )
            training = status.get("stage") == "train"
            if (marks and settled >= marks[0]) or (disturbed and training and not winning_seen):
                winning_seen = winning_seen or training
                marks = [mark for mark in marks if mark > settled]
                told.kills += self._kill_operators()
            time.sleep(1)
        raise RuntimeError(
            f"{name} not over in {TIMEOUT_SECONDS:.0f} s: {json.dumps(self.status(name))[:3000]}"
        )

    def _over(self, name: str, status: dict[str, Any]) -> bool:
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        ended = conditions.get("Succeeded", {})
        if ended.get("status") == "False":
            raise RuntimeError(f"{name} failed: {json.dumps(list(conditions.values()))}")
        return bool(ended.get("status") == "True")

    def _kill_operators(self) -> int:
        """Both replicas at once, without a word to them."""
        names = [pod["metadata"]["name"] for pod in self.stack.kube.items("pods", OPERATOR)]
        say(f"killing {', '.join(names)}")
        self.stack.kube.run("delete", "pod", *names, "--grace-period=0", "--force", "--wait=false")
        return len(names)

    def _read(self, told: Told, status: dict[str, Any]) -> Told:
        told.winner = status["tuning"]["winner"]
        told.trials = {
            one["number"]: {key: one.get(key) for key in ("settings", "rung", "state", "objective")}
            for one in status["tuning"]["trials"]
        }
        told.adapter = status["model"]["digest"]
        told.gpu_seconds = round(sum(pod.get("gpuSeconds", 0) for pod in status.get("pods", [])), 1)
        names = [
            run["metadata"]["name"]
            for run in self.stack.kube.items("trainingruns")
            if run["metadata"]["name"] == told.name
            or run["metadata"].get("labels", {}).get("cutover.dev/owner-name") == told.name
        ]
        for name in names:
            selector = f"cutover.dev/owner-name={name}"
            for pod in self.stack.kube.items("pods", f"{selector},cutover.dev/stage=train"):
                self._count(told, self.stack.kube.run("logs", pod["metadata"]["name"]), name == told.name)
            told.evaluations += len(self.stack.kube.items("jobs", f"{selector},cutover.dev/stage=evaluate"))
        return told

    def _count(self, told: Told, log: str, whole: bool) -> None:
        """Steps a pod trained, from its own log; `whole`: its last step is that of a full run."""
        entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        first = next((entry["step"] for entry in entries if entry["event"] == "resumed"), 0)
        last = max(
            (entry["step"] for entry in entries if entry["event"] in ("progress", "checkpoint")),
            default=first,
        )
        ended = next(
            (entry for entry in entries if entry["event"] == "result" and entry.get("progress")), None
        )
        if ended is not None:
            last = max(last, ended["progress"]["step"])
            if whole:
                told.full_run_steps = ended["progress"]["steps"]
        told.resumed += first > 0
        told.trained_steps += max(0, last - first)


def checks(calm: Told, hit: Told) -> list[tuple[str, bool, str]]:
    """(promise, kept, what was found)."""
    differ = [number for number in calm.trials if calm.trials[number] != hit.trials.get(number)]
    return [
        ("the operator was killed in between", hit.kills >= 4, f"{hit.kills} pods killed"),
        ("the same winner", calm.winner == hit.winner, f"trial {calm.winner} and trial {hit.winner}"),
        (
            "every trial ended at the same rung with the same loss",
            not differ,
            f"trials {differ} differ" if differ else f"{len(calm.trials)} equal",
        ),
        ("the same adapter", calm.adapter == hit.adapter, f"{calm.adapter[:12]} and {hit.adapter[:12]}"),
        *(
            (
                f"{one.name} trained at most {MOST_FULL_RUNS} full runs",
                0 < one.full_runs <= MOST_FULL_RUNS,
                f"{one.trained_steps} steps of {one.full_run_steps} = {one.full_runs:.2f} full runs",
            )
            for one in (calm, hit)
        ),
        (
            "promoted trials and the model went on from checkpoints",
            min(calm.resumed, hit.resumed) >= 5,
            f"{calm.resumed} and {hit.resumed} pods",
        ),
        (
            "one evaluation on the test part each",
            (calm.evaluations, hit.evaluations) == (1, 1),
            f"{calm.evaluations} and {hit.evaluations}",
        ),
    ]


def table(calm: Told, hit: Told) -> str:
    lines = [f"{'trial':>5}  {'settings':46}{'rung':>5}{'loss':>10}{'loss, killed':>14}"]
    for number, one in sorted(calm.trials.items()):
        other = hit.trials.get(number, {})
        text = ", ".join(f"{name} {value:g}" for name, value in sorted(one["settings"].items()))
        losses = [
            f"{loss:.5f}" if loss is not None else "-" for loss in (one["objective"], other.get("objective"))
        ]
        star = " *" if number == calm.winner else ""
        lines.append(f"{number:>5}  {text:46}{one['rung']:>5}{losses[0]:>10}{losses[1]:>14}{star}")
    lines += [
        f"{one.name}: {one.seconds:.0f} s, {one.gpu_seconds:.0f} GPU-seconds, {one.full_runs:.2f} full runs of steps"
        for one in (calm, hit)
    ]
    return "\n".join(lines)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(prog="soak-search", description="Needs the node, or KUBECONFIG.")
    options.add_argument("--parallelism", type=int, default=2, help="trials at a time")
    options.add_argument("--keep", action="store_true", help="leave the namespace for a look")
    chosen = options.parse_args()
    kubeconfig = clusters.up().kubeconfig
    demo_stack.uninstall(Stack(Kubectl(kubeconfig, NAMESPACE), {}))  # what an earlier run left
    stack = demo_stack.open_stack(kubeconfig, NAMESPACE)
    try:
        demo_stack.install(stack, say)
        story.seed(stack, say, ROWS)
        soak = Soak(stack, chosen.parallelism)
        calm = soak.search(CALM, disturbed=False)
        hit = soak.search(HIT, disturbed=True)
    finally:
        if not chosen.keep:
            demo_stack.uninstall(stack)
    print(table(calm, hit))
    found = checks(calm, hit)
    for promise, kept, what in found:
        print(f"{'PASS' if kept else 'FAIL'}  {promise}: {what}")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "calm": asdict(calm),
        "killed": asdict(hit),
        "checks": [{"promise": promise, "kept": kept, "found": what} for promise, kept, what in found],
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(kept for _, kept, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
