"""The candidate's Deployment and Service. Pure: spec and model in, objects out.

Model files come from claims (mounted read-only), from an init container that fetches s3:// and gs:// URIs into a
verified cache, or by id from the Hugging Face hub. Pods meet the restricted Pod Security Standard.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from cutover.api.base import API_VERSION, to_seconds
from cutover.api.modelrollout import ModelRolloutSpec
from cutover.contract import (
    LABEL_COMPONENT,
    LABEL_MANAGED_BY,
    LABEL_OWNER_KIND,
    LABEL_OWNER_NAME,
    MANAGED_BY,
    PATH_LIVE,
    PATH_READY,
    PORT_ENGINE,
    PORT_PROOF,
)
from cutover_operator.restricted_pod import container_security, pod_fields
from cutover_operator.rollout.candidate import ServedModel, short_name

CACHE = "/cache"
VLLM_LORA_RANKS = 64
VLLM_BASE_NAME = "base"
"""What vLLM calls the bare base beside an adapter."""
ALLOW_UNPROVEN = "--allow-unproven"
"""Argument of the built-in engine; for vLLM it means that nobody proves the adapter."""
PROBE_PERIOD_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Images:
    """The operator's default image per engine."""

    engine: str
    vllm: str
    tgi: str
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets with the registries' credentials."""
    trainer: str = ""
    """For the Job that tells MLflow of an end."""

    def of(self, engine: str) -> str:
        return {"vllm": self.vllm, "tgi": self.tgi}.get(engine, self.engine)


@dataclass(frozen=True, slots=True)
class Owner:
    name: str
    namespace: str
    uid: str


@dataclass(slots=True)
class _Files:
    """Where the pod finds model files; collects the volumes and downloads that takes."""

    volumes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    downloads: list[tuple[str, str]] = field(default_factory=list)

    def path_of(self, uri: str) -> str:
        """Local path of a URI, or the id of a hub model."""
        if uri.startswith("hf://"):
            return uri.removeprefix("hf://")
        if uri.startswith("claim://"):
            claim, _, path = uri.removeprefix("claim://").partition("/")
            folder = f"/models/{claim}"
            if all(m["mountPath"] != folder for m in self.mounts):
                volume = "model-" + hashlib.sha256(claim.encode()).hexdigest()[:8]
                self.volumes.append(
                    {"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
                )
                self.mounts.append({"name": volume, "mountPath": folder, "readOnly": True})
            return f"{folder}/{path}".rstrip("/")
        folder = f"{CACHE}/{hashlib.sha256(uri.encode()).hexdigest()[:16]}"
        self.downloads.append((uri, folder))
        return folder


def labels(owner: Owner) -> dict[str, str]:
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_COMPONENT: "candidate",
        LABEL_OWNER_KIND: "ModelRollout",
        LABEL_OWNER_NAME: owner.name[:63],
    }


def selector(owner: Owner) -> dict[str, str]:
    return {LABEL_COMPONENT: "candidate", "app.kubernetes.io/instance": short_name(owner.name, "candidate")}


def selector_text(owner: Owner) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(selector(owner).items()))


