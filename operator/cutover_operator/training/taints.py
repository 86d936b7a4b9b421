"""Which nodes' taints a stage's pods tolerate: reclaimable ones, those with GPUs, and what the run names. Pure."""

from __future__ import annotations

from cutover.api.trainingrun import TrainingRunSpec
from cutover.contract import RESOURCE_GPU
from cutover_operator.port import Object

SPOT_TOLERATIONS: tuple[Object, ...] = (
    {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
    {
        "key": "kubernetes.azure.com/scalesetpriority",
        "operator": "Equal",
        "value": "spot",
        "effect": "NoSchedule",
    },
    {"key": "eks.amazonaws.com/capacityType", "operator": "Equal", "value": "SPOT", "effect": "NoSchedule"},
)
GPU_TOLERATION: Object = {"key": RESOURCE_GPU, "operator": "Exists", "effect": "NoSchedule"}


def tolerations(spec: TrainingRunSpec, gpus: int) -> list[Object]:
    own = [toleration.to_wire() for toleration in spec.compute.tolerations]
    return [
        *(SPOT_TOLERATIONS if spec.compute.spot else ()),
        *((GPU_TOLERATION,) if gpus else ()),
        *own,
    ]
