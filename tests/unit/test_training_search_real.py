"""A search from end to end without a cluster: the real reconciler, whose pods are the real trainer's stages.

The operator dies again and again; the model that comes out is, byte for byte, what training once with the winner's
settings makes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cutover.contract import ExitCode
from cutover.stages import StageConfig
from cutover_operator.port import CONFIG_MAPS, PODS, Object
from cutover_operator.training.observed import LABEL_JOB
from cutover_operator.training.resources import ARTIFACTS
from cutover_trainer.manifest import sha256_of_file
from fakes.kube_faults import Fault, FaultyKube
from fakes.search_town import SearchTown
from fakes.training_example import BASE_MODEL, pictures, rows, run_stage, write_rows
from fakes.training_town import NAMESPACE, Ending

SPEC: dict[str, Any] = {
    "dataset": {
        "source": {"claim": {"name": "rows"}},
        "quality": {"minExamples": 8, "minPerClass": 0, "minControlAccuracy": 0},
    },
    "fineTune": {"epochs": 2, "batchSize": 4},
    "tuning": {
        "trials": 3,
        "space": {"learningRate": {"min": 1e-4, "max": 4e-3, "log": True}, "lora.rank": {"values": [4, 8]}},
    },
    "evaluation": {"compareWith": "none"},
    "compute": {"gpus": 0},
}


@dataclass
class RealTown(SearchTown):
    """What a pod does is done here and now, in this process, when it is first looked at."""

    workspace: Path = Path()
    asked: list[str] = field(default_factory=list)
    """Stages that were run, by run."""

    def _ending(self, pod: Object) -> Ending:
        name = pod["metadata"]["labels"][LABEL_JOB]
        if name not in self._endings:
            stage = self.kube.peek(PODS, NAMESPACE, pod["metadata"]["name"])["metadata"]["labels"][
                "cutover.dev/stage"
            ]
            text = self.kube.peek(CONFIG_MAPS, NAMESPACE, name)["data"]["stage.yaml"]
            text = text.replace(f"file://{ARTIFACTS}", f"file://{self.workspace}/artifacts")
            config = yaml.safe_load(text) | {
                "baseModelPath": str(BASE_MODEL),
                "sourcePath": str(self.workspace / "rows.jsonl"),
                "task": pictures().task_document(),
            }
            code, result = run_stage(stage, config, self.workspace)
            self.asked.append(f"{config['run']['name']} {stage}")
            self._endings[name] = Ending(10.0, code, result.model_dump_json(by_alias=True, exclude_none=True))
        return self._endings[name]

    def _config(self, pod: Object) -> StageConfig | None:
        return None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._endings: dict[str, Ending] = {}


def at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run what never waits for anything, without an event loop: the stages have one of their own."""
    with contextlib.suppress(StopIteration):
        work.send(None)
        raise AssertionError("it waits for something")


@pytest.mark.timeout(900)
def test_a_search_with_a_dying_operator_makes_the_model_of_its_winner(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    write_rows(tmp_path / "rows.jsonl", rows(40))
    town = RealTown(spec=SPEC, workspace=tmp_path)
    at_once(town.open())
    faulty = FaultyKube(town.kube, tuple(Fault(n, "after") for n in range(4, 600, 5)))
    at_once(town.survive(faulty, lambda: town.over, step=15))

    status = town.status
    assert status["reason"] == "Succeeded", json.dumps(status, indent=1)
    best = town.trials[status["tuning"]["winner"]]
    assert best["objective"] == min(one["objective"] for one in town.trials.values())
    assert [one for one in town.asked if one.split()[1] != "train"] == [
        "damage prepare",
        "damage evaluate",
        "damage register",
    ]
    assert len(town.asked) == len(set(town.asked)) == 4 + 3 + 1  # three trials, one promotion
    (folder,) = (tmp_path / "artifacts").iterdir()
    model = status["model"]
    assert model["adapterUri"].endswith(f"{folder.name}/adapter")

    # Trained once, with the winner's settings and without a search.
    settings = best["settings"]
    lora = {"rank": int(settings["lora.rank"])}
    fine_tune = SPEC["fineTune"] | {"learningRate": settings["learningRate"], "lora": lora}
    straight: dict[str, Any] = {
        "run": {"name": "straight", "namespace": NAMESPACE, "uid": "s" * 36},
        "artifacts": f"file://{tmp_path}/straight",
        "dataArtifacts": f"file://{folder}",
        "task": pictures().task_document(),
        "spec": {
            **{key: value for key, value in SPEC.items() if key != "tuning"},
            "task": {"configMap": "task"},
            "baseModel": {"uri": "claim://models/llava"},
            "output": {"claim": {"name": "artifacts"}},
            "fineTune": fine_tune,
        },
        "baseModelPath": str(BASE_MODEL),
    }
    code, result = run_stage("train", straight, tmp_path)
    assert code == ExitCode.DONE, result.message
    weights = "adapter/adapter_model.safetensors"
    assert sha256_of_file(folder / weights) == sha256_of_file(tmp_path / "straight" / weights)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
