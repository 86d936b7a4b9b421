"""Several workers train as one: the same losses, one end, one writer."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from cutover.api.trainingrun import Augmentation, FineTune
from cutover.contract import ExitCode
from cutover_trainer import checkpoints
from cutover_trainer.__main__ import main as stage_main
from cutover_trainer.batches import BatchBuilder, encode_all
from cutover_trainer.examples import open_prepared
from cutover_trainer.learner import Learner
from cutover_trainer.models import Hardware, load_base, with_new_adapter
from cutover_trainer.outcome import Interrupted, StageFailed
from cutover_trainer.place import Place
from cutover_trainer.processors import load_encoder
from cutover_trainer.row_dropout import Draw, RowDropout
from cutover_trainer.schedule import Schedule
from cutover_trainer.storage import ArtifactStore
from cutover_trainer.team import Team as TrainerTeam
from fakes.free_ports import two_in_a_row
from fakes.training_example import BASE_MODEL, rows, run_stage, stage_document, write_rows

FINE_TUNE = {"learningRate": 2e-3, "epochs": 6, "batchSize": 5}
"""24 training rows in batches of 5: two workers' parts differ in size, and the last batch of an epoch has four rows."""
STEPS = 30
DEADLINE_SECONDS = 240.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    workspace = tmp_path_factory.mktemp("team")
    write_rows(workspace / "rows.jsonl", rows(36))
    code, result = run_stage("prepare", document(workspace), workspace)
    assert code == ExitCode.DONE, result.message
    return workspace


@pytest.fixture(scope="module")
def alone(prepared: Path) -> Path:
    """The same run by one worker."""
    target = prepared.parent / "alone"
    shutil.copytree(prepared, target)
    code, result = run_stage("train", document(target), target)
    assert code == ExitCode.DONE, result.message
    return target


def document(workspace: Path, gpus: int = 0) -> dict[str, Any]:
    return stage_document(
        workspace / "run", workspace / "rows.jsonl", fineTune=FINE_TUNE, compute={"gpus": gpus}
    )


def curves(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / "run/training.json").read_bytes())
    return found


def assert_same_losses(one: Path, other: Path) -> None:
    for name in ("loss", "validationLoss"):
        mine, theirs = curves(one)[name], curves(other)[name]
        assert [step for step, _ in mine] == [step for step, _ in theirs]
        assert [loss for _, loss in mine] == pytest.approx([loss for _, loss in theirs], rel=1e-6)


class Team:
    """Workers forked from this process, so that nothing is imported again; they meet in a file, or, where each is a
    machine of its own, at a port."""

    def __init__(self, workspace: Path, size: int, save_seconds: float, machines: bool = False) -> None:
        port = two_in_a_row()
        fetched = [workspace / (f"shared-{rank}" if machines else "shared") for rank in range(size)]
        for folder in fetched:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)

        def work(rank: int) -> None:
            place = workspace / f"worker-{rank}"
            place.mkdir(exist_ok=True)
            shared = fetched[rank]
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": "0" if machines else str(rank),
                "WORLD_SIZE": str(size),
                "CUTOVER_RENDEZVOUS": f"tcp://127.0.0.1:{port}"
                if machines
                else f"file://{shared}/rendezvous",
                "CUTOVER_SHARED_SCRATCH": str(shared),
                "CUTOVER_CHECKPOINT_SECONDS": str(save_seconds),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            os._exit(run_stage("train", document(workspace, gpus=size), place)[0])

        fork = multiprocessing.get_context("fork")
        self.workers = [fork.Process(target=work, args=(rank,)) for rank in range(size)]
        for worker in self.workers:
            worker.start()

    def end(self) -> list[int | None]:
        for worker in self.workers:
            worker.join(DEADLINE_SECONDS)
        codes = [worker.exitcode for worker in self.workers]
        for worker in self.workers:
            worker.kill()
        return codes


