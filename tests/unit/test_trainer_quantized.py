"""Adapters trained on a base in 4 bits (QLoRA): real NF4 layers, exact resume, and an adapter for the plain base."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import bitsandbytes.nn.modules
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel

from cutover.api.trainingrun import Augmentation, FineTune
from cutover.contract import ExitCode
from cutover.probe import Probe
from cutover_server.inference.loading import load
from cutover_server.inference.settings import ServeSettings
from cutover_trainer import adapted_linear, quantized_base, row_dropout
from cutover_trainer.batches import BatchBuilder, encode_all
from cutover_trainer.examples import open_prepared
from cutover_trainer.learner import Learner
from cutover_trainer.models import Hardware, load_base, with_new_adapter
from cutover_trainer.outcome import BadInput, Interrupted
from cutover_trainer.processors import load_encoder
from cutover_trainer.quantized_base import held_bytes, load_frozen, on_plain_base, quantized_layers
from cutover_trainer.schedule import Schedule
from cutover_trainer.stopping import Stop
from cutover_trainer.storage import ArtifactStore
from fakes import sample_models
from fakes.training_example import BASE_MODEL, rows, run_stage, stage_document, write_rows

CPU = Hardware(torch.device("cpu"), torch.float32, False)
SETTINGS = {"learningRate": 2e-3, "epochs": 2, "batchSize": 4, "quantization": "nf4"}
BOTH = FineTune.model_validate({"lora": {"targets": "language_model_and_vision"}})
STEPS = 30
BITS_A_WEIGHT = 4 + 8 / 64 + 32 / (64 * 256)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("prepared")
    file = write_rows(workspace / "rows.jsonl", rows(48))
    code, result = run_stage("prepare", document(workspace, file), workspace)
    assert code == ExitCode.DONE, result.message
    return workspace / "run"


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    workspace = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(prepared, workspace / "run")
    code, result = run_stage("train", document(workspace), workspace)
    assert code == ExitCode.DONE, result.message
    return workspace / "run"


def document(workspace: Path, file: Path | None = None, **settings: Any) -> dict[str, Any]:
    return stage_document(workspace / "run", file, fineTune=SETTINGS | settings)


def kind_of(model: Any) -> dict[str, type]:
    """Class of every linear layer, by name."""
    return {name: type(layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}


@pytest.mark.parametrize("base", [BASE_MODEL, sample_models.tiny_llava_next, sample_models.tiny_blip2])
def test_the_language_model_is_in_four_bits_and_nothing_else(base: Any) -> None:
    model = load_frozen(base if isinstance(base, Path) else base(), CPU, "nf4")
    kinds = kind_of(model)
    assert len(quantized_layers(model)) >= 12
    for name, kind in kinds.items():
        inside = "language_model." in name and "lm_head" not in name
        assert kind is (Linear4bit if inside else torch.nn.Linear), name
    for layer in quantized_layers(model):
        assert layer.weight.quant_type == "nf4"
        assert layer.weight.quant_state.nested
        assert layer.compute_dtype is torch.float32


def test_a_weight_takes_what_the_paper_says() -> None:
    """4.127 bits; blocks of scales that are not full cost a little more."""
    layers = quantized_layers(load_frozen(BASE_MODEL, CPU, "nf4"))
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    bits = 8 * sum(held_bytes(layer) for layer in layers) / weights
    assert BITS_A_WEIGHT <= bits < BITS_A_WEIGHT + 0.02


def test_a_cpu_with_bf16_does_not_repack_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes would at the first validation, and no gradient passes such a layer afterwards."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    assert Linear4bit(8, 8).support_avx512bf16_for_cpu
    layers = quantized_layers(load_frozen(BASE_MODEL, CPU, "nf4"))
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_adapted_quantized_layers_stay_with_peft_and_the_vision_towers_do_not() -> None:
    model = with_new_adapter(load_frozen(BASE_MODEL, CPU, "nf4"), BOTH, "base")
    row_dropout.install(model)
    plain = [name for name, kind in kind_of(model.get_base_model()).items() if kind is not Linear4bit]
    in_tower = [name for name in plain if "vision_tower" in name and name.endswith(".base_layer")]
    assert adapted_linear.install(model) == len(in_tower) > 0


def test_the_loss_falls(prepared: Path, tmp_path: Path) -> None:
    """Eight rows seen often: below what guessing their answers would pay, ln(8 x 3) nats over 16 tokens."""
    settings = FineTune.model_validate(
        {"learningRate": 1e-2, "batchSize": 8, "epochs": STEPS, "lora": {"dropout": 0}}
    )
    data = open_prepared(ArtifactStore(f"file://{prepared}"), tmp_path)
    encoder, examples = load_encoder(BASE_MODEL, "llava"), data.part("train")[:8]
    builder = BatchBuilder(encoder, data, examples, encode_all(encoder, examples), CPU)
    schedule, looks = Schedule(8, 8, STEPS, 0), Augmentation(views=1)
    model = with_new_adapter(load_frozen(BASE_MODEL, CPU, "nf4"), settings, "base")
    builder.reuse_features(model.get_base_model(), schedule, looks)
    learner = Learner(model, CPU, schedule, settings, looks)
    losses = [learner.step(step, builder, lambda: None) for step in range(STEPS)]
    assert losses[-1] < 0.16 < math.log(8 * 3) / 16 < losses[0]


def test_an_interrupted_run_ends_with_the_same_losses_and_weights(
    prepared: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second epoch: after a validation, in the middle of an epoch."""
    shutil.copytree(prepared, tmp_path / "run")
    asked = 0

    def check(_: Stop) -> None:
        nonlocal asked
        asked += 1
        if asked == 14:
            raise Interrupted("Interrupted", "as by a signal")

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "check", check)
        assert run_stage("train", document(tmp_path), tmp_path)[0] == ExitCode.INTERRUPTED
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("step-*")
    assert checkpoint.name > "step-00000008"
    code, result = run_stage("train", document(tmp_path), tmp_path)
    assert code == ExitCode.DONE, result.message
    curves = [json.loads((run / "training.json").read_text()) for run in (tmp_path / "run", trained)]
    assert curves[0]["loss"] == curves[1]["loss"]
    assert curves[0]["validationLoss"] == curves[1]["validationLoss"]
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()


