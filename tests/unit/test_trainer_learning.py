"""Training itself: it learns, it can be killed anywhere, and it ends the way its exit code says."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cutover.contract import ExitCode
from cutover.probe import Probe
from cutover.stages import StageResult
from cutover_trainer.joblog import ProgressReporter
from fakes.training_example import BASE_MODEL, pictures, rows, run_stage, stage_document, write_rows

FAST = {"fineTune": {"learningRate": 2e-3, "epochs": 2, "lora": {"targets": "language_model_and_vision"}}}
SMALL = {"fineTune": {"learningRate": 2e-3, "epochs": 3, "batchSize": 4}}
DEADLINE_SECONDS = 120.0


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a small prepared data set, to be copied."""
    workspace = tmp_path_factory.mktemp("prepared")
    file = write_rows(workspace / "rows.jsonl", rows(48))
    code, result = run_stage("prepare", stage_document(workspace / "run", file, **SMALL), workspace)
    assert code == ExitCode.DONE, result.message
    return workspace


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared / "run", tmp_path / "run")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> tuple[Path, StageResult]:
    """The same run, never interrupted."""
    target = prepared.parent / "undisturbed"
    shutil.copytree(prepared / "run", target / "run")
    code, result = run_stage("train", document(target), target)
    assert code == ExitCode.DONE, result.message
    return target / "run", result


def document(workspace: Path, **more: Any) -> dict[str, Any]:
    rows_file = workspace / "rows.jsonl"
    return {**stage_document(workspace / "run", rows_file, **SMALL), **more}


class Trainer:
    """A stage in a process of its own, forked so that nothing is imported again."""

    def __init__(self, stage: str, config: dict[str, Any], workspace: Path, save_seconds: float) -> None:
        self._step = multiprocessing.Value("i", 0)
        told = ProgressReporter.report

        def report(reporter: ProgressReporter, step: int, *more: Any) -> None:
            self._step.value = step
            told(reporter, step, *more)

        def work() -> None:
            os.environ["CUTOVER_CHECKPOINT_SECONDS"] = str(save_seconds)
            ProgressReporter.report = report  # type: ignore[method-assign]
            os._exit(run_stage(stage, config, workspace)[0])

        self._process = multiprocessing.get_context("fork").Process(target=work)
        self._process.start()

    @property
    def step(self) -> int:
        """The last one that is done."""
        return int(self._step.value)

    def wait_until(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not seen():
            assert self._process.is_alive(), "the stage ended before it was disturbed"
            assert time.monotonic() < deadline, "the stage never came this far"
            time.sleep(0.005)

    def end(self, number: signal.Signals) -> int | None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)
        self._process.join(DEADLINE_SECONDS)
        return self._process.exitcode


