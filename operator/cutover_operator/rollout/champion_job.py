"""The Job that tells MLflow how a rollout ended. Pure.

Its name holds a digest of everything in it, so that the same attempt is the same Job whoever builds it. It mounts one key
of one Secret, speaks to no Kubernetes API, and goes with its rollout, or by itself a while after its end.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cutover.api.modelrollout import ModelRolloutSpec, RegistryStatus
from cutover.contract import LABEL_ATTEMPT, LABEL_COMPONENT, LABEL_OWNER_UID, LABEL_STAGE
from cutover_operator.port import JOBS
from cutover_operator.restricted_pod import container_security, pod_fields
from cutover_operator.rollout.resources import Images, Owner, labels, owned_metadata
from cutover_operator.training.resources import (
    CONTAINER,
    MLFLOW_SECRET,
    REQUESTS,
    TOKEN,
    failure_rules,
    job_name,
)

COMMAND = "champion"
DEADLINE_SECONDS = 600
"""A pod that cannot start, for want of its Secret for example, does not hold up the next attempt for ever."""
KEPT_SECONDS = 3600
"""What is read of it stands in the rollout's status by then; without it the next attempt says the same."""


def build(
    record: RegistryStatus, number: int, spec: ModelRolloutSpec, owner: Owner, images: Images
) -> dict[str, Any]:
    own = {
        **labels(owner),
        LABEL_COMPONENT: COMMAND,
        LABEL_OWNER_UID: owner.uid,
        LABEL_STAGE: COMMAND,
        LABEL_ATTEMPT: str(number),
    }
    template = {"metadata": {"labels": own}, "spec": _pod(record, spec, owner, images)}
    digest = hashlib.sha256(json.dumps([owner.uid, template], sort_keys=True).encode()).hexdigest()[:8]
    return {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": {
            "name": job_name(owner.name, COMMAND, number, digest),
            "namespace": owner.namespace,
            "labels": own,
            "ownerReferences": owned_metadata(owner, "")["ownerReferences"],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": failure_rules()},
            "template": template,
        },
    }


def _pod(record: RegistryStatus, spec: ModelRolloutSpec, owner: Owner, images: Images) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    said = {
        "--url": record.url,
        "--model": record.model_name,
        "--version": record.version,
        "--outcome": record.outcome,
        "--at": record.at,
        "--uid": owner.uid,
        "--rollout": f"{owner.namespace}/{owner.name}",
    }
    if record.secret_name:
        item = {"key": record.secret_key, "path": TOKEN}
        volumes.append(
            {"name": "mlflow-token", "secret": {"secretName": record.secret_name, "items": [item]}}
        )
        mounts.append({"name": "mlflow-token", "mountPath": MLFLOW_SECRET, "readOnly": True})
        said["--token-file"] = f"{MLFLOW_SECRET}/{TOKEN}"
    pod: dict[str, Any] = {
        **pod_fields(images.pull_secrets),
        "restartPolicy": "Never",
        "containers": [
            {
                "name": CONTAINER,
                "image": images.trainer,
                "imagePullPolicy": "IfNotPresent",
                "command": ["cutover-trainer", COMMAND],
                # One word each, so that no value is taken for an option.
                "args": [f"{option}={value}" for option, value in said.items()],
                "env": [{"name": "HOME", "value": "/tmp"}, {"name": "TMPDIR", "value": "/tmp"}],  # noqa: S108
                "volumeMounts": mounts,
                "resources": {"requests": dict(REQUESTS["register"])},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "securityContext": container_security(),
            }
        ],
        "volumes": volumes,
    }
    if spec.serving.tolerations:
        # Where the candidate's pods may go, this one may.
        pod["tolerations"] = [toleration.to_wire() for toleration in spec.serving.tolerations]
    return pod
