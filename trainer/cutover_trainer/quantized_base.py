"""The frozen base in 4 bits while an adapter is trained: QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

NF4 with double quantization holds a weight in 4.127 bits (4, a scale of 8 bits for 64 weights, one of 32 for 256 scales).
Only the linear layers of the language model that an adapter may sit on are held so: the vision tower, the projector, the
embeddings, the norms and the head are a twelfth of LLaVA-1.5-7B and stay as they are. Products are computed in the
precision of the run. The adapter is the same as ever, and engines add it to the base as it is.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForImageTextToText

from cutover.api.trainingrun import FineTune
from cutover_trainer.joblog import log
from cutover_trainer.models import LANGUAGE_LAYERS, Hardware, load_base, trainable, with_new_adapter
from cutover_trainer.outcome import BadInput


def load_frozen(folder: Path, hardware: Hardware, quantization: Literal["none", "nf4"]) -> Any:
    """The base an adapter is trained on. Raises BadInput when this image cannot quantize."""
    return load_base(folder, hardware) if quantization == "none" else _load_in_4_bits(folder, hardware)


def _load_in_4_bits(folder: Path, hardware: Hardware) -> Any:
    if find_spec("bitsandbytes") is None:
        raise BadInput(
            "QuantizationUnavailable",
            "fineTune.quantization: nf4 needs the package bitsandbytes, which this image has not; leave compute.image "
            "empty, add the package to your image, or set none",
        )
    from transformers import BitsAndBytesConfig

    wanted = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=hardware.dtype,
        # A pattern of names, matched from the start: a bare "vision_tower" would match nothing of model.vision_tower.
        llm_int8_skip_modules=[rf"(?!{LANGUAGE_LAYERS}$).*"],
    )
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        local_files_only=True,
        dtype=hardware.dtype,
        quantization_config=wanted,
        device_map={"": hardware.device},
    )
    layers = quantized_layers(model)
    for layer in layers:
        # A CPU with bf16 instructions would repack the weights in the first validation, for a product that knows no
        # gradient: all that is trained after it would be wrong, in silence.
        layer.support_avx512bf16_for_cpu = False
    log("quantized", layers=len(layers), bytes=sum(held_bytes(layer) for layer in layers))
    return model


def quantized_layers(model: Any) -> list[Any]:
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def held_bytes(layer: Any) -> int:
    """Of a quantized layer's weight, its scales included."""
    state = layer.weight.quant_state
    scales = (state.absmax, state.state2.absmax, state.offset)
    return sum(tensor.numel() * tensor.element_size() for tensor in (layer.weight, *scales))


def on_plain_base(model: Any, folder: Path, hardware: Hardware, settings: FineTune, base_name: str) -> Any:
    """The trained adapter of `model` on the base as it is: what engines serve, so the probe and the evaluation ask it.

    `model` is of no use afterwards: its base gives up its memory, for a card need not hold both.
    """
    learnt = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.new_empty(0)
    if hardware.device.type == "cuda":
        torch.cuda.empty_cache()
    plain = with_new_adapter(load_base(folder, hardware), settings, base_name)
    with torch.no_grad():
        for name, parameter in trainable(plain).items():
            parameter.copy_(learnt[name])
    return plain
