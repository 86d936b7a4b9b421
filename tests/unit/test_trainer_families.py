"""The other model families and the other storage: every stage, on models with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cutover.contract import ExitCode
from fakes import sample_models
from fakes.object_store import s3_bucket
from fakes.training_example import BASE_MODEL, rows, run_stage, stage_document, write_rows

QUESTION = "What damage does the photo show?"


def short_rows(count: int) -> list[dict[str, Any]]:
    """The sample models read few tokens; pictures of several sizes, for families that tile them."""
    documents = rows(count)
    for number, row in enumerate(documents):
        size = (48, 40) if number % 2 else (40, 64)
        picture = sample_models.data_url(sample_models.picture(number, *size))
        row["messages"][0]["content"] = sample_models.SYSTEM
        row["messages"][1]["content"] = [
            {"type": "text", "text": QUESTION},
            {"type": "image_url", "image_url": {"url": picture}},
        ]
    return documents


@pytest.mark.parametrize(
    ("family", "base", "targets"),
    [
        ("llava_next", sample_models.tiny_llava_next, "language_model_and_vision"),
        ("blip2", sample_models.tiny_blip2, "language_model"),
        ("blip2", sample_models.tiny_blip2, "language_model_and_vision"),
    ],
)
def test_a_family_goes_through_every_stage(
    tmp_path: Path, family: str, base: Callable[[], Path], targets: str
) -> None:
    torch.set_num_threads(1)
    file = write_rows(tmp_path / "rows.jsonl", short_rows(24))
    document = stage_document(
        tmp_path / "run",
        file,
        baseModel={"uri": "claim://models/sample", "family": family},
        fineTune={"learningRate": 5e-3, "epochs": 2, "batchSize": 5, "lora": {"rank": 4, "targets": targets}},
    )
    document["baseModelPath"] = str(base())
    document["task"]["maxAnswerTokens"] = 4
    code, result = run_stage("all", document, tmp_path)
    assert code == ExitCode.DONE, result.message
    assert result.model is not None
    assert result.model.family == family
    curve = json.loads((tmp_path / "run/training.json").read_text())["loss"]
    assert curve[-1][1] < curve[0][1]
    probe = json.loads((tmp_path / "run/adapter/probe.json").read_text())
    assert probe["adapter_logprobs"] != probe["base_logprobs"]


def test_a_run_whose_rows_pictures_base_and_artifacts_lie_in_object_storage(tmp_path: Path) -> None:
    import boto3

    from cutover_trainer.storage import ArtifactStore

    torch.set_num_threads(1)
    with s3_bucket("company") as bucket:
        store = ArtifactStore(bucket)
        store.upload(BASE_MODEL, "models/tiny")
        write_rows(tmp_path / "rows.jsonl", rows(24))
        store.put("rows/day.jsonl", (tmp_path / "rows.jsonl").read_bytes())
        document = stage_document(
            tmp_path,
            dataset={"source": {"uri": f"{bucket}/rows"}},
            baseModel={"uri": f"{bucket}/models/tiny"},
            fineTune={"learningRate": 2e-3, "epochs": 1},
        )
        document |= {"artifacts": f"{bucket}/runs/one", "publishedArtifacts": "", "sourcePath": None}
        document["baseModelPath"] = f"{bucket}/models/tiny"
        code, result = run_stage("all", document, tmp_path)
        assert code == ExitCode.DONE, result.message
        assert result.model is not None
        assert result.model.adapter_uri == f"{bucket}/runs/one/adapter"
        names = {entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="company")["Contents"]}
    assert {
        "runs/one/data/MANIFEST.json",
        "runs/one/adapter/probe.json",
        "runs/one/evaluation.json",
        "runs/one/DONE-register.json",
    } <= names