def test_the_adapter_is_one_for_the_plain_base(trained: Path) -> None:
    folder = trained / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert "nf4" not in json.dumps(config)
    assert json.loads((folder / "cutover.json").read_text())["quantization"] == "nf4"
    model = PeftModel.from_pretrained(load_base(BASE_MODEL, CPU), str(folder))
    assert not quantized_layers(model)
    plain = with_new_adapter(load_base(BASE_MODEL, CPU), FineTune(), "base")
    names = {name for name, _ in plain.named_parameters() if "lora_" in name}
    assert {name for name, _ in model.named_parameters() if "lora_" in name} == names
    assert any(bool(value.any()) for name, value in model.named_parameters() if "lora_B" in name)


def test_the_engine_proves_it_on_the_plain_base(trained: Path) -> None:
    """The probe was asked of the base as it is served, so the numbers agree to rounding and not to quantization."""
    served = load(ServeSettings(base=str(BASE_MODEL), adapter=str(trained / "adapter"), family="llava"))
    assert served.proof is not None
    assert served.proof.distance < 1e-4 < served.proof.base_distance


def test_quantizing_is_seen_in_the_answers_and_gone_on_the_plain_base(trained: Path) -> None:
    probe = Probe.model_validate_json((trained / "adapter/probe.json").read_text())
    ids = torch.tensor([probe.answer_token_ids])
    settings = FineTune.model_validate(SETTINGS)
    outputs = []
    with torch.no_grad():
        model = with_new_adapter(load_frozen(BASE_MODEL, CPU, "nf4"), settings, "base").eval()
        outputs.append(model(input_ids=ids).logits)
        outputs.append(on_plain_base(model, BASE_MODEL, CPU, settings, "base").eval()(input_ids=ids).logits)
        outputs.append(load_base(BASE_MODEL, CPU).eval()(input_ids=ids).logits)
    assert torch.equal(outputs[1], outputs[2])
    assert 1e-3 < float((outputs[0] - outputs[2]).norm() / outputs[2].norm()) < 0.3


def test_it_is_evaluated_and_registered(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(quantized_base, "load_frozen", None)
    for stage in ("evaluate", "register"):
        code, result = run_stage(stage, document(tmp_path), tmp_path)
        assert code == ExitCode.DONE, result.message


@pytest.mark.parametrize(
    ("base", "family", "targets", "augmentation"),
    [
        (sample_models.tiny_blip2, "blip2", "language_model", {}),
        (sample_models.tiny_llava_next, "llava_next", "language_model_and_vision", {}),
        (lambda: BASE_MODEL, "llava", "language_model", {"views": 1}),
    ],
)
def test_what_it_goes_with(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    base: Any,
    family: str,
    targets: str,
    augmentation: Any,
) -> None:
    documents = rows(16)
    if family != "llava":
        for row in documents:
            row["messages"][0]["content"] = sample_models.SYSTEM
            row["messages"][1]["content"][0] = {"type": "text", "text": sample_models.QUESTION}
    config = document(tmp_path, write_rows(tmp_path / "rows.jsonl", documents), lora={"targets": targets})
    config["spec"]["baseModel"] |= {"family": family}
    config["spec"]["dataset"]["augmentation"] = augmentation
    config["baseModelPath"] = str(base())
    for stage in ("prepare", "train"):
        code, result = run_stage(stage, config, tmp_path)
        assert code == ExitCode.DONE, result.message
    said = capsys.readouterr().out
    assert '"quantized"' in said
    assert ('"features"' in said) == bool(augmentation)
    curve = json.loads((tmp_path / "run/training.json").read_text())["loss"]
    assert curve[-1][1] < curve[0][1]


def test_a_base_that_is_quantized_already_is_refused_before_a_card_is_asked_for(tmp_path: Path) -> None:
    shutil.copytree(BASE_MODEL, tmp_path / "base")
    file = tmp_path / "base/config.json"
    described = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    file.write_text(json.dumps(described))
    config = document(tmp_path, write_rows(tmp_path / "rows.jsonl", rows(8)))
    config["baseModelPath"] = str(tmp_path / "base")
    code, result = run_stage("prepare", config, tmp_path)
    assert (code, result.reason) == (ExitCode.BAD_INPUT, "BaseModelQuantized")
    assert "baseModel.uri" in result.message


def test_an_image_without_bitsandbytes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadInput) as caught:
        load_frozen(BASE_MODEL, CPU, "nf4")
    assert caught.value.reason == "QuantizationUnavailable"
    assert "fineTune.quantization" in caught.value.message
