"""Stage register: the adapter becomes a version of a model that a ModelRollout can name.

With MLflow: parameters, metrics and tags of one run, a version whose source is the adapter's URI, alias `candidate`;
the version that had it before gets `previous`; `champion` is moved by rollouts (`champion`). Repeating it finds the same run (by the TrainingRun's uid) and the same version (by the adapter's digest). Without
MLflow the version is the first characters of the digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cutover.api.trainingrun import ConfidenceSummary, EvaluationSummary, Mlflow, ModelVersion
from cutover.stages import (
    ADAPTER_FOLDER,
    DATA_FOLDER,
    DATA_PAGE,
    EVALUATION_FILE,
    EVALUATION_PAGE,
    StageConfig,
    StageResult,
)
from cutover_trainer.adapter_facts import FACTS_FILE, TRAINING_FILE, AdapterFacts
from cutover_trainer.joblog import log
from cutover_trainer.manifest import Manifest, read_manifest, synthetic_rows
from cutover_trainer.mlflow_registry import registry
from cutover_trainer.outcome import BadInput
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore

CANDIDATE, PREVIOUS = "candidate", "previous"
DIGEST_CHARACTERS = 12
TAG_UID = "cutover.trainingrun.uid"
TAG_DIGEST = "cutover.adapter.digest"
TAG_SYNTHETIC = "cutover.data.synthetic"
"""Made-up rows the adapter was trained on; on the run and on the version."""
_STRANGE = re.compile(r"[^A-Za-z0-9_. -]")


def run(config: StageConfig, store: ArtifactStore, scratch: Path, stop: Stop) -> StageResult:
    manifest = read_manifest(store, ADAPTER_FOLDER)
    if manifest is None:
        raise BadInput(
            "NotTrained",
            f"artifacts: {store.uri}/{ADAPTER_FOLDER} holds no adapter; run the stage train first",
        )
    spec = config.spec
    published = (config.published_artifacts or config.artifacts).rstrip("/")
    model = ModelVersion(
        name=config.task.name,
        version=manifest.digest[:DIGEST_CHARACTERS],
        base_uri=spec.base_model.uri,
        base_revision=spec.base_model.revision,
        adapter_uri=f"{published}/{ADAPTER_FOLDER}",
        family=spec.base_model.family,
        digest=manifest.digest,
    )
    if spec.registry.mlflow is not None:
        facts = AdapterFacts.model_validate_json(store.get(f"{ADAPTER_FOLDER}/{FACTS_FILE}"))
        model = _registered(config, spec.registry.mlflow, store, manifest, facts, model)
    message = f"{model.name} version {model.version}"
    return StageResult(stage="register", outcome="done", message=message, model=model)


def _registered(
    config: StageConfig,
    where: Mlflow,
    store: ArtifactStore,
    manifest: Manifest,
    facts: AdapterFacts,
    model: ModelVersion,
) -> ModelVersion:
    with registry(
        where.url, config.mlflow_token_file, "registry.mlflow", "registry.mlflow.secretRef"
    ) as client:
        run_id = _run_id(client, config)
        _log_run(client, run_id, config, store, manifest, facts)
        version = _version(client, where.model_name, run_id, model, _synthetic_rows(store))
        _name_candidate(client, where.model_name, version)
        client.set_terminated(run_id, "FINISHED")
    return model.model_copy(update={"name": where.model_name, "version": version, "mlflow_run_id": run_id})


def _run_id(client: Any, config: StageConfig) -> str:
    if config.mlflow_run_id:
        return config.mlflow_run_id
    name = f"cutover/{config.task.name}"
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment is not None else client.create_experiment(name)
    found = client.search_runs([experiment_id], f"tags.`{TAG_UID}` = '{config.run.uid}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    created = client.create_run(
        experiment_id,
        run_name=f"{config.run.namespace}/{config.run.name}",
        tags={
            TAG_UID: config.run.uid,
            "cutover.namespace": config.run.namespace,
            "cutover.name": config.run.name,
        },
    )
    return str(created.info.run_id)


def _log_run(
    client: Any,
    run_id: str,
    config: StageConfig,
    store: ArtifactStore,
    manifest: Manifest,
    facts: AdapterFacts,
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    published = (config.published_artifacts or config.artifacts).rstrip("/")
    synthetic = _synthetic_rows(store)
    settings, lora = config.spec.fine_tune, config.spec.fine_tune.lora
    parameters = {
        "baseModel": config.spec.base_model.uri,
        "baseRevision": config.spec.base_model.revision,
        "learningRate": settings.learning_rate,
        "batchSize": settings.batch_size,
        "epochs": settings.epochs,
        "seed": settings.seed,
        "loraRank": lora.rank,
        "loraAlpha": lora.alpha,
        "loraDropout": lora.dropout,
        "loraTargets": lora.targets,
        "quantization": settings.quantization,
        "kernels": settings.kernels,
        "splitSeed": config.spec.dataset.seed,
    }
    tags = {
        TAG_UID: config.run.uid,
        TAG_DIGEST: manifest.digest,
        "cutover.data.digest": facts.data_digest,
        "cutover.base.digest": facts.base_digest,
        TAG_SYNTHETIC: synthetic,
        "cutover.report.data": f"{published}/{DATA_FOLDER}/{DATA_PAGE}",
        "cutover.report.evaluation": f"{published}/{EVALUATION_PAGE}",
        **{f"cutover.version.{name}": version for name, version in facts.versions.items()},
    }
    client.log_batch(
        run_id,
        params=[Param(name, str(value)) for name, value in parameters.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    # A metric logged twice appears twice: an earlier attempt's are recognised by the last one it would write.
    if "cutover.metrics" not in client.get_run(run_id).data.tags:
        started = client.get_run(run_id).info.start_time
        metrics = [Metric(name, value, started, step) for name, value, step in _metrics(store)]
        for start in range(0, len(metrics), 500):
            client.log_batch(run_id, metrics=metrics[start : start + 500])
        client.set_tag(run_id, "cutover.metrics", "complete")
    log("registryRun", runId=run_id)


def _metrics(store: ArtifactStore) -> list[tuple[str, float, int]]:
    """(name, value, step) of everything measured."""
    metrics: list[tuple[str, float, int]] = []
    try:
        training = json.loads(store.get(TRAINING_FILE))
        metrics += [("train/loss", float(value), int(step)) for step, value in training["loss"]]
        metrics += [
            ("validation/loss", float(value), int(epoch)) for epoch, value in training["validationLoss"]
        ]
        if training["samplesPerSecond"]:
            metrics.append(("train/samples_per_second", float(training["samplesPerSecond"]), 0))
    except FileNotFoundError:
        pass
    try:
        evaluation = json.loads(store.get(EVALUATION_FILE))
    except FileNotFoundError:
        return metrics
    return metrics + [(name, value, 0) for name, value in _evaluated(evaluation)]


def _evaluated(document: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of an `evaluation.json`."""
    summary = EvaluationSummary.model_validate(document["summary"])
    sure = summary.confidence or ConfidenceSummary()
    for prefix, shares in (
        ("test/accuracy", summary.accuracy),
        ("test/macro_f1", summary.macro_f1),
        ("base/accuracy", summary.accuracy_before),
        ("control/accuracy", summary.accuracy_control),
        ("previous/accuracy", summary.accuracy_previous),
        ("people/agreement", summary.human_agreement),
    ):
        yield from ((_metric_name(prefix, field), share) for field, share in shares.items())
    for field, classes in document.get("recall", {}).items():
        for name, share in classes.items():
            if share["n"]:
                yield _metric_name("test/recall", field, name), share["value"]
    for other, compared in document.get("comparisons", {}).items():
        for field, test in compared["mcnemar"].items():
            yield _metric_name(other, "mcnemar_p", field), test["pValue"]
    for name, value in (
        ("test/json_validity", summary.json_validity),
        ("test/latency_p95_seconds", summary.latency_p95_seconds),
        ("validation/confidence_auroc", sure.auroc),
        ("validation/confidence_threshold", sure.threshold),
        ("validation/confidence_kept_share", sure.kept_share),
    ):
        if value is not None:
            yield name, value


