"""A trial's rungs: stopped and gone on with, they are one training; compared on the validation part, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cutover.contract import ExitCode
from cutover.stages import StageResult
from cutover_trainer.examples import PreparedData
from cutover_trainer.manifest import sha256_of_file
from fakes.training_example import rows, run_stage, stage_document, write_rows

FINE_TUNE: dict[str, Any] = {"learningRate": 2e-3, "epochs": 3, "batchSize": 4}
ROWS = 48


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that searches: its data is prepared."""
    torch.set_num_threads(1)
    workspace = tmp_path_factory.mktemp("search")
    write_rows(workspace / "rows.jsonl", rows(ROWS))
    tuning = {"trials": 2, "space": {"learningRate": {"values": [2e-3, 1e-3]}}}
    code, result = run_stage("prepare", document(workspace, tuning=tuning), workspace)
    assert code == ExitCode.DONE, result.message
    return workspace


def document(workspace: Path, **spec: Any) -> dict[str, Any]:
    return stage_document(workspace / "run", workspace / "rows.jsonl", **({"fineTune": FINE_TUNE} | spec))


def trial(
    search: Path, rung: int, epochs: float, resume_from: str | None = None, **more: Any
) -> dict[str, Any]:
    folder = more.pop("folder", f"t01-r{rung}")
    spec = {"number": 1, "rung": rung, "epochs": epochs, "data": "search", "folder": folder}
    config = document(search, trial=spec | ({"resumeFrom": resume_from} if resume_from else {}), **more)
    at = f"file://{search / 'run'}"
    config |= {"artifacts": f"{at}/trials/{folder}", "dataArtifacts": at}
    return config | ({"resumeArtifacts": f"{at}/trials/{resume_from}"} if resume_from else {})


def train(config: dict[str, Any], workspace: Path) -> StageResult:
    code, result = run_stage("train", config, workspace)
    assert code == ExitCode.DONE, result.message
    return result


def adapter(folder: Path) -> str:
    return sha256_of_file(folder / "adapter/adapter_model.safetensors")


def test_rungs_and_the_winners_training_are_one_training(search: Path, tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    shutil.copytree(search / "run", straight / "run", ignore=shutil.ignore_patterns("trials"))
    shutil.copy(search / "rows.jsonl", straight)
    whole = train(document(straight), straight)

    assert whole.progress is not None
    per_epoch = whole.progress.steps // FINE_TUNE["epochs"]
    first = train(trial(search, 0, 1 / 3), search)
    assert first.progress is not None
    assert first.progress.step == -(-per_epoch // 3)
    assert first.objective is not None
    second = train(trial(search, 1, 2, resume_from="t01-r0"), search)
    assert second.progress is not None
    assert (second.progress.step, second.progress.steps) == (2 * per_epoch, 2 * per_epoch)
    assert second.objective is not None
    assert second.objective < first.objective

    # Asked for at once, the rung has the same loss to the last bit.
    at_once = train(trial(search, 1, 2, folder="t01-at-once"), search)
    assert at_once.objective == second.objective

    # The model: the winner's checkpoint gone on with, in a folder that has none.
    config = document(search) | {"resumeArtifacts": f"file://{search / 'run'}/trials/t01-r1"}
    model = train(config, search)
    assert model.progress is not None
    assert model.progress.loss == whole.progress.loss
    assert adapter(search / "run") == adapter(straight / "run")
    curves = [json.loads((folder / "run/training.json").read_bytes()) for folder in (search, straight)]
    assert curves[0]["loss"] == curves[1]["loss"]
    assert curves[0]["validationLoss"] == curves[1]["validationLoss"]


def test_a_trial_leaves_a_checkpoint_and_no_adapter(search: Path) -> None:
    train(trial(search, 0, 1, folder="t02-r0"), search)
    folder = search / "run/trials/t02-r0"
    assert (folder / "DONE-train.json").is_file()
    assert list((folder / "checkpoints").glob("*/MANIFEST.json"))
    assert not (folder / "adapter").exists()
    assert not (folder / "data").exists()
    again = train(trial(search, 0, 1, folder="t02-r0"), search)
    assert again.objective == json.loads((folder / "DONE-train.json").read_bytes())["objective"]
    code, result = run_stage("train", trial(search, 0, 2, folder="t02-r0"), search)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "ArtifactsOfAnotherSpec")


def test_a_trial_never_reads_the_test_part(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    part = PreparedData.part
    monkeypatch.setattr(PreparedData, "part", lambda self, name: (read.append(name), part(self, name))[1])
    train(trial(search, 0, 0.1, folder="t03-r0"), search)
    assert sorted(set(read)) == ["train", "validation"]


def test_an_empty_validation_part_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", rows(ROWS))
    split = {"split": {"train": 0.9, "validation": 0.0, "test": 0.1}}
    code, result = run_stage("prepare", document(tmp_path, dataset=split), tmp_path)
    assert code == ExitCode.DONE, result.message
    code, result = run_stage("train", trial(tmp_path, 0, 1, dataset=split), tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "NoValidationRows")
    assert "dataset.split.validation" in result.message


def test_a_search_is_the_operators(search: Path) -> None:
    tuning = {"trials": 2, "space": {"learningRate": {"values": [2e-3, 1e-3]}}}
    at = f"file://{search / 'run'}"
    config = document(search, tuning=tuning) | {"artifacts": f"{at}/trials/none", "dataArtifacts": at}
    code, result = run_stage("train", config, search)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "SearchNotMade")
