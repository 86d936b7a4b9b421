"""The objects of one attempt of a stage: a ConfigMap with the stage's configuration, and the Job. Pure.

A training on several nodes is an Indexed Job, whose pods find one another by a Service of the run.
Job and ConfigMap bear one name, which holds a digest of everything in them: the same attempt is the same name whoever builds it,
and a Job's template, which Kubernetes never lets change, never has to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from cutover.api.base import ClaimRef, SecretKeyRef
from cutover.api.trainingrun import Stage, TrainingRunSpec
from cutover.contract import (
    ENV_LEADER,
    LABEL_ATTEMPT,
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_OWNER_KIND,
    LABEL_OWNER_NAME,
    LABEL_OWNER_UID,
    LABEL_QUEUE,
    LABEL_STAGE,
    MANAGED_BY,
    NODE_LABEL_GPU_PRODUCT,
    RESOURCE_GPU,
    STAGE_CONFIG_PATH,
    ExitCode,
)
from cutover.stages import TRIALS_FOLDER, RunIdentity, StageConfig
from cutover.task import Task
from cutover_operator.origins import origin_of
from cutover_operator.port import CONFIG_MAPS, JOBS, TRAINING_RUNS, Object
from cutover_operator.restricted_pod import container_security, pod_fields
from cutover_operator.training.sharing import claim_in, leader_address, nodes_of, service, service_name
from cutover_operator.training.taints import tolerations

NAME_LIMIT = 63
ARTIFACTS = "/artifacts"
MODELS = "/models"
SOURCE = "/source"
SYNTHETIC = "/synthetic"
PREVIOUS = "/previous"
SECRETS = "/var/run/cutover/secrets"
SOURCE_SECRET = f"{SECRETS}/source"
MLFLOW_SECRET = f"{SECRETS}/mlflow"
TOKEN = "token"  # noqa: S105
GRACE_SECONDS = 60
"""Enough for one checkpoint of an adapter."""
DEADLINE_SLACK_SECONDS = 300
"""The trainer stops by itself when its GPU time is used; this is for one that does not."""
CONTAINER = "trainer"
REQUESTS: dict[Stage, dict[str, str]] = {
    "prepare": {"cpu": "250m", "memory": "1Gi"},
    "train": {"cpu": "500m", "memory": "2Gi"},
    "evaluate": {"cpu": "500m", "memory": "2Gi"},
    "register": {"cpu": "100m", "memory": "512Mi"},
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """All that an attempt of a stage is made from."""

    namespace: str
    name: str
    uid: str
    spec: TrainingRunSpec
    task: Task
    stage: Stage
    number: int
    image: str
    gpu_seconds_left: float | None
    """None where the stage uses no GPU."""
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets with the registries' credentials."""
    resume_trial: str = ""
    """Folder of the trial that won: its last checkpoint is gone on from."""


@dataclass(frozen=True, slots=True)
class Built:
    name: str
    config_map: Object
    job: Object
    service: Object | None = None
    """Of a training on several nodes."""


def build(attempt: Attempt) -> Built:
    config = yaml.safe_dump(stage_config(attempt).to_wire(), sort_keys=True, allow_unicode=True)
    template = _template(attempt)
    queue = attempt.spec.compute.queue_name
    nodes = nodes_of(attempt.spec, attempt.stage)
    digest = _digest([attempt.uid, config, template, *([nodes] if nodes > 1 else [])])
    name = job_name(attempt.name, attempt.stage, attempt.number, digest, indexed=nodes > 1)
    meta = {
        "name": name,
        "namespace": attempt.namespace,
        "labels": labels(attempt),
        "ownerReferences": [owner_reference(attempt.name, attempt.uid)],
    }
    for volume in template["spec"]["volumes"]:
        if volume["name"] == "config":
            volume["configMap"]["name"] = name
    found_by = service_name(attempt.name, attempt.uid) if nodes > 1 else ""
    if found_by:
        # The digest of the template is part of the Job's name, so this comes after it.
        template["spec"]["subdomain"] = found_by
        leader = {"name": ENV_LEADER, "value": leader_address(name, found_by)}
        template["spec"]["containers"][0]["env"].append(leader)
    job = {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": meta | {"labels": labels(attempt) | ({LABEL_QUEUE: queue} if queue else {})},
        "spec": {
            # Kueue lets it go when there is room; until then it has no pod.
            **({"suspend": True} if queue else {}),
            "backoffLimit": 0,
            "completions": nodes,
            "parallelism": nodes,
            **({"completionMode": "Indexed"} if nodes > 1 else {}),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": failure_rules()},
            "template": template,
        },
    }
    config_map = {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": meta,
        "immutable": True,
        "data": {PurePosixPath(STAGE_CONFIG_PATH).name: config},
    }
    if not found_by:
        return Built(name, config_map, job)
    # No attempt's label: it serves them all.
    shared = {key: value for key, value in labels(attempt).items() if key != LABEL_ATTEMPT}
    return Built(name, config_map, job, service(found_by, meta | {"labels": shared}, attempt.uid))


