"""The same with pods: two TrainingRuns of one specification on the local node, the pods of one of them deleted.

Installs the chart and the demo's surroundings into a namespace of its own, and removes them at the end.
"""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

from cluster import clusters
from demo import stack as demo_stack
from demo import story
from demo.kubectl import Kubectl
from demo.stack import Stack

NAMESPACE = "cutover-soak"
ROWS = 480
EPOCHS = 20
RUNS = ("left-alone", "disturbed")
TIMEOUT_SECONDS = 3600.0
SHARE_WHILE_STARTING = 0.3
"""Of the deletions; the others come when the pod has taken steps, for most of its life is import and load."""


def delete_pods(times: int, seed: int) -> int:
    """Exit code 0 when both runs made the same bytes and the GPU-seconds of every deleted pod were kept."""
    kubeconfig = clusters.up().kubeconfig
    demo_stack.uninstall(Stack(Kubectl(kubeconfig, NAMESPACE), {}))
    stack = demo_stack.open_stack(kubeconfig, NAMESPACE)
    try:
        demo_stack.install(stack)
        story.seed(stack, print, ROWS)
        _start(stack, RUNS[0])
        alone = story.follow_training(stack, print, RUNS[0], TIMEOUT_SECONDS)
        _start(stack, RUNS[1])
        deleted = _disturb(stack, RUNS[1], times, random.Random(seed))
        disturbed = story.follow_training(stack, print, RUNS[1], TIMEOUT_SECONDS)
        problems = _problems(alone["status"], disturbed["status"], deleted)
    finally:
        demo_stack.uninstall(stack)
    for problem in problems:
        print(f"FAIL  {problem}")
    if not problems:
        print(f"PASS  {len(deleted)} pods deleted, same adapter, GPU-seconds of every pod kept")
    return 1 if problems else 0


def _start(stack: Stack, name: str) -> None:
    manifest = stack.render(
        "trainingrun.yaml",
        LIMIT=str(ROWS),
        MIN_EXAMPLES=str(int(ROWS * 0.9)),
        EPOCHS=str(EPOCHS),
        MIN_ACCURACY="0.1",
    )
    stack.kube.apply(manifest.replace("name: damage-v1", f"name: {name}"))


def _disturb(stack: Stack, name: str, times: int, chance: random.Random) -> list[str]:
    """Deletes a running pod of the stage train `times` times; answers with their uids."""
    deleted: list[str] = []
    selector = f"cutover.dev/owner-name={name},cutover.dev/stage=train"

    def running() -> dict[str, Any] | None:
        pods = stack.kube.items("pods", selector)
        fresh = [pod for pod in pods if pod["metadata"]["uid"] not in deleted]
        return next((pod for pod in fresh if pod["status"].get("phase") == "Running"), None)

    def trains(pod: str) -> bool:
        return '"progress"' in stack.kube.run("logs", pod)

    for _ in range(times):
        pod = stack.kube.wait("a running train pod", running, TIMEOUT_SECONDS)
        if chance.random() < SHARE_WHILE_STARTING:
            time.sleep(chance.uniform(0, 10))
        else:
            stack.kube.wait("its first step", partial(trains, name_of(pod)), TIMEOUT_SECONDS)
            time.sleep(chance.uniform(0, 5))
        stack.kube.run("delete", "pod", name_of(pod), "--timeout=120s")
        deleted.append(pod["metadata"]["uid"])
    return deleted


def name_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def _problems(alone: dict[str, Any], disturbed: dict[str, Any], deleted: list[str]) -> list[str]:
    found = []
    if alone["model"]["digest"] != disturbed["model"]["digest"]:
        found.append("the adapters differ")
    seconds = {pod["uid"]: pod.get("gpuSeconds", 0) for pod in disturbed.get("pods", [])}
    found += [f"pod {uid} is not on the account" for uid in deleted if seconds.get(uid, 0) <= 0]
    hours = float(disturbed.get("gpuHours") or 0)
    if abs(hours - sum(seconds.values()) / 3600) > 0.01:
        found.append(f"gpuHours {hours} is not the sum of the pods")
    return found
