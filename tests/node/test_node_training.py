"""A TrainingRun on the real node: real Jobs, real pods, a real torch model, a real registry."""

from __future__ import annotations

import pytest

from demo import story
from demo.stack import Stack

pytestmark = [pytest.mark.node, pytest.mark.timeout(1200)]

ROWS = 480


def test_a_training_run_trains_on_the_gpu_node_and_registers_its_model(stack: Stack) -> None:
    story.seed(stack, print, ROWS)
    # The newest rows alone: other tests of this stack may have kept thousands of their own before.
    stack.apply(
        "trainingrun.yaml",
        LIMIT=str(ROWS),
        MIN_EXAMPLES=str(int(ROWS * 0.9)),
        EPOCHS="2",
        MIN_ACCURACY="0.2",
    )
    run = story.follow_training(stack, print, "damage-v1", 900)

    status = run["status"]
    assert (
        status["evaluation"]["accuracy"]["damageType"]
        > status["evaluation"]["accuracyBefore"]["damageType"] + 0.1
    )
    assert status["model"]["name"] == "building-damage"
    pods = stack.kube.items("pods", "cutover.dev/owner-name=damage-v1")
    by_stage = {pod["metadata"]["labels"]["cutover.dev/stage"]: pod for pod in pods}
    assert set(by_stage) == {"prepare", "train", "evaluate", "register"}
    train = by_stage["train"]["spec"]
    assert train["nodeSelector"]["nvidia.com/gpu.product"].startswith("NVIDIA-A100")
    assert train["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    registered = stack.kube.call(
        "mlflow", "/api/2.0/mlflow/registered-models/get?name=building-damage", port=5000
    )
    assert registered["registered_model"]["name"] == "building-damage"


def test_too_few_rows_stop_the_run_with_the_numbers_and_the_remedy(stack: Stack) -> None:
    manifest = stack.render(
        "trainingrun.yaml", LIMIT="50000", MIN_EXAMPLES="40000", EPOCHS="1", MIN_ACCURACY="0.2"
    )
    stack.kube.apply(manifest.replace("name: damage-v1", "name: too-few"))

    def stalled() -> str | None:
        run = stack.kube.get("trainingrun", "too-few") or {}
        conditions = {c["type"]: c for c in (run.get("status") or {}).get("conditions", [])}
        found = conditions.get("DataReady", {})
        return found["message"] if found.get("reason") == "TooFewExamples" else None

    message = stack.kube.wait("DataReady=False", stalled, 300)
    assert "minExamples" in message
    assert "40000" in message.replace(",", "").replace("_", "")
    stack.kube.run("delete", "trainingrun", "too-few", "--timeout=60s")
