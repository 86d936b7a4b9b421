"""The demo's acts: seed the past, train, cut over, and stop two bad candidates. Each returns what the summary shows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from demo.stack import GATEWAY, Stack

Say = Callable[[str], None]

TRAINING_ROWS = 1200
EPOCHS = 3
APP_REQUESTS_PER_SECOND = 14.0

BUILTIN = {
    "engine": "builtin",
    "startDeadline": "5m",
    # The model's share of two cores beside everything else that runs on them.
    "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}},
    "price": {"usdPerGpuHour": 2.0, "gpusPerReplica": 1},
}


@dataclass
class Act:
    """One rollout as the summary tells it."""

    name: str
    phase: str = ""
    reason: str = ""
    message: str = ""
    weight: int = 0
    seconds: float = 0.0
    steps: list[dict[str, Any]] = field(default_factory=list)
    path: list[str] = field(default_factory=list)


def behave(stack: Stack, name: str, **settings: Any) -> None:
    """Set what a stand-in does: accuracy, latency, errors."""
    stack.kube.call(name, "/admin/behaviour", settings)


def seed(stack: Stack, say: Say, rows: int = TRAINING_ROWS) -> None:
    """The past: GPT-4 answered, a surveyor validated every answer."""
    behave(stack, "gpt-4", accuracy=0.92, latency_mean_seconds=0.02)
    done = 0
    while done < rows:
        part = stack.kube.call(
            "driver", "/seed", {"first": done, "count": min(400, rows - done), "concurrency": 16}
        )
        done += part["asked"]
        say(f"assessments answered by GPT-4 and validated by the surveyor: {done} of {rows}")


def follow_training(stack: Stack, say: Say, name: str, timeout_seconds: float) -> dict[str, Any]:
    """Until the run succeeded or stalled; says every new stage and tenth of the progress."""
    shown = ""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        run = stack.kube.get("trainingrun", name) or {}
        status = run.get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        progress = status.get("progressText", "")
        line = f"TrainingRun {name}: {status.get('stage', '')} {progress[:-2] + '0%' if len(progress) > 2 else ''}"
        if line != shown:
            say(line)
            shown = line
        if conditions.get("Succeeded", {}).get("status") == "True":
            return run
        if conditions.get("Stalled", {}).get("status") == "True" or (
            conditions.get("Succeeded", {}).get("status") == "False"
            and conditions["Succeeded"].get("reason") in ("Failed", "StageFailed")
        ):
            raise RuntimeError(f"TrainingRun {name} stopped: {json.dumps(list(conditions.values()))}")
        time.sleep(1)
    raise RuntimeError(f"TrainingRun {name} not done in {timeout_seconds:.0f} s: {json.dumps(status)[:2000]}")


def train(stack: Stack, say: Say, rows: int = TRAINING_ROWS, epochs: int = EPOCHS) -> dict[str, Any]:
    stack.apply(
        "trainingrun.yaml",
        LIMIT=str(rows),
        MIN_EXAMPLES=str(int(rows * 0.95)),
        EPOCHS=str(epochs),
        MIN_ACCURACY="0.85",
    )
    return follow_training(stack, say, "damage-v1", timeout_seconds=1200)


def start_rollout(stack: Stack, name: str, candidate: dict[str, Any], serving: dict[str, Any]) -> None:
    stack.apply("rollout.yaml", NAME=name, CANDIDATE=candidate, SERVING=serving, GATEWAY=GATEWAY)


def follow_rollout(
    stack: Stack,
    say: Say,
    name: str,
    timeout_seconds: float,
    at_step: Callable[[str], None] = lambda step: None,
) -> Act:
    """Until the rollout has finished; `at_step` is called once for every new step."""
    act = Act(name)
    start = time.monotonic()
    shown = ("", "")
    status: dict[str, Any] = {}
    while time.monotonic() - start < timeout_seconds:
        rollout = stack.kube.get("modelrollout", name) or {}
        status = rollout.get("status") or {}
        step = status.get("stepText", "")
        now = (step, status.get("reason", ""))
        if now != shown:
            say(
                f"{name}: {status.get('phase', 'Pending'):11} {step:18} weight {status.get('weight', 0):3} %  "
                f"{status.get('verdict', '')} {status.get('reason', '')}: {status.get('message', '')[:110]}"
            )
            if step != shown[0] and step:
                act.path.append(step)
                at_step(step)
            shown = now
        if status.get("finish"):
            act.phase, act.reason = status["phase"], status.get("reason", "")
            act.message, act.weight = status.get("message", ""), status.get("weight", 0)
            act.seconds = time.monotonic() - start
            act.steps = status.get("steps", [])
            return act
        time.sleep(0.5)
    raise RuntimeError(
        f"ModelRollout {name} not finished in {timeout_seconds:.0f} s: {json.dumps(status)[:3000]}"
    )


def cut_over(stack: Stack, say: Say) -> Act:
    """The trained model against GPT-4."""
    start_rollout(stack, "damage-v1", {"trainingRunRef": {"name": "damage-v1"}}, BUILTIN)
    return follow_rollout(stack, say, "damage-v1", 900)


def external(stand_in: str, version: str) -> dict[str, Any]:
    uri = f"http://{stand_in}.{{namespace}}.svc:8080/v1"
    return {"model": {"uri": uri, "version": version, "servedName": stand_in}}


def candidate_at(stack: Stack, stand_in: str, version: str) -> dict[str, Any]:
    text = json.dumps(external(stand_in, version)).replace("{namespace}", stack.namespace)
    found: dict[str, Any] = json.loads(text)
    return found


def wrong_candidate(stack: Stack, say: Say) -> Act:
    """Answers quickly and mostly wrongly: must be stopped before it serves anybody."""
    behave(stack, "wrong-model", accuracy=0.45, latency_mean_seconds=0.02)
    start_rollout(
        stack, "damage-wrong", candidate_at(stack, "wrong-model", "wrong-1"), {"engine": "external"}
    )
    return follow_rollout(stack, say, "damage-wrong", 300)


def slow_candidate(stack: Stack, say: Say) -> Act:
    """Right answers, but slow from 25 % on: must be rolled back to 0."""
    behave(stack, "slow-model", accuracy=0.95, latency_mean_seconds=0.02)

    def at_step(step: str) -> None:
        if "weight 25%" in step:
            say("slow-model now takes 3 s for an answer")
            behave(stack, "slow-model", accuracy=0.95, latency_mean_seconds=3.0)

    start_rollout(stack, "damage-slow", candidate_at(stack, "slow-model", "slow-1"), {"engine": "external"})
    return follow_rollout(stack, say, "damage-slow", 600, at_step)
