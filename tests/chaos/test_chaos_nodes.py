"""Two nodes train one run, each a process group of its own: the losses of one, and what becomes of them when one is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from cutover.contract import ExitCode
from cutover.stages import StageResult
from fakes.free_ports import two_in_a_row
from fakes.training_example import rows, run_stage, stage_document, write_rows

DEADLINE_SECONDS = 500.0
FINE_TUNE = {"learningRate": 2e-3, "epochs": 12, "batchSize": 5}
"""24 training rows: the nodes' parts of a batch differ in size."""
STEPS = 60


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("nodes") / "prepared"
    workspace.mkdir()
    write_rows(workspace / "rows.jsonl", rows(36))
    code, result = run_stage("prepare", document(workspace, 1), workspace)
    assert code == ExitCode.DONE, result.message
    return workspace


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> Path:
    """The same run by two nodes that nobody troubles."""
    workspace = prepared.parent / "undisturbed"
    shutil.copytree(prepared, workspace)
    nodes = Nodes(workspace)
    assert nodes.ends() == [ExitCode.DONE] * 2, [nodes.said(node) for node in range(2)]
    return workspace


def document(workspace: Path, nodes: int) -> dict[str, Any]:
    compute = {"gpus": 0, "nodes": nodes}
    return stage_document(workspace / "run", workspace / "rows.jsonl", fineTune=FINE_TUNE, compute=compute)


class Nodes:
    def __init__(self, workspace: Path, save_seconds: float = 3600, attempt: int = 1) -> None:
        self._workspace = workspace
        config = workspace / "stage.yaml"
        config.write_text(yaml.safe_dump(document(workspace, 2) | {"attempt": attempt}))
        port = two_in_a_row()
        self.launchers = [
            subprocess.Popen(
                [sys.executable, "-m", "cutover_trainer", "train", "--config", str(config)],
                env={
                    **os.environ,
                    "JOB_COMPLETION_INDEX": str(node),
                    "CUTOVER_LEADER": f"127.0.0.1:{port}",
                    "CUTOVER_TERMINATION_LOG": str(workspace / f"words-{node}"),
                    "CUTOVER_CHECKPOINT_SECONDS": str(save_seconds),
                    "CUTOVER_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                    "GLOO_SOCKET_IFNAME": "lo",
                },
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            for node in range(2)
        ]

    def wait_for_checkpoint_after(self, step: int) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while newest_step(self._workspace) <= step:
            assert all(launcher.poll() is None for launcher in self.launchers)
            assert time.monotonic() < deadline, "the nodes never came as far as a checkpoint"
            time.sleep(0.01)

    def take_away(self, node: int) -> None:
        """Launcher and worker at once, as a machine is."""
        os.killpg(self.launchers[node].pid, signal.SIGKILL)

    def ends(self) -> list[int]:
        try:
            return [launcher.wait(DEADLINE_SECONDS) for launcher in self.launchers]
        finally:
            for launcher in self.launchers:
                launcher.kill()
                launcher.wait()

    def said(self, node: int) -> StageResult:
        return StageResult.model_validate_json((self._workspace / f"words-{node}").read_text())


def newest_step(workspace: Path) -> int:
    """Of the whole checkpoints; 0 where there is none."""
    found = (workspace / "run/checkpoints").glob("step-*/MANIFEST.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in found), default=0)


def curves(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / "run/training.json").read_bytes())
    return found


def assert_same_adapter(one: Path, other: Path) -> None:
    mine, theirs = (load_file(run / "run/adapter/adapter_model.safetensors") for run in (one, other))
    assert set(mine) == set(theirs)
    assert [name for name in mine if mine[name].tobytes() != theirs[name].tobytes()] == []


@pytest.mark.timeout(1800)
def test_two_nodes_have_the_losses_of_one_worker(prepared: Path, undisturbed: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(prepared, alone)
    code, result = run_stage("train", document(alone, 1), alone)
    assert code == ExitCode.DONE, result.message
    for name in ("loss", "validationLoss"):
        mine, theirs = curves(undisturbed)[name], curves(alone)[name]
        assert [step for step, _ in mine] == [step for step, _ in theirs]
        assert [loss for _, loss in mine] == pytest.approx([loss for _, loss in theirs], rel=1e-6)


@pytest.mark.timeout(1800)
def test_whichever_node_is_lost_or_asked_to_leave_both_stop_and_the_set_goes_on(
    prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Four attempts: the second node is taken away, then asked to leave, then the first is taken away; then nobody."""
    workspace = tmp_path / "run-of-two"
    shutil.copytree(prepared, workspace)
    for attempt, lost in enumerate((1, None, 0), start=1):
        before = newest_step(workspace)
        nodes = Nodes(workspace, save_seconds=0, attempt=attempt)
        nodes.wait_for_checkpoint_after(before)
        if lost is None:
            nodes.launchers[1].terminate()
            assert nodes.ends() == [ExitCode.INTERRUPTED] * 2
            assert [nodes.said(node).reason for node in range(2)] == ["Interrupted"] * 2
        else:
            nodes.take_away(lost)
            codes = nodes.ends()
            assert (codes[lost], codes[1 - lost]) == (-signal.SIGKILL, ExitCode.INTERRUPTED)
            said = nodes.said(1 - lost)
            assert (said.outcome, said.reason) == ("interrupted", "NodeLost")
        assert not (workspace / "run/DONE-train.json").exists()
        assert before < newest_step(workspace) < STEPS
    last = Nodes(workspace, attempt=4)
    assert last.ends() == [ExitCode.DONE] * 2, [last.said(node) for node in range(2)]
    assert [last.said(node).outcome for node in range(2)] == ["done", "done"]
    assert_same_adapter(workspace, undisturbed)
    # Asked once more, every pod answers from the manifest, without meeting anybody.
    assert Nodes(workspace, attempt=5).ends() == [ExitCode.DONE] * 2
