"""A pod with two workers is asked to stop: both leave, one checkpoint is whole, and the stage says so once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cutover.contract import ExitCode
from cutover.stages import StageResult
from fakes.training_example import rows, run_stage, stage_document, write_rows

DEADLINE_SECONDS = 500.0
FINE_TUNE = {"learningRate": 2e-3, "epochs": 20, "batchSize": 4}


@pytest.mark.timeout(1200)
def test_the_pods_signal_reaches_every_worker(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows(36))
    document = stage_document(tmp_path / "run", file, fineTune=FINE_TUNE, compute={"gpus": 2})
    code, prepared = run_stage("prepare", document, tmp_path)
    assert code == ExitCode.DONE, prepared.message
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(document))
    log = tmp_path / "termination.json"
    launcher = subprocess.Popen(
        [sys.executable, "-m", "cutover_trainer", "train", "--config", str(tmp_path / "stage.yaml")],
        env={**os.environ, "CUTOVER_TERMINATION_LOG": str(log), "CUTOVER_CHECKPOINT_SECONDS": "0"},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not any((tmp_path / "run/checkpoints").glob("step-*/MANIFEST.json")):
            assert launcher.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "no worker came as far as a checkpoint"
            time.sleep(0.01)
        launcher.terminate()
        assert launcher.wait(DEADLINE_SECONDS) == ExitCode.INTERRUPTED
    finally:
        launcher.kill()
        launcher.wait()
    result = StageResult.model_validate_json(log.read_text())
    assert (result.outcome, result.reason) == ("interrupted", "Interrupted")
    assert not (tmp_path / "run/DONE-train.json").exists()