def job_name(run: str, stage: str, number: int, digest: str, *, indexed: bool = False) -> str:
    """`indexed`: the name is also the beginning of its pods' host names, single DNS labels that end in their index."""
    tail = f"-{stage}-{number}-{digest}"
    if indexed:
        run = run.replace(".", "-")
    limit = NAME_LIMIT - (len("-15") if indexed else 0)
    return run[: limit - len(tail)].rstrip("-.") + tail


def labels(attempt: Attempt) -> dict[str, str]:
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_COMPONENT: "trainer",
        LABEL_OWNER_KIND: TRAINING_RUNS.kind,
        LABEL_OWNER_NAME: attempt.name,
        LABEL_OWNER_UID: attempt.uid,
        LABEL_STAGE: attempt.stage,
        LABEL_ATTEMPT: str(attempt.number),
    }


def owner_reference(name: str, uid: str) -> Object:
    return {
        "apiVersion": TRAINING_RUNS.api_version,
        "kind": TRAINING_RUNS.kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def stage_config(attempt: Attempt) -> StageConfig:
    spec, source, mlflow = attempt.spec, attempt.spec.dataset.source, attempt.spec.registry.mlflow
    own = run_folder(attempt.namespace, attempt.name, attempt.uid)
    trial = spec.trial
    folder = own if trial is None else f"{trial.data}/{TRIALS_FOLDER}/{trial.folder}"
    resume = f"{own}/{TRIALS_FOLDER}/{attempt.resume_trial}" if attempt.resume_trial else ""
    if trial is not None and trial.resume_from is not None:
        resume = f"{trial.data}/{TRIALS_FOLDER}/{trial.resume_from}"
    artifacts, published = _folder_uris(spec, folder)
    claim, made = claim_in(spec.base_model.uri), _synthetic_claim(spec)
    return StageConfig(
        run=RunIdentity(name=attempt.name, namespace=attempt.namespace, uid=attempt.uid),
        artifacts=artifacts,
        published_artifacts=published,
        data_artifacts="" if trial is None else _folder_uris(spec, trial.data)[0],
        resume_artifacts=_folder_uris(spec, resume)[0] if resume else "",
        task=attempt.task,
        spec=spec,
        base_model_path=f"{MODELS}/{claim.path}".rstrip("/") if claim else spec.base_model.uri,
        source_path=f"{SOURCE}/{source.claim.path}".rstrip("/") if source.claim else None,
        synthetic_path=f"{SYNTHETIC}/{made.path}".rstrip("/") if made else None,
        previous_adapter_path=_previous_path(spec),
        source_token_file=f"{SOURCE_SECRET}/{TOKEN}" if source.http and source.http.secret_ref else None,
        mlflow_token_file=f"{MLFLOW_SECRET}/{TOKEN}" if mlflow and mlflow.secret_ref else None,
        allowed_origins=tuple(filter(None, [origin_of(source.http.url)])) if source.http else (),
        gpu_seconds_left=attempt.gpu_seconds_left,
        attempt=attempt.number,
    )


def run_folder(namespace: str, name: str, uid: str) -> str:
    """Name of a run's folder below `output`."""
    return f"{namespace}-{name}-{uid[:8]}"


def _folder_uris(spec: TrainingRunSpec, folder: str) -> tuple[str, str]:
    """A folder below `output` as the stage opens it, and as other pods name it."""
    if spec.output.claim is not None:
        inside = _below(spec.output.claim.path, folder)
        return f"file://{ARTIFACTS}/{inside}", f"claim://{spec.output.claim.name}/{inside}"
    uri = f"{(spec.output.uri or '').rstrip('/')}/{folder}"
    return uri, uri


def gpus_of(spec: TrainingRunSpec, stage: Stage) -> int:
    """GPUs of a stage's pod. Answers are generated on one, however many have trained."""
    most = {"tune": spec.compute.gpus, "train": spec.compute.gpus, "evaluate": 1}.get(stage, 0)
    return min(most, spec.compute.gpus)


def needs(spec: TrainingRunSpec, stage: Stage) -> list[str]:
    """What a stage's pod cannot start without, in words."""
    source, mlflow = spec.dataset.source, spec.registry.mlflow
    refs = [
        source.http.secret_ref if source.http and stage == "prepare" else None,
        mlflow.secret_ref if mlflow and stage == "register" else None,
    ]
    claims = [
        spec.output.claim,
        claim_in(spec.base_model.uri),
        source.claim if stage == "prepare" else None,
        _synthetic_claim(spec) if stage == "prepare" else None,
        claim_in(spec.evaluation.previous_adapter or "") if stage == "evaluate" else None,
    ]
    return [
        *(f"Secret {ref.name!r} with key {ref.key!r}" for ref in refs if ref),
        *(f"claim {ref.name!r}" for ref in claims if ref),
    ]


def _template(attempt: Attempt) -> Object:
    spec = attempt.spec
    gpus = gpus_of(spec, attempt.stage)
    volumes, mounts = _volumes(attempt)
    container = {
        "image": attempt.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(spec),
        "volumeMounts": mounts,
        "resources": _container_resources(attempt, gpus),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": container_security(),
    }
    pod: Object = {
        **pod_fields(attempt.pull_secrets),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [{"name": CONTAINER, "command": ["cutover-trainer", attempt.stage], **container}],
        "volumes": volumes,
        "tolerations": tolerations(spec, gpus),
    }
    if attempt.stage == "prepare":
        pod["initContainers"] = [{"name": "export", "command": ["cutover-trainer", "export"], **container}]
    if attempt.gpu_seconds_left is not None and gpus:
        # On the pod, not the Job: time spent waiting for a node costs nothing.
        at_work = gpus * nodes_of(spec, attempt.stage)
        pod["activeDeadlineSeconds"] = max(
            60, int(attempt.gpu_seconds_left / at_work) + DEADLINE_SLACK_SECONDS
        )
    selector = dict(spec.compute.node_selector)
    if gpus and spec.compute.gpu_product:
        selector[NODE_LABEL_GPU_PRODUCT] = spec.compute.gpu_product
    if selector:
        pod["nodeSelector"] = selector
    if spec.compute.service_account_name:
        # Object stores that trust a service account inject their own projected token; the API's stays out.
        pod["serviceAccountName"] = spec.compute.service_account_name
    return {"metadata": {"labels": labels(attempt)}, "spec": pod}


def _volumes(attempt: Attempt) -> tuple[list[Object], list[Object]]:
    spec, source, mlflow = attempt.spec, attempt.spec.dataset.source, attempt.spec.registry.mlflow
    config = PurePosixPath(STAGE_CONFIG_PATH)
    volumes: list[Object] = [
        {"name": "config", "configMap": {"name": ""}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts: list[Object] = [
        {"name": "config", "mountPath": str(config.parent), "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]

    def claim(name: str, ref: ClaimRef, path: str, *, read_only: bool) -> None:
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": ref.name}})
        mounts.append({"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})})

    def secret(name: str, ref: SecretKeyRef | None, folder: str) -> None:
        if ref is not None:
            item = {"key": ref.key, "path": TOKEN}
            volumes.append({"name": name, "secret": {"secretName": ref.name, "items": [item]}})
            mounts.append({"name": name, "mountPath": folder, "readOnly": True})

    if spec.output.claim is not None:
        claim("artifacts", spec.output.claim, ARTIFACTS, read_only=False)
    base = claim_in(spec.base_model.uri)
    if base is not None:
        claim("models", base, MODELS, read_only=True)
    previous = claim_in(spec.evaluation.previous_adapter or "")
    if previous is not None and attempt.stage == "evaluate":
        claim("previous", previous, PREVIOUS, read_only=True)
    if source.claim is not None and attempt.stage == "prepare":
        claim("source", source.claim, SOURCE, read_only=True)
    made = _synthetic_claim(spec)
    if made is not None and attempt.stage == "prepare":
        claim("synthetic", made, SYNTHETIC, read_only=True)
    if attempt.stage == "prepare":
        secret("source-token", source.http.secret_ref if source.http else None, SOURCE_SECRET)
    if attempt.stage == "register":
        secret("mlflow-token", mlflow.secret_ref if mlflow else None, MLFLOW_SECRET)
    return volumes, mounts


def _synthetic_claim(spec: TrainingRunSpec) -> ClaimRef | None:
    return None if spec.dataset.synthetic is None else spec.dataset.synthetic.claim


def _previous_path(spec: TrainingRunSpec) -> str | None:
    uri = spec.evaluation.previous_adapter
    claim = claim_in(uri or "")
    return uri if claim is None else f"file://{PREVIOUS}/{claim.path}"


def _environment(spec: TrainingRunSpec) -> list[Object]:
    values = {"HOME": "/tmp", "TMPDIR": "/tmp"}  # noqa: S108
    if spec.compute.gpus == 0:
        values |= {"OMP_NUM_THREADS": "1", "CUTOVER_THREADS": "1"}
    return [{"name": name, "value": value} for name, value in values.items()]


def _container_resources(attempt: Attempt, gpus: int) -> Object:
    compute = attempt.spec.compute
    requests = dict(REQUESTS[attempt.stage])
    limits: dict[str, str] = {}
    if compute.cpu:
        requests["cpu"] = compute.cpu
    if compute.memory:
        requests["memory"] = limits["memory"] = compute.memory
    if gpus:
        limits[RESOURCE_GPU] = requests[RESOURCE_GPU] = str(gpus)
    return {"requests": requests, **({"limits": limits} if limits else {})}


def failure_rules() -> list[Object]:
    """Every end of a pod that is not success ends the Job, and with it its other pods: the operator owns the retries, and
    who has lost a partner has to meet anew. The rule's message keeps the exit code."""
    codes = [int(ExitCode.BAD_INPUT), int(ExitCode.INTERRUPTED)]
    return [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": codes}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _below(path: str, folder: str) -> str:
    return str(PurePosixPath(path) / folder) if path else folder


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