def owned_metadata(owner: Owner, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": {**labels(owner), **selector(owner)},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "ModelRollout",
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def released(live: dict[str, Any]) -> dict[str, Any]:
    """A live Deployment or Service as it is, but owned by nobody: applied, it outlives the rollout."""
    metadata = {
        key: live["metadata"][key] for key in ("name", "namespace", "labels") if key in live["metadata"]
    }
    return {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        "metadata": metadata,
        "spec": live["spec"],
    }


def service(owner: Owner) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned_metadata(owner, short_name(owner.name, "candidate")),
        "spec": {
            "selector": selector(owner),
            "ports": [{"name": "http", "port": PORT_ENGINE, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def deployment(spec: ModelRolloutSpec, model: ServedModel, owner: Owner, images: Images) -> dict[str, Any]:
    """The candidate's pods. New pods come up before old ones go, and get traffic only when /health says so."""
    serving = spec.serving
    files = _Files()
    base = files.path_of(model.base_uri)
    adapter = files.path_of(model.adapter_uri) if model.adapter_uri else ""
    cache: dict[str, Any] = {"name": "cache", "emptyDir": {}}
    if serving.model_cache.claim:
        cache = {"name": "cache", "persistentVolumeClaim": {"claimName": serving.model_cache.claim}}
    volumes = [cache, {"name": "tmp", "emptyDir": {}}, *files.volumes]
    mounts = [
        {"name": "cache", "mountPath": CACHE},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        *files.mounts,
    ]
    container: dict[str, Any] = {
        "name": "engine",
        "image": serving.image or images.of(serving.engine),
        **_command(spec, model, base, adapter),
        "ports": [{"name": "http", "containerPort": PORT_ENGINE, "protocol": "TCP"}],
        "volumeMounts": mounts,
        # vLLM and TGI write compiled kernels beside their code.
        "securityContext": container_security(read_only=serving.engine == "builtin"),
        "startupProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": PROBE_PERIOD_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": max(1, round(to_seconds(serving.start_deadline) / PROBE_PERIOD_SECONDS)),
        },
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": "http"},
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 10,
        },
    }
    resources = {k: v for k, v in serving.resources.to_wire().items() if v}
    if resources:
        container["resources"] = resources
    pod: dict[str, Any] = {
        **pod_fields(images.pull_secrets),
        "terminationGracePeriodSeconds": 60,
        "containers": [container, *_proof(spec, model, adapter, mounts, images)],
        "volumes": volumes,
    }
    if files.downloads:
        pod["initContainers"] = [
            {
                "name": f"fetch-{index}",
                "image": images.engine,
                "command": ["cutover-engine", "fetch", uri, folder],
                "volumeMounts": mounts,
                "securityContext": container_security(),
            }
            for index, (uri, folder) in enumerate(files.downloads)
        ]
    if serving.service_account_name:
        # Object stores that trust a service account inject their own projected token; the API's stays out.
        pod["serviceAccountName"] = serving.service_account_name
    if serving.node_selector:
        pod["nodeSelector"] = dict(serving.node_selector)
    if serving.tolerations:
        pod["tolerations"] = [t.to_wire() for t in serving.tolerations]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": owned_metadata(owner, short_name(owner.name, "candidate")),
        "spec": {
            "replicas": serving.replicas,
            "progressDeadlineSeconds": max(60, round(to_seconds(serving.start_deadline)) + 60),
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": selector(owner)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {**labels(owner), **selector(owner)}}, "spec": pod},
        },
    }


def _proof(
    spec: ModelRolloutSpec, model: ServedModel, adapter: str, mounts: list[dict[str, Any]], images: Images
) -> list[dict[str, Any]]:
    """Beside a vLLM with an adapter, what keeps the pod from being ready until the adapter is proven.

    vLLM says "added successfully" of an adapter none of whose weights it has a place for, and serves the base.
    """
    if spec.serving.engine != "vllm" or not adapter or ALLOW_UNPROVEN in spec.serving.args:
        return []
    return [
        {
            "name": "proof",
            "image": images.engine,
            "command": ["cutover-engine", "prove"],
            "args": [
                *("--origin", f"http://127.0.0.1:{PORT_ENGINE}"),
                *("--adapter", adapter, "--served-name", model.served_name),
                *("--base-name", VLLM_BASE_NAME, "--port", str(PORT_PROOF)),
            ],
            "ports": [{"name": "proof", "containerPort": PORT_PROOF, "protocol": "TCP"}],
            "volumeMounts": mounts,
            "securityContext": container_security(),
            "resources": {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {
                "httpGet": {"path": PATH_READY, "port": "proof"},
                "periodSeconds": 2,
                "timeoutSeconds": 5,
                "failureThreshold": 1,
            },
            "livenessProbe": {
                "httpGet": {"path": PATH_LIVE, "port": "proof"},
                "periodSeconds": 10,
                "timeoutSeconds": 10,
                "failureThreshold": 10,
            },
        }
    ]


def _command(spec: ModelRolloutSpec, model: ServedModel, base: str, adapter: str) -> dict[str, Any]:
    extra = list(spec.serving.args)
    home = [{"name": "HOME", "value": "/tmp"}, {"name": "HF_HOME", "value": f"{CACHE}/huggingface"}]  # noqa: S108
    if spec.serving.engine == "vllm":
        return {
            "command": ["vllm", "serve", base],
            "args": [*_vllm_args(model, adapter), *(one for one in extra if one != ALLOW_UNPROVEN)],
            "env": [
                *home,
                {"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "0"},
                {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            ],
        }
    if spec.serving.engine == "tgi":
        env = list(home)
        if adapter:
            env.append({"name": "LORA_ADAPTERS", "value": f"{model.served_name}={adapter}"})
        args = ["--model-id", base, "--port", str(PORT_ENGINE), "--hostname", "0.0.0.0"]  # noqa: S104
        if model.base_uri.startswith("hf://"):
            args += ["--revision", model.base_revision]
        return {"args": [*args, *extra], "env": env}
    args = ["--base", base, "--cache", CACHE]
    if model.base_uri.startswith("hf://"):
        args += ["--revision", model.base_revision]
    if adapter:
        args += ["--adapter", adapter]
    args += ["--served-name", model.served_name, "--family", model.family, "--port", str(PORT_ENGINE)]
    return {"command": ["cutover-engine"], "args": [*args, *extra], "env": home}


def _vllm_args(model: ServedModel, adapter: str) -> list[str]:
    args = ["--host", "0.0.0.0", "--port", str(PORT_ENGINE)]  # noqa: S104
    if model.base_uri.startswith("hf://"):
        args += ["--revision", model.base_revision]
    if adapter:
        args += [
            "--served-model-name",
            VLLM_BASE_NAME,
            "--enable-lora",
            "--max-loras",
            "1",
            "--max-lora-rank",
        ]
        args += [str(VLLM_LORA_RANKS), "--lora-modules", f"{model.served_name}={adapter}"]
    else:
        args += ["--served-model-name", model.served_name]
    return [
        *args,
        "--limit-mm-per-prompt",
        '{"image":1}',
        "--allowed-media-domains",
        "none.invalid",
        "--max-logprobs",
        "20",
        "--generation-config",
        "vllm",
        "--shutdown-timeout",
        "30",
    ]


def contains(live: Any, wanted: Any) -> bool:
    """Whether the live object already says everything that is wanted; defaults the API server filled in are fine."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(contains(live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(contains(one, other) for one, other in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)
