"""Loads models and adapters through the Hugging Face classes, on the device and in the precision that fit.

The code that loads llava-hf/llava-1.5-7b-hf loads a test model of a megabyte: nothing here knows a size.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from cutover.api.trainingrun import FineTune, Lora
from cutover_trainer.joblog import log
from cutover_trainer.outcome import BadInput, StageFailed

_LANGUAGE_LINEARS = "q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2"
LANGUAGE_LAYERS = rf".*language_model\..*\.({_LANGUAGE_LINEARS})"
"""Linear layers of the language model, by name: adapted always, quantized where that is asked for."""
_VISION_LINEARS = "q_proj|k_proj|v_proj|out_proj|qkv|projection|fc1|fc2"
MAX_WEIGHTS_BYTES_WITHOUT_GPU = 200_000_000
"""A larger model on a node whose GPU is gone would burn days: better another node."""
_BFLOAT16_CAPABILITY = (8, 0)
"""NVIDIA Ampere; older cards emulate bf16 slowly."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and how numbers are computed."""

    device: Any
    dtype: Any
    scaled: bool
    """fp16 needs loss scaling."""


def choose_hardware(
    precision: Literal["auto", "bf16", "fp16", "fp32"], gpus: int, weights_bytes: int
) -> Hardware:
    """Raises BadInput when the card cannot do what the spec asks for, StageFailed when a card is missing."""
    device = chosen_device(gpus)
    if device.type == "cpu":
        if gpus > 0 and weights_bytes > MAX_WEIGHTS_BYTES_WITHOUT_GPU:
            raise StageFailed(
                "NoGpu",
                f"compute.gpus: {gpus} asked for, but the pod sees none; the next attempt may get a sound node",
            )
        if gpus > 0:
            log(
                "warning",
                message="the pod sees no GPU; the base model is small enough to be trained on the CPU",
            )
        torch.set_num_threads(int(os.environ.get("CUTOVER_THREADS", "1")))
        if precision == "fp16":
            raise BadInput("PrecisionUnsupported", "fineTune.precision: fp16 needs a GPU; use auto or fp32")
        return Hardware(device, chosen_dtype(precision, device), False)
    if precision == "bf16" and not _native_bfloat16():
        name = torch.cuda.get_device_name()
        raise BadInput("PrecisionUnsupported", f"fineTune.precision: {name} has no bf16; use auto or fp16")
    dtype = chosen_dtype(precision, device)
    torch.backends.cuda.matmul.allow_tf32 = True
    return Hardware(device, dtype, dtype is torch.float16)


def chosen_dtype(precision: Literal["auto", "bf16", "fp16", "fp32"], device: Any) -> Any:
    """What a device computes with for a precision that it may have or not, see `choose_hardware`."""
    if device.type == "cpu":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    automatic = torch.bfloat16 if _native_bfloat16() else torch.float16
    kind = {"auto": automatic, "bf16": torch.bfloat16, "fp16": torch.float16}
    return kind.get(precision, torch.float32)


def _native_bfloat16() -> bool:
    return bool(torch.cuda.get_device_capability() >= _BFLOAT16_CAPABILITY)


def chosen_device(gpus: int) -> Any:
    """This worker's card, or the CPU where the run asks for none or the pod sees none."""
    if gpus == 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def load_base(folder: Path, hardware: Hardware) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=hardware.dtype)
    return model.to(hardware.device)


def load_adapter(base: Any, folder: Path) -> Any:
    """The base with a trained adapter; `disable_adapter()` gives the base back."""
    return PeftModel.from_pretrained(base, str(folder)).eval()


def with_new_adapter(base: Any, settings: FineTune, base_name: str) -> Any:
    """The base frozen, with a fresh adapter in fp32 that changes nothing yet. Seeded."""
    torch.manual_seed(settings.seed)
    lora = LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        bias="none",
        target_modules=target_pattern(base, settings.lora),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    lora.base_model_name_or_path = base_name
    return model


def target_pattern(base: Any, lora: Lora) -> str:
    """Regular expression over module names. The projector stays frozen: engines refuse adapters that replace modules."""
    if lora.targets == "language_model":
        return LANGUAGE_LAYERS
    numbers = "|".join(str(number) for number in range(_vision_layers_used(base.config)))
    return rf"{LANGUAGE_LAYERS}|.*vision_(tower|model)\..*layers\.({numbers})\..*\b({_VISION_LINEARS})"


def _vision_layers_used(config: Any) -> int:
    """Layers after the one features are taken from get no gradient and must have no adapter."""
    total = int(config.vision_config.num_hidden_layers)
    layer = getattr(config, "vision_feature_layer", -1)
    if layer is None:
        return total
    chosen = layer if isinstance(layer, list | tuple) else [layer]
    return max(number if number >= 0 else total + 1 + number for number in chosen)


def adapter_layers(model: Any) -> int:
    """How many layers carry the adapter; 0 would train nothing."""
    return sum(1 for name, _ in model.named_modules() if re.search(r"\.lora_A$", name))


def trainable(model: Any) -> dict[str, Any]:
    """Parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