def _metric_name(*parts: str) -> str:
    """MLflow takes letters, digits and a few signs; fields and classes may have others."""
    return "/".join(_STRANGE.sub("_", part) if number else part for number, part in enumerate(parts))


def _name_candidate(client: Any, name: str, version: str) -> None:
    """`previous` is set first: cut short between the two, a repetition does the same again."""
    before = client.get_registered_model(name).aliases.get(CANDIDATE)
    if before is not None and str(before) != version:
        client.set_registered_model_alias(name, PREVIOUS, str(before))
    client.set_registered_model_alias(name, CANDIDATE, version)


def _synthetic_rows(store: ArtifactStore) -> str:
    data = read_manifest(store, DATA_FOLDER)
    return str(0 if data is None else synthetic_rows(data))


def _version(client: Any, name: str, run_id: str, model: ModelVersion, synthetic: str) -> str:
    """Version of this adapter; made if the registry has none with its digest."""
    from mlflow.exceptions import RestException

    try:
        client.create_registered_model(name)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.get(TAG_DIGEST) == model.digest and known.source == model.adapter_uri:
            return str(known.version)
    tags = {
        TAG_DIGEST: model.digest,
        "cutover.base.uri": model.base_uri,
        "cutover.base.revision": model.base_revision,
        "cutover.family": model.family,
        TAG_SYNTHETIC: synthetic,
    }
    return str(client.create_model_version(name, source=model.adapter_uri, run_id=run_id, tags=tags).version)
