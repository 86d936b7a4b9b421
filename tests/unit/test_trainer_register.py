"""Registering: a real MLflow server gets one run and one version, however often the stage is repeated."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from cutover.contract import ExitCode
from cutover_trainer.manifest import commit_folder
from cutover_trainer.storage import ArtifactStore
from fakes.training_example import http_service, run_stage, stage_document

FACTS = {
    "task": "building-damage",
    "base_uri": "claim://models/tiny-llava",
    "base_revision": "main",
    "base_digest": "b" * 64,
    "family": "llava",
    "data_digest": "d" * 64,
    "targets": "language_model",
    "steps": 4,
    "versions": {"torch": "2"},
}
SUMMARY = {
    "examples": 80,
    "accuracy": {"damageType": 0.9, "overall": 0.7},
    "accuracyPrevious": {"damageType": 0.8},
    "macroF1": {"damageType": 0.85},
    "humanAgreement": {"damageType": 0.93},
    "confidence": {"rows": 80, "auroc": 0.91, "floor": 0.9},
    "jsonValidity": 1.0,
    "latencyP95Seconds": 0.1,
}
EVALUATION = {
    "summary": SUMMARY,
    "recall": {"damageType": {"crack (hair)": {"n": 9, "value": 0.75}, "mould": {"n": 0, "value": 0.0}}},
    "comparisons": {"control": {"mcnemar": {"damageType": {"pValue": 0.04}}}},
}
TRAINING = {"loss": [[2, 0.5], [4, 0.25]], "validationLoss": [[1, 0.3]], "samplesPerSecond": 50.0}


def trained(
    tmp_path: Path, url: str | None, uid: str = "uid-1", weights: bytes = b"w", **more: Any
) -> dict[str, Any]:
    """A run whose earlier stages are done."""
    folder = tmp_path / uid
    store = ArtifactStore(f"file://{folder}")
    commit_folder(store, "adapter", {"cutover.json": json.dumps(FACTS).encode(), "weights": weights}, {})
    commit_folder(store, "data", {"train.jsonl": b""}, {"rows": 90, "syntheticRows": 7})
    store.put("training.json", json.dumps(TRAINING).encode())
    store.put("evaluation.json", json.dumps(EVALUATION).encode())
    document = stage_document(folder)
    document["run"]["uid"] = uid
    document["publishedArtifacts"] = f"claim://artifacts/{uid}"
    if url is not None:
        document["spec"]["registry"] = {"mlflow": {"url": url, "modelName": more.pop("name", "damage")}}
    return {**document, **more}


def test_without_a_registry_the_digest_is_the_version(tmp_path: Path) -> None:
    code, result = run_stage("register", trained(tmp_path, None), tmp_path)
    assert code == ExitCode.DONE
    assert result.model is not None
    assert result.model.name == "building-damage"
    assert result.model.version == result.model.digest[:12]
    assert result.model.adapter_uri == "claim://artifacts/uid-1/adapter"
    assert result.model.base_uri == "claim://models/tiny-llava"


def test_a_run_a_version_and_an_alias_once(mlflow_url: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    document = trained(tmp_path, mlflow_url, "uid-once", name="once")
    code, result = run_stage("register", document, tmp_path)
    assert code == ExitCode.DONE, result.message
    # The pod died before it could say so: everything is done again.
    (tmp_path / "uid-once/DONE-register.json").unlink()
    again_code, again = run_stage("register", document, tmp_path)
    assert (again_code, again) == (code, result)

    assert result.model is not None
    client = MlflowClient(tracking_uri=mlflow_url, registry_uri=mlflow_url)
    version = client.get_model_version_by_alias("once", "candidate")
    assert version.version == result.model.version == "1"
    assert version.source == "claim://artifacts/uid-once/adapter"
    assert len(client.search_model_versions("name = 'once'")) == 1
    run = client.get_run(result.model.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["cutover.data.digest"] == "d" * 64
    assert run.data.tags["cutover.data.synthetic"] == version.tags["cutover.data.synthetic"] == "7"
    assert run.data.tags["cutover.adapter.digest"] == result.model.digest
    assert run.data.params["learningRate"] == "0.0002"
    evaluated = {name: value for name, value in run.data.metrics.items() if not name.startswith("train/")}
    assert evaluated == {
        "validation/loss": 0.3,
        "test/accuracy/damageType": 0.9,
        "test/accuracy/overall": 0.7,
        "test/macro_f1/damageType": 0.85,
        "test/recall/damageType/crack _hair_": 0.75,
        "previous/accuracy/damageType": 0.8,
        "people/agreement/damageType": 0.93,
        "control/mcnemar_p/damageType": 0.04,
        "test/json_validity": 1.0,
        "test/latency_p95_seconds": 0.1,
        "validation/confidence_auroc": 0.91,
    }
    assert run.data.tags["cutover.report.evaluation"] == "claim://artifacts/uid-once/evaluation.html"
    assert run.data.tags["cutover.report.data"] == "claim://artifacts/uid-once/data/report.html"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(entry.step, entry.value) for entry in history] == [(2, 0.5), (4, 0.25)]


def test_a_second_run_is_the_next_version(mlflow_url: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    _, first = run_stage("register", trained(tmp_path, mlflow_url, "uid-a", b"1", name="twice"), tmp_path)
    _, second = run_stage("register", trained(tmp_path, mlflow_url, "uid-b", b"2", name="twice"), tmp_path)
    assert first.model is not None
    assert second.model is not None
    assert (first.model.version, second.model.version) == ("1", "2")
    assert first.model.mlflow_run_id != second.model.mlflow_run_id
    client = MlflowClient(tracking_uri=mlflow_url, registry_uri=mlflow_url)
    assert client.get_model_version_by_alias("twice", "candidate").version == "2"
    assert client.get_model_version_by_alias("twice", "previous").version == "1"


def test_names_cut_short_are_the_same_when_repeated(
    mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=mlflow_url, registry_uri=mlflow_url)
    run_stage("register", trained(tmp_path, mlflow_url, "uid-c", b"1", name="cut"), tmp_path)
    assert set(client.get_registered_model("cut").aliases) == {"candidate"}
    document = trained(tmp_path, mlflow_url, "uid-d", b"2", name="cut")
    real = MlflowClient.set_registered_model_alias

    def cut_short(self: Any, name: str, alias: str, version: str) -> None:
        if alias == "candidate":
            raise MlflowException("the connection broke")
        real(self, name, alias, version)

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_registered_model_alias", cut_short)
        assert run_stage("register", document, tmp_path)[0] == ExitCode.FAILED
    for _ in range(2):
        assert run_stage("register", document, tmp_path)[0] == ExitCode.DONE
        (tmp_path / "uid-d/DONE-register.json").unlink()
        found = {name: str(version) for name, version in client.get_registered_model("cut").aliases.items()}
        assert found == {"candidate": "2", "previous": "1"}


def test_a_given_run_is_used(mlflow_url: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_url, registry_uri=mlflow_url)
    run_id = client.create_run("0").info.run_id
    document = trained(tmp_path, mlflow_url, "uid-given", name="given", mlflowRunId=run_id)
    _, result = run_stage("register", document, tmp_path)
    assert result.model is not None
    assert result.model.mlflow_run_id == run_id


def test_a_registry_that_is_away_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        code, result = run_stage("register", trained(tmp_path, url), tmp_path)
    assert (code, result.reason) == (ExitCode.FAILED, "RegistryUnavailable")
    assert "registry.mlflow.url" in result.message


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_names_the_secret_and_not_the_token(tmp_path: Path, status: int) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    seen: list[str | None] = []

    def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        seen.append(headers.get("authorization"))
        return status, b"no"

    with http_service(answer) as url:
        code, result = run_stage("register", trained(tmp_path, url, mlflowTokenFile=str(token)), tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "RegistryRefused")
    assert "registry.mlflow.secretRef" in result.message
    assert "s3cret" not in result.message
    assert set(seen) == {"Bearer s3cret"}


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    document = trained(tmp_path, "http://127.0.0.1:9", mlflowTokenFile=str(tmp_path / "absent"))
    code, result = run_stage("register", document, tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "MlflowTokenMissing")
