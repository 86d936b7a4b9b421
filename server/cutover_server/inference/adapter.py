"""Puts a LoRA adapter on the base model, or refuses it.

An engine that ignores keys it cannot place answers "loaded" and goes on serving the base. Here every tensor of the
adapter must find its module, every adapted module its tensors, in the right shape, and together they must do something.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file

from cutover_server.inference.refusal import Unservable

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Adapted:
    model: Any
    modules: int


def apply_adapter(model: Any, folder: Path) -> Adapted:
    """The adapted model, ready to answer. Raises Unservable."""
    weights = _read_weights(folder)
    config = _read_config(folder)
    try:
        adapted = PeftModel(model, config)
        report = adapted.load_adapter(str(folder), "default", is_trainable=False)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unservable(
            "AdapterDoesNotFit", f"adapter {folder.name} does not fit this base model: {error}"[:1500]
        ) from error
    unused, missing = sorted(report.unexpected_keys), sorted(report.missing_keys)
    if unused or missing:
        raise Unservable(
            "AdapterKeysMismatch",
            f"adapter {folder.name}: {len(unused)} keys have no module in this base"
            + (f" (first {unused[0]})" if unused else "")
            + f", {len(missing)} adapted modules have no weights"
            + (f" (first {missing[0]})" if missing else "")
            + "; it was trained on another architecture or saved with another prefix",
        )
    modules = sum(1 for name, _ in adapted.named_modules() if name.endswith(".lora_A.default"))
    pairs = sum(1 for name in weights if ".lora_A" in name)
    if modules == 0 or modules != pairs:
        raise Unservable(
            "AdapterKeysMismatch",
            f"adapter {folder.name} holds {pairs} LoRA pairs, {modules} modules are adapted",
        )
    adapted.set_adapter("default")
    return Adapted(adapted.eval(), modules)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise Unservable("AdapterUnreadable", f"{folder.name} holds no {WEIGHTS_FILE}")
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises its own untyped error
        raise Unservable("AdapterUnreadable", f"{WEIGHTS_FILE} of {folder.name}: {error}"[:500]) from error
    second = [tensor for name, tensor in weights.items() if ".lora_B" in name or ".lora_embedding_B" in name]
    if not second or not any(bool(torch.count_nonzero(tensor)) for tensor in second):
        raise Unservable(
            "AdapterIsZero",
            f"adapter {folder.name} changes nothing: every lora_B is zero, as before the first training step",
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise Unservable("AdapterNotFinite", f"adapter {folder.name} holds numbers that are not finite")
    return weights


def _read_config(folder: Path) -> Any:
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, json.JSONDecodeError) as error:
        raise Unservable("AdapterUnreadable", f"{CONFIG_FILE} of {folder.name}: {error}"[:500]) from error
    if config.peft_type != "LORA":
        raise Unservable("AdapterKind", f"adapter {folder.name} is {config.peft_type}; only LORA is served")
    config.inference_mode = True
    return config
