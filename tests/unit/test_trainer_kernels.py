"""Liger's kernels: the same numbers as torch's operators, by Triton's interpreter, and clear words where they cannot run."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cutover.contract import ExitCode
from cutover.stages import StageConfig
from cutover_trainer import fused_kernels
from cutover_trainer.models import Hardware, load_base
from cutover_trainer.outcome import BadInput, StageFailed
from fakes import sample_models
from fakes.training_example import rows, run_stage, stage_document, write_rows

CPU = Hardware(torch.device("cpu"), torch.float32, False)
DEADLINE_SECONDS = 240.0
LIGER: dict[str, Any] = {"fineTune": {"kernels": "liger"}}


def _report_to(file: Path) -> None:
    """In a forked process: torch need not be imported again, triton has to be, to be interpreted."""
    os.environ["TRITON_INTERPRET"] = "1"
    for name in [*sys.modules]:
        if name.split(".")[0] in ("triton", "liger_kernel") and not name.startswith("triton._C"):
            del sys.modules[name]
    from fakes import kernels_without_card

    file.write_text(json.dumps(kernels_without_card.report()))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("kernels") / "report.json"
    process = multiprocessing.get_context("fork").Process(target=_report_to, args=(file,))
    process.start()
    process.join(DEADLINE_SECONDS)
    assert process.exitcode == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize(("quantization", "in_one_piece"), [("none", 14), ("nf4", 0)])
def test_output_and_gradients_are_those_of_torchs_operators(
    report: dict[str, Any], quantization: str, in_one_piece: int
) -> None:
    """The kernels write over what they read, so a tensor that somebody else kept would show in a gradient."""
    found = report[quantization]
    assert found["operators"] == ["LigerSwiGLUMLP", "LigerRMSNorm", "LigerRMSNorm"]
    assert found["rope"] == "liger_rotary_pos_emb"
    assert found["inOnePiece"] == in_one_piece
    assert len(found["distances"]) == 1 + 2 * 14
    assert max(found["distances"]) < 1e-5


def test_a_run_without_cards_is_refused(tmp_path: Path) -> None:
    config = stage_document(tmp_path / "run", write_rows(tmp_path / "rows.jsonl", rows(24)), **LIGER)
    assert run_stage("prepare", config, tmp_path)[0] == ExitCode.DONE
    code, result = run_stage("train", config, tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "KernelsUnsupported")
    assert "fineTune.kernels" in result.message
    assert "compute.gpus" in result.message


def test_a_pod_that_does_not_see_its_card_is_tried_elsewhere(tmp_path: Path) -> None:
    spec = StageConfig.model_validate(stage_document(tmp_path, compute={"gpus": 1}, **LIGER)).spec
    with pytest.raises(StageFailed, match="the pod sees none"):
        fused_kernels.check(spec, CPU)
    fused_kernels.check(StageConfig.model_validate(stage_document(tmp_path)).spec, CPU)


def test_a_language_model_it_has_nothing_for_is_named() -> None:
    with pytest.raises(BadInput, match=r"fineTune\.kernels.*has opt") as caught:
        fused_kernels.install(load_base(sample_models.tiny_blip2(), CPU))
    assert caught.value.reason == "KernelsUnsupported"


def test_an_image_without_the_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", None)
    with pytest.raises(BadInput, match="liger-kernel"):
        fused_kernels.install(load_base(sample_models.tiny_llava(), CPU))
