"""Which model a rollout serves: from a TrainingRun that succeeded, or named directly. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cutover.api.modelrollout import ModelRolloutSpec
from cutover.api.trainingrun import ModelVersion, TrainingRunStatus
from cutover.route import Arm, Price

ENGINE_FAMILIES: dict[str, tuple[str, ...]] = {
    "vllm": ("llava", "llava_next", "blip2"),
    "tgi": ("llava_next",),
    "builtin": ("llava", "llava_next", "blip2"),
    "external": ("llava", "llava_next", "blip2"),
}
"""Families each engine serves with an adapter on pictures."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    version: str
    """Value of the metric label, and the name the engine serves the model under."""
    family: str
    base_uri: str
    base_revision: str = "main"
    adapter_uri: str = ""
    served_name: str = ""

    @property
    def digest(self) -> str:
        """Tells whether a version still names the same files."""
        text = "\x1f".join((self.version, self.base_uri, self.base_revision, self.adapter_uri))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is nothing to serve (yet)."""

    reason: str
    message: str
    waiting: bool = False
    """It may come right by itself."""


def served_model(spec: ModelRolloutSpec, training_run: dict[str, Any] | None) -> ServedModel | Refusal:
    """The model, or the reason there is none, in the words of the person who has to mend it."""
    candidate = spec.candidate
    if (candidate.training_run_ref is None) == (candidate.model is None):
        return Refusal("CandidateUnclear", "candidate: set exactly one of trainingRunRef and model")
    if candidate.model is not None:
        model = candidate.model
        external = model.uri.startswith(("http://", "https://"))
        if external != (spec.serving.engine == "external"):
            return Refusal(
                "EngineMismatch",
                f"candidate.model.uri {model.uri} and serving.engine {spec.serving.engine} do not go together: "
                "an http URL is served by engine external, every other URI by vllm, tgi or builtin",
            )
        found = ServedModel(
            version=model.version,
            family=model.family,
            base_uri=model.uri,
            base_revision=model.revision,
            adapter_uri=model.adapter_uri or "",
            served_name=model.served_name or _engine_name(model.version),
        )
        return _fitting(spec, found)
    name = candidate.training_run_ref.name if candidate.training_run_ref else ""
    if training_run is None:
        return Refusal(
            "TrainingRunNotFound", f"candidate.trainingRunRef: there is no TrainingRun {name} here", True
        )
    if spec.serving.engine == "external":
        return Refusal(
            "EngineMismatch", "serving.engine external serves a URL; a TrainingRun needs vllm, tgi or builtin"
        )
    return _of_training_run(spec, name, training_run)


def _of_training_run(
    spec: ModelRolloutSpec, name: str, training_run: dict[str, Any]
) -> ServedModel | Refusal:
    try:
        status = TrainingRunStatus.model_validate(training_run.get("status") or {})
    except ValidationError as error:
        return Refusal(
            "TrainingRunUnreadable",
            f"TrainingRun {name}: status cannot be read: {error.error_count()} errors",
        )
    conditions = {c.type: c for c in status.conditions}
    succeeded, stalled = conditions.get("Succeeded"), conditions.get("Stalled")
    if succeeded is None or succeeded.status != "True" or status.model is None:
        if stalled is not None and stalled.status == "True":
            return Refusal(
                "TrainingRunFailed",
                f"TrainingRun {name} stopped: {stalled.reason}: {stalled.message}; mend it or name another one",
                True,
            )
        stage = status.stage or "waiting"
        progress = f", {status.progress_text}" if status.progress_text else ""
        return Refusal("TrainingRunNotReady", f"waiting for TrainingRun {name}: {stage}{progress}", True)
    return _fitting(spec, _trained(name, status.model))


def _trained(name: str, model: ModelVersion) -> ServedModel:
    version = f"{model.name or name}-{model.version or model.digest[-12:] or '1'}"
    return ServedModel(
        version=version,
        family=model.family,
        base_uri=model.base_uri,
        base_revision=model.base_revision or "main",
        adapter_uri=model.adapter_uri,
        served_name=_engine_name(version),
    )


def _fitting(spec: ModelRolloutSpec, model: ServedModel) -> ServedModel | Refusal:
    families = ENGINE_FAMILIES[spec.serving.engine]
    if model.family in families:
        return model
    able = " or ".join(engine for engine, known in ENGINE_FAMILIES.items() if model.family in known)
    return Refusal(
        "UnsupportedFamily",
        f"serving.engine {spec.serving.engine} serves {', '.join(families)} and not {model.family}; use {able}",
    )


def _engine_name(version: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", version)


def short_name(rollout: str, suffix: str) -> str:
    """`<rollout>-<suffix>`, cut with a digest where a Service name would be too long."""
    name = f"{rollout.replace('.', '-')}-{suffix}"
    if len(name) <= 63 and "." not in rollout:
        return name
    digest = hashlib.sha256(rollout.encode()).hexdigest()[:8]
    return f"{rollout.replace('.', '-')[: 63 - len(suffix) - 10].rstrip('-')}-{digest}-{suffix}"


def candidate_arm(spec: ModelRolloutSpec, model: ServedModel, rollout: str, namespace: str) -> Arm:
    """The candidate as the gateway asks it."""
    external = spec.serving.engine == "external"
    service = short_name(rollout, "candidate")
    per_hour = spec.serving.price.usd_per_gpu_hour * spec.serving.price.gpus_per_replica
    return Arm(
        name=rollout,
        version=model.version,
        base_url=model.base_uri if external else f"http://{service}.{namespace}.svc:8000/v1",
        model=model.served_name,
        price=Price(kind="busySeconds", usd_per_busy_second=per_hour / 3600.0),
        # What answers behind an external URL is not known: it may be TGI.
        fetches_from_text=spec.serving.engine in ("tgi", "external"),
    )
