"""How the candidate's pods are, in one sentence a person can act on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cutover_operator.rollout.world import World

TROUBLE = (
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
)


@dataclass(frozen=True, slots=True)
class Health:
    ready: int
    wanted: int
    reason: str
    message: str

    @property
    def any_ready(self) -> bool:
        return self.ready > 0

    @property
    def all_ready(self) -> bool:
        return self.ready >= self.wanted


def health(world: World) -> Health:
    """Ready replicas of the model in the spec, and what keeps the others."""
    if world.spec.serving.engine == "external":
        return Health(1, 1, "External", "served by an external endpoint")
    wanted = world.spec.serving.replicas
    live = world.deployment
    if live is None:
        return Health(0, wanted, "NotCreated", "the candidate's Deployment is not there yet")
    status: dict[str, Any] = live.get("status") or {}
    seen = int(status.get("observedGeneration", 0)) >= int(live["metadata"].get("generation", 0))
    ready = int(status.get("readyReplicas", 0) or 0)
    updated = int(status.get("updatedReplicas", 0) or 0)
    if not seen:
        return Health(
            min(ready, wanted - 1), wanted, "Updating", "the candidate's Deployment is being updated"
        )
    if ready >= wanted and updated >= wanted:
        return Health(ready, wanted, "Serving", f"{ready} of {wanted} candidate pods ready")
    counted = min(ready, updated) if updated < wanted else ready
    trouble = _trouble(world.pods)
    text = f"{counted} of {wanted} candidate pods ready"
    if trouble is None:
        return Health(counted, wanted, "PodsNotReady", text)
    return Health(counted, wanted, trouble[0], f"{text}: {trouble[1]}")


def _trouble(pods: tuple[dict[str, Any], ...]) -> tuple[str, str] | None:
    for pod in sorted(pods, key=lambda p: str(p["metadata"]["name"])):
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        for container in [
            *(status.get("initContainerStatuses") or []),
            *(status.get("containerStatuses") or []),
        ]:
            ended = (container.get("lastState") or {}).get("terminated") or (
                container.get("state") or {}
            ).get("terminated")
            waiting = (container.get("state") or {}).get("waiting") or {}
            if ended and ended.get("reason") == "OOMKilled":
                return (
                    "OOMKilled",
                    f"pod {name}, container {container['name']} ran out of memory; raise serving.resources",
                )
            if waiting.get("reason") in TROUBLE:
                last = f", last exit {ended.get('exitCode')}" if ended else ""
                detail = str((ended or {}).get("message") or waiting.get("message") or "").strip()[:300]
                return waiting[
                    "reason"
                ], f"pod {name}, container {container['name']}: {waiting['reason']}{last}: {detail}"
        for condition in status.get("conditions") or []:
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return "Unschedulable", f"pod {name}: {condition.get('message', '')}"[:400]
    return None