def whole_steps(workspace: Path) -> list[int]:
    found = (workspace / "run/checkpoints").glob("step-*/MANIFEST.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "run-of-two")
    return tmp_path / "run-of-two"


@pytest.mark.parametrize(("size", "machines"), [(2, False), (3, False), (2, True)])
def test_the_losses_do_not_depend_on_the_number_of_workers(
    workspace: Path, alone: Path, size: int, machines: bool
) -> None:
    team = Team(workspace, size, save_seconds=3600, machines=machines)
    assert team.end() == [ExitCode.DONE] * size
    assert_same_losses(workspace, alone)
    assert len(list((workspace / "run/checkpoints").glob("*/*/state.json"))) == 1


def test_a_signal_to_one_worker_stops_all_with_one_checkpoint_and_others_go_on(
    workspace: Path, alone: Path
) -> None:
    team = Team(workspace, 2, save_seconds=0)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not whole_steps(workspace):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    pid = team.workers[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert team.end() == [ExitCode.INTERRUPTED] * 2
    stopped_at = whole_steps(workspace)[-1]
    assert 0 < stopped_at < STEPS
    # One worker goes on where two have left: the number is no part of the run.
    code, result = run_stage("train", document(workspace), workspace)
    assert code == ExitCode.DONE, result.message
    assert_same_losses(workspace, alone)


@pytest.mark.parametrize("step", [4, STEPS])
def test_when_another_pod_was_first_to_save_all_leave_without_a_failure(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A worker that only sees the leader's connection break ends as a failure, which costs an attempt."""
    real = checkpoints.commit_once

    def second(store: Any, folder: str, writer: str, *rest: Any) -> Any:
        if folder.endswith(f"step-{step:08d}"):
            assert real(store, folder, "rival", *rest) is not None
        return real(store, folder, writer, *rest)

    monkeypatch.setattr(checkpoints, "commit_once", second)
    team = Team(workspace, 2, save_seconds=0)
    assert team.end() == [ExitCode.INTERRUPTED] * 2
    assert whole_steps(workspace)[-1] == step


def test_a_validation_that_was_cut_short_is_made_up_for(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch's steps are in the checkpoint, its validation loss is not."""
    real, cut_short = Learner.loss_on, {1: 0.0, 2: 0.0}

    def asked_to_leave_meanwhile(learner: Learner, *arguments: Any) -> float:
        loss = real(learner, *arguments)
        epoch = learner.optimizer.state_dict()["state"][0]["step"].item() // 5
        if cut_short[epoch]:
            return loss
        cut_short[epoch] = loss
        raise Interrupted("Interrupted", "the pod was asked to stop")

    monkeypatch.setattr(Learner, "loss_on", asked_to_leave_meanwhile)
    wanted = document(workspace)
    wanted["spec"]["fineTune"] = FINE_TUNE | {"epochs": 2}
    for step in (5, 10):
        assert run_stage("train", wanted, workspace)[0] == ExitCode.INTERRUPTED
        assert whole_steps(workspace)[-1] == step
    assert run_stage("train", wanted, workspace)[0] == ExitCode.DONE
    assert curves(workspace)["validationLoss"] == [[epoch, loss] for epoch, loss in cut_short.items()]


@pytest.mark.parametrize("machines", [True, False])
def test_workers_on_cards_that_do_not_match_do_not_wait_for_one_another(
    tmp_path: Path, machines: bool
) -> None:
    """A node whose GPU is lost, or one of an older kind."""
    port = two_in_a_row()

    def meet(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "CUTOVER_RENDEZVOUS": f"tcp://127.0.0.1:{port}" if machines else f"file://{tmp_path}/rendezvous",
        }
        try:
            TrainerTeam.join(torch.device("cpu"), ("cuda torch.bfloat16", "cpu torch.float32")[rank])
        except StageFailed as failed:
            (tmp_path / f"refused-{rank}").write_text(failed.message)
            deadline = time.monotonic() + DEADLINE_SECONDS
            while len(list(tmp_path.glob("refused-*"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            os._exit(failed.exit_code)

    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=meet, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE_SECONDS)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [ExitCode.FAILED] * 2
    assert all("compute.gpuProduct" in (tmp_path / f"refused-{rank}").read_text() for rank in range(2))


class Bystander(TrainerTeam):
    """A worker whose part of every batch is empty; it hears the others' loss and gradients."""

    heard: ClassVar[tuple[float, list[Any]]]

    def part(self, rows: Sequence[int]) -> tuple[int, Sequence[int]]:
        return 0, []

    def sums(self, values: Sequence[float]) -> list[float]:
        return [self.heard[0]]

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        for parameter, gradient in zip(parameters, self.heard[1], strict=True):
            parameter.grad = gradient.clone()


class Worker(TrainerTeam):
    """Has all rows and lets the bystander hear what it has found."""

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        Bystander.heard = (0.0, [parameter.grad.clone() for parameter in parameters])


def test_with_scaled_losses_a_worker_without_rows_takes_the_same_step(prepared: Path) -> None:
    """fp16: the scaler is made by its first use, and a worker without a row scales no loss of its own."""
    scaled = Hardware(torch.device("cpu"), torch.float32, True)
    settings = FineTune.model_validate(FINE_TUNE)
    data = open_prepared(ArtifactStore(document(prepared)["artifacts"]), prepared)
    examples = data.part("train")
    encoder = load_encoder(BASE_MODEL, "llava")
    schedule = Schedule(len(examples), 5, 6, 0)
    learners = []
    for team in (Worker(), Bystander()):
        model = with_new_adapter(load_base(BASE_MODEL, scaled), settings, "tiny")
        learners.append(Learner(model, scaled, schedule, settings, Augmentation(), team))
    before = [parameter.detach().clone() for parameter in learners[1].parameters.values()]
    builder = BatchBuilder(encoder, data, examples, encode_all(encoder, examples), scaled)
    for step in range(2):
        for learner in learners:
            learner.step(step, builder, lambda: None)
    worker, bystander = learners
    assert bystander.scaler.state_dict() == worker.scaler.state_dict()
    after = list(bystander.parameters.values())
    assert all(torch.equal(one, other) for one, other in zip(worker.parameters.values(), after, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_several_gpus_are_left_to_the_launcher(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/chaos/test_chaos_workers.py` really starts them."""
    started: list[Any] = []

    def run_workers(command: list[str], place: Place, *_: Any) -> int:
        started.append((command[1:4], place.workers))
        return 75

    monkeypatch.setattr("cutover_trainer.__main__.run_workers", run_workers)
    config = workspace / "stage.yaml"
    config.write_text(yaml.safe_dump(document(workspace, gpus=2)))
    assert stage_main(["train", "--config", str(config)]) == ExitCode.INTERRUPTED
    assert started == [(["-m", "cutover_trainer", "train"], 2)]
    assert not (workspace / "run/DONE-train.json").exists()


def test_a_row_keeps_its_zeros_whoever_computes_it() -> None:
    whole = RowDropout(0.25, 3, Draw((1, 2), rows=6, first=0, count=6, places=7))
    later = RowDropout(0.25, 3, Draw((1, 2), rows=6, first=4, count=2, places=7))
    x = torch.ones(6, 7, 12)
    kept = whole(x)
    # A micro-batch of the last rows, padded less, and with places and width in one dimension as some families have them.
    assert torch.equal(later(x[4:, :5]), kept[4:, :5])
    assert torch.equal(later(x[4:].reshape(14, 12)), kept[4:].reshape(14, 12))
    assert not torch.equal(RowDropout(0.25, 4, Draw((1, 2), 6, 0, 6, 7))(x), kept)
    assert not torch.equal(RowDropout(0.25, 3, Draw((1, 3), 6, 0, 6, 7))(x), kept)
    assert torch.equal(whole.eval()(x), x)


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    kept = RowDropout(0.1, 0, Draw((7,), rows=4, first=0, count=4, places=500))(torch.ones(4, 500, 100))
    assert float((kept == 0).float().mean()) == pytest.approx(0.1, abs=0.003)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.003)
    assert len(set(kept[kept != 0].tolist())) == 1