def checkpoints(workspace: Path) -> list[int]:
    found = workspace.glob("run/checkpoints/step-*/MANIFEST.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def weights(run: Path) -> bytes:
    return (run / "adapter/adapter_model.safetensors").read_bytes()


@pytest.fixture
def killed_at(workspace: Path) -> int:
    """A run that was killed without warning after some checkpoints."""
    trainer = Trainer("train", document(workspace), workspace, save_seconds=0)
    trainer.wait_until(lambda: max(checkpoints(workspace), default=0) >= 7)
    assert trainer.end(signal.SIGKILL) == -signal.SIGKILL
    return max(checkpoints(workspace))


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    workspace: Path, killed_at: int, undisturbed: tuple[Path, StageResult], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (workspace / "run/adapter").exists()
    code, result = run_stage("train", document(workspace), workspace)
    assert code == ExitCode.DONE
    resumed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"resumed"' in line]
    assert [line["step"] for line in resumed] == [killed_at]
    assert weights(workspace / "run") == weights(undisturbed[0])
    assert result.progress is not None
    assert undisturbed[1].progress is not None
    assert result.progress.loss == undisturbed[1].progress.loss
    curves = [json.loads((run / "training.json").read_bytes()) for run in (workspace / "run", undisturbed[0])]
    assert curves[0]["loss"] == curves[1]["loss"]
    assert curves[0]["validationLoss"] == curves[1]["validationLoss"]


def test_a_damaged_checkpoint_is_passed_over(
    workspace: Path, killed_at: int, undisturbed: tuple[Path, StageResult]
) -> None:
    newest = workspace / f"run/checkpoints/step-{killed_at:08d}"
    torn = next(newest.rglob("optimizer.pt"))
    torn.write_bytes(torn.read_bytes()[:-7])
    later = workspace / f"run/checkpoints/step-{killed_at + 1:08d}"
    later.mkdir(exist_ok=True)
    (later / "state.json").write_text("{")
    assert run_stage("train", document(workspace), workspace)[0] == ExitCode.DONE
    assert weights(workspace / "run") == weights(undisturbed[0])
    assert len(checkpoints(workspace)) == 2


def test_a_termination_signal_commits_a_checkpoint(
    workspace: Path, undisturbed: tuple[Path, StageResult]
) -> None:
    trainer = Trainer("train", document(workspace), workspace, save_seconds=3600)
    training = workspace / "run/checkpoints"
    log = workspace / "termination.json"
    trainer.wait_until(lambda: trainer.step >= 3)
    assert trainer.end(signal.SIGTERM) == ExitCode.INTERRUPTED
    result = StageResult.model_validate_json(log.read_text())
    assert (result.outcome, result.reason) == ("interrupted", "Interrupted")
    assert not (workspace / "run/DONE-train.json").exists()
    assert run_stage("train", document(workspace), workspace)[0] == ExitCode.DONE
    assert training.exists()
    assert weights(workspace / "run") == weights(undisturbed[0])


def test_a_used_up_budget_keeps_the_checkpoint(workspace: Path) -> None:
    code, result = run_stage("train", document(workspace, gpuSecondsLeft=0.0), workspace)
    assert (code, result.outcome, result.reason) == (ExitCode.INTERRUPTED, "budgetExceeded", "BudgetExceeded")
    assert "compute.gpuHourBudget" in result.message


def test_a_finished_stage_answers_at_once(undisturbed: tuple[Path, StageResult]) -> None:
    run, result = undisturbed
    before = weights(run)
    shutil.rmtree(run / "checkpoints")
    started = time.monotonic()
    code, again = run_stage("train", document(run.parent), run.parent)
    assert time.monotonic() - started < 2
    assert (code, again) == (ExitCode.DONE, result)
    assert weights(run) == before


def test_the_adapter_folder_says_what_it_is(undisturbed: tuple[Path, StageResult]) -> None:
    run, _ = undisturbed
    facts = json.loads((run / "adapter/cutover.json").read_text())
    assert facts["base_uri"] == "claim://models/tiny-llava"
    assert facts["data_digest"] == json.loads((run / "data/MANIFEST.json").read_text())["digest"]
    assert "torch" in facts["versions"]
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert str(BASE_MODEL) not in json.dumps(config)
    assert (run / "adapter/chat_template.jinja").is_file()


def test_the_probe_can_be_repeated_with_the_processor_alone(undisturbed: tuple[Path, StageResult]) -> None:
    from cutover.chat import template_messages

    run, _ = undisturbed
    probe = Probe.model_validate_json((run / "adapter/probe.json").read_text())
    processor = AutoProcessor.from_pretrained(run / "adapter")
    prompt = processor.apply_chat_template(
        template_messages(probe.messages), tokenize=False, add_generation_prompt=True
    )
    image = pictures().Image.new("RGB", (48, 48))
    ids = processor(text=[prompt], images=[image])["input_ids"][0]
    assert list(ids) == probe.prompt_token_ids
    assert len(probe.answer_token_ids) == len(probe.adapter_logprobs) == len(probe.base_logprobs)
    assert (
        processor.tokenizer.decode(probe.answer_token_ids, skip_special_tokens=True).strip() == probe.answer
    )
    assert probe.base_distance > 0.005


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"learningRate": 1e-2, "precision": "fp16"}, "PrecisionUnsupported", "fineTune.precision"),
        (
            {"lora": {"rank": 1, "targets": "language_model"}, "precision": "fp16"},
            "PrecisionUnsupported",
            "fp32",
        ),
    ],
)
def test_settings_the_machine_cannot_do(
    workspace: Path, change: dict[str, Any], reason: str, said: str
) -> None:
    config = document(workspace)
    config["spec"]["fineTune"] = change
    code, result = run_stage("train", config, workspace)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, reason)
    assert said in result.message


