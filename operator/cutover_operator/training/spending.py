"""GPU time: counted per pod uid, so that a pod that is gone still counts, and no pod counts twice. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from cutover.api.trainingrun import DataSummary, PodUse, TrainingRunSpec
from cutover_operator.training.halving import cost_epochs, ladder
from cutover_operator.training.observed import PodSeen

GRAIN_SECONDS = 30.0
"""A running pod is counted in whole grains: its seconds alone are no reason to write a status."""
KEPT_PODS = 60
EARLIER = "earlier"
"""Stands in place of a uid for the sum of pods that no longer exist."""
SAMPLES_PER_GPU_SECOND = 2.5
"""Published speed of LoRA on a 7B model, per A100."""
QUANTIZED_SPEED = 0.64
"""Of that, with the base in 4 bits: 3.5 s against 5.5 s an iteration of 1,024 tokens (Qwen-VL's README, 9.6B, one A100)."""
SECONDS_PER_HOUR = 3600.0


def gpu_seconds(pod: PodSeen, now: datetime) -> float:
    """From the moment a node took the pod until its containers ended."""
    if pod.gpus == 0 or pod.started_at is None:
        return 0.0
    if pod.ended_at is not None:
        return round(max(0.0, (pod.ended_at - pod.started_at).total_seconds()) * pod.gpus, 1)
    if pod.delete_by is not None:
        # It may be gone at the next look, without having been seen at its end.
        leaving = max(0.0, (min(now, pod.delete_by) - pod.started_at).total_seconds())
        return round(leaving, 1) * pod.gpus
    running = max(0.0, (now - pod.started_at).total_seconds())
    return running // GRAIN_SECONDS * GRAIN_SECONDS * pod.gpus


def counted(
    known: Sequence[PodUse],
    pods: Iterable[PodSeen],
    now: datetime,
    trials: Mapping[str, float] | None = None,
) -> list[PodUse]:
    """The ledger with what is seen now. A figure never falls; the oldest pods that are gone are folded into one line.

    `trials`: GPU-seconds on the accounts of the runs a search has made, by uid of the run.
    """
    uses = {use.uid: use.gpu_seconds for use in known}
    live = set(trials or {})
    for uid, seconds in (trials or {}).items():
        if seconds > 0:
            uses[uid] = max(uses.get(uid, 0.0), round(seconds, 1))
    for pod in pods:
        live.add(pod.uid)
        seconds = gpu_seconds(pod, now)
        if seconds > 0:
            uses[pod.uid] = max(uses.get(pod.uid, 0.0), seconds)
    surplus = len(uses) - KEPT_PODS
    for uid in [uid for uid in uses if uid != EARLIER and uid not in live][: max(0, surplus)]:
        uses[EARLIER] = round(uses.get(EARLIER, 0.0) + uses.pop(uid), 1)
    return [PodUse(uid=uid, gpu_seconds=seconds) for uid, seconds in uses.items()]


def spent_seconds(uses: Iterable[PodUse]) -> float:
    return sum(use.gpu_seconds for use in uses)


def budget_seconds(spec: TrainingRunSpec) -> float:
    return spec.compute.gpu_hour_budget * SECONDS_PER_HOUR


def hours_text(seconds: float) -> str:
    return f"{seconds / SECONDS_PER_HOUR:.2f}"


def forecast_seconds(spec: TrainingRunSpec, data: DataSummary) -> float:
    """GPU-seconds the training, or the whole search, would take on A100s."""
    epochs = float(spec.fine_tune.epochs)
    if spec.tuning is not None:
        epochs = cost_epochs(ladder(spec.tuning.trials, spec.fine_tune.epochs, spec.tuning.scheduler))
    speed = SAMPLES_PER_GPU_SECOND * (1.0 if spec.fine_tune.quantization == "none" else QUANTIZED_SPEED)
    return data.train * epochs / speed
