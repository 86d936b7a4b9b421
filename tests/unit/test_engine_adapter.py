"""What the engine refuses to serve: every way an adapter can be silently without effect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cutover_server.inference.loading import Served, load
from cutover_server.inference.probe import judge
from cutover_server.inference.refusal import Unservable
from cutover_server.inference.settings import ServeSettings
from fakes import sample_models

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A good adapter to spoil."""
    folder = tmp_path / "adapter"
    shutil.copytree(sample_models.lora_adapter(sample_models.tiny_llava()), folder)
    return folder


def start(adapter: Path, base: Path | None = None, **more: Any) -> Served:
    torch.set_num_threads(1)
    return load(ServeSettings(base=str(base or sample_models.tiny_llava()), adapter=str(adapter), **more))


def rewrite(adapter: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the weights and make the manifest agree: damage is not what is tested."""
    save_file(change(load_file(adapter / WEIGHTS)), adapter / WEIGHTS)
    sample_models.write_manifest(adapter)


def refusal(adapter: Path, base: Path | None = None, **more: Any) -> Unservable:
    with pytest.raises(Unservable) as caught:
        start(adapter, base, **more)
    return caught.value


def test_a_good_adapter_is_served_and_its_modules_counted(adapter: Path) -> None:
    served = start(adapter)
    assert served.adapted_modules == 14
    assert served.proof is not None
    assert served.proof.distance < 1e-3 < 0.1 < served.proof.base_distance


def test_keys_with_another_prefix(adapter: Path) -> None:
    rewrite(adapter, lambda weights: {name.replace("language_model.", ""): v for name, v in weights.items()})
    found = refusal(adapter)
    assert found.reason == "AdapterKeysMismatch"
    assert "prefix" in found.message


def test_a_missing_module(adapter: Path) -> None:
    rewrite(adapter, lambda weights: {n: v for n, v in weights.items() if "layers.1.mlp.up_proj" not in n})
    assert refusal(adapter).reason == "AdapterKeysMismatch"


def test_an_unused_key(adapter: Path) -> None:
    extra = {"base_model.model.model.language_model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}
    rewrite(adapter, lambda weights: {**weights, **extra})
    assert refusal(adapter).reason == "AdapterKeysMismatch"


def test_an_adapter_that_was_never_trained(adapter: Path) -> None:
    rewrite(adapter, lambda w: {n: torch.zeros_like(v) if "lora_B" in n else v for n, v in w.items()})
    assert refusal(adapter).reason == "AdapterIsZero"


def test_weights_that_are_not_numbers(adapter: Path) -> None:
    rewrite(adapter, lambda w: {n: v * float("nan") for n, v in w.items()})
    assert refusal(adapter).reason == "AdapterNotFinite"


def test_weights_of_another_rank(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    sample_models.write_manifest(adapter)
    assert refusal(adapter).reason == "AdapterDoesNotFit"


def test_an_adapter_scaled_down_until_it_does_little(adapter: Path) -> None:
    rewrite(adapter, lambda w: {n: v * 0.3 if "lora_B" in n else v for n, v in w.items()})
    found = refusal(adapter)
    assert found.reason == "AdapterProofFailed"
    assert "the adapter is not applied as trained" in found.message


def test_another_base_of_the_same_shape(adapter: Path) -> None:
    found = refusal(adapter, sample_models.tiny_llava(seed=5))
    assert found.reason == "AdapterProofFailed"
    assert "the base is another one" in found.message


def test_a_recorded_base_digest_is_checked_before_anything_is_loaded(adapter: Path) -> None:
    (adapter / "cutover.json").write_text(json.dumps({"base_digest": "0" * 64}))
    sample_models.write_manifest(adapter)
    assert refusal(adapter).reason == "WrongBase"


def test_another_processor_than_the_one_trained_with(adapter: Path) -> None:
    template = adapter / "chat_template.jinja"
    template.write_text(template.read_text().replace("USER: ", "USER:\n"))
    sample_models.write_manifest(adapter)
    assert refusal(adapter).reason == "PromptMismatch"


def test_an_adapter_without_a_probe_needs_a_word(adapter: Path) -> None:
    (adapter / "probe.json").unlink()
    sample_models.write_manifest(adapter)
    assert refusal(adapter).reason == "NoProbe"
    assert start(adapter, allow_unproven=True).proof is None


def test_a_probe_that_proves_nothing(adapter: Path) -> None:
    probe = json.loads((adapter / "probe.json").read_text())
    (adapter / "probe.json").write_text(json.dumps({**probe, "base_logprobs": probe["adapter_logprobs"]}))
    sample_models.write_manifest(adapter)
    assert refusal(adapter).reason == "ProbeTellsNothing"


def test_damaged_files(adapter: Path) -> None:
    with (adapter / WEIGHTS).open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x01\x02\x03")
    assert refusal(adapter).reason == "FilesDamaged"


def test_a_base_that_lacks_weights(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(sample_models.tiny_llava(), base)
    weights = load_file(base / "model.safetensors")
    gone = next(name for name in weights if "down_proj" in name)
    save_file({n: v for n, v in weights.items() if n != gone}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(Unservable) as caught:
        load(ServeSettings(base=str(base)))
    assert caught.value.reason == "BaseIncomplete"


def test_another_family_than_declared() -> None:
    with pytest.raises(Unservable) as caught:
        load(ServeSettings(base=str(sample_models.tiny_llava_next()), family="llava"))
    assert caught.value.reason == "FamilyMismatch"


def test_the_proof_holds_up_to_a_tenth_of_the_base_distance() -> None:
    trained, base = [-1.0, -2.0], [-2.0, -3.0]
    assert judge([-1.1, -2.09], trained, base).holds
    assert not judge([-1.1, -2.12], trained, base).holds
    assert not judge(trained, trained, trained).holds