def test_stages_in_the_wrong_order(tmp_path: Path) -> None:
    config = stage_document(tmp_path / "run", tmp_path / "rows.jsonl")
    for stage, reason in (
        ("train", "DataNotPrepared"),
        ("evaluate", "DataNotPrepared"),
        ("register", "NotTrained"),
    ):
        code, result = run_stage(stage, config, tmp_path)
        assert (code, result.reason) == (ExitCode.BAD_INPUT, reason)


@pytest.mark.timeout(600)
def test_all_stages_teach_the_base_what_damage_looks_like(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows(800))
    config = stage_document(tmp_path / "run", file, **FAST)
    config["spec"]["evaluation"] = {"gates": [{"metric": "accuracy", "field": "damageType", "min": 0.6}]}
    code, result = run_stage("all", config, tmp_path)
    assert code == ExitCode.DONE, result.message
    assert result.model is not None
    assert result.model.adapter_uri == "claim://artifacts/damage/adapter"
    assert result.model.version == result.model.digest[:12]
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    summary = evaluation["summary"]
    assert summary["examples"] == 80
    assert summary["accuracyBefore"]["damageType"] <= 0.25
    assert summary["accuracy"]["damageType"] >= 0.6
    assert summary["jsonValidity"] == 1.0
    assert summary["accuracyControl"]["severity"] == 1.0
    assert sum(evaluation["confusion"]["damageType"]["crack"].values()) == 10
    assert 0 < summary["macroF1"]["damageType"] < 1
    assert evaluation["comparisons"]["base"]["mcnemar"]["damageType"]["pValue"] < 1e-6
    assert evaluation["people"] is None
    curve = evaluation["confidence"]
    assert (curve["floor"], curve["rows"], curve["part"]) == (0.6, 80, "validation")
    assert curve["auroc"] > 0.6
    assert curve["onTest"]["accuracy"]["n"] > 0
    kept = [point["keptShare"] for point in curve["points"]]
    assert kept == sorted(kept)
    sure = [error["confidence"] for error in evaluation["errors"]["listed"]]
    assert sure == sorted(sure, reverse=True)
    page = (tmp_path / "run/evaluation.html").read_text()
    assert page.count("data:image/jpeg;base64,") == min(24, evaluation["errors"]["rows"])

    # Evaluated again beside itself, as an earlier model; half of the test part was in that model's training data.
    (tmp_path / "run/DONE-evaluate.json").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    lines = (tmp_path / "run/data/test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "old/data/train.jsonl").write_text("".join(lines[:40]))
    config["previousAdapterPath"] = f"file://{tmp_path}/old/adapter"
    config["spec"]["evaluation"]["previousAdapter"] = "claim://artifacts/old/adapter"
    config["spec"]["evaluation"]["gates"] = [
        {"metric": "accuracy", "min": 0.999},
        {"metric": "recall", "class": "crack", "min": 0.0},
    ]
    code, result = run_stage("evaluate", config, tmp_path)
    assert (code, result.outcome, result.reason) == (ExitCode.BAD_INPUT, "badInput", "EvaluationGateFailed")
    assert "accuracy of overall is" in result.message
    assert "wanted 0.999" in result.message
    assert "crack" not in result.message
    assert result.evaluation is not None
    assert result.evaluation.examples == 80
    previous = json.loads((tmp_path / "run/evaluation.json").read_text())["comparisons"]["previous"]
    assert (previous["n"], previous["leftOut"]) == (40, 40)
    assert previous["accuracy"] == previous["accuracyOther"]
    assert previous["mcnemar"]["damageType"] == {"onlyCandidate": 0, "onlyOther": 0, "pValue": 1.0}


def test_the_base_is_a_real_llava() -> None:
    model = AutoModelForImageTextToText.from_pretrained(BASE_MODEL, local_files_only=True)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
