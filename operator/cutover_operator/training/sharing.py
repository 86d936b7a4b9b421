"""What the pods of a training on several nodes share: the claims they mount, and the Service by which they are found. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cutover.api.base import ClaimRef
from cutover.api.trainingrun import Stage, TrainingRunSpec
from cutover.contract import LABEL_OWNER_UID, LABEL_STAGE, PORT_NODES
from cutover_operator.port import SERVICES, Object

LABEL_LIMIT = 63
READ_WRITE_MANY, READ_ONLY_MANY = "ReadWriteMany", "ReadOnlyMany"


@dataclass(frozen=True, slots=True)
class SharedClaim:
    field: str
    name: str
    modes: tuple[str, ...]
    """Any of these access modes will do."""


def claim_in(uri: str) -> ClaimRef | None:
    """Claim and path of a claim:// URI; None for any other."""
    if not uri.startswith("claim://"):
        return None
    name, _, path = uri.removeprefix("claim://").partition("/")
    return ClaimRef(name=name, path=path.strip("/"))


def nodes_of(spec: TrainingRunSpec, stage: Stage) -> int:
    """Pods of a stage at work together. Trials train as well."""
    return spec.compute.nodes if stage in ("tune", "train") else 1


def shared_claims(spec: TrainingRunSpec) -> tuple[SharedClaim, ...]:
    """None where one pod trains."""
    if spec.compute.nodes == 1:
        return ()
    base, output = claim_in(spec.base_model.uri), spec.output.claim
    found = [
        SharedClaim("spec.output.claim.name", output.name, (READ_WRITE_MANY,)) if output else None,
        SharedClaim("spec.baseModel.uri", base.name, (READ_WRITE_MANY, READ_ONLY_MANY)) if base else None,
    ]
    return tuple(claim for claim in found if claim)


def not_shared(spec: TrainingRunSpec, access_modes: Mapping[str, tuple[str, ...]]) -> str:
    """Which claim cannot be mounted by several nodes, and what to do; empty when all can, or are not there yet."""
    for claim in shared_claims(spec):
        modes = access_modes.get(claim.name)
        if modes is not None and not set(modes) & set(claim.modes):
            return (
                f"{claim.field}: claim {claim.name!r} has access mode {', '.join(modes) or 'none'}, and compute.nodes is "
                f"{spec.compute.nodes}; use a claim with {' or '.join(claim.modes)}, or an s3:// or gs:// URI, or set "
                "compute.nodes to 1"
            )
    return ""


def service_name(run: str, uid: str) -> str:
    """One Service for all attempts: a pod's name in it has its Job's name in front."""
    head, tail = "nodes-", f"-{uid[:8]}"
    # A Service is a single DNS label; a run's name may have dots.
    return head + run.replace(".", "-")[: LABEL_LIMIT - len(head) - len(tail)].strip("-") + tail


def leader_address(job: str, service: str) -> str:
    """host:port of the pod with index 0, for pods of the same namespace."""
    return f"{job}-0.{service}:{PORT_NODES}"


def service(name: str, metadata: Object, owner_uid: str) -> Object:
    """Headless: a name for every pod, from the moment it has an address, since they meet before they are ready."""
    return {
        "apiVersion": SERVICES.api_version,
        "kind": SERVICES.kind,
        "metadata": metadata | {"name": name},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {LABEL_OWNER_UID: owner_uid, LABEL_STAGE: "train"},
            "ports": [{"name": "nodes", "port": PORT_NODES, "protocol": "TCP"}],
        },
    }
