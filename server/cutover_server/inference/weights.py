"""Loads the base model and its processor from a local folder: every weight must come from the folder.

transformers fills missing weights with chance and goes on; here that is a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from cutover_server.inference.prompt import check_processor
from cutover_server.inference.refusal import Unservable

FAMILY_BY_MODEL_TYPE = {"llava": "llava", "llava_next": "llava_next", "blip-2": "blip2"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class BaseModel:
    model: Any
    processor: Any
    family: str
    max_positions: int
    pad_id: int
    eos_ids: frozenset[int]


def pick_device(wanted: str) -> torch.device:
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """bf16 where the card has it, fp16 on older cards, fp32 on a CPU."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_base(
    folder: Path, processor_folder: Path, family: str | None, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    model = _load_model(folder, dtype)
    model.to(device).eval()
    found = FAMILY_BY_MODEL_TYPE.get(model.config.model_type, model.config.model_type)
    if family is not None and found != family:
        raise Unservable(
            "FamilyMismatch", f"the folder holds a {found} model, not {family}: set --family {found}"
        )
    if found not in FAMILY_BY_MODEL_TYPE.values():
        raise Unservable(
            "FamilyNotSupported", f"{found} models are not served; use llava, llava_next or blip2"
        )
    try:
        processor = AutoProcessor.from_pretrained(str(processor_folder), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Unservable(
            "ProcessorUnreadable", f"no processor in {processor_folder.name}: {error}"[:1000]
        ) from error
    check_processor(processor, found, model.get_input_embeddings().weight.shape[0])
    eos_ids = _eos_ids(model, processor.tokenizer)
    pad_id = processor.tokenizer.pad_token_id
    if pad_id is None:
        pad_id = min(eos_ids)
    neutralise_generation_defaults(model)
    return BaseModel(
        model=model,
        processor=processor,
        family=found,
        max_positions=int(model.config.text_config.max_position_embeddings),
        pad_id=int(pad_id),
        eos_ids=eos_ids,
    )


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise Unservable("BaseUnreadable", f"no model in {folder.name}: {error}"[:1000]) from error
    for kind, what in (
        ("missing_keys", "lacks weights"),
        ("mismatched_keys", "has weights of another shape"),
    ):
        names = sorted(str(name) for name in report.get(kind, ()))
        if names:
            raise Unservable(
                "BaseIncomplete",
                f"the base folder {what}: {len(names)}, the first {names[0]}; they would be filled with chance",
            )
    return model


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = {configured} if isinstance(configured, int) else set(configured or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise Unservable("NoEndToken", "neither generation_config.json nor the tokenizer names an end token")
    return frozenset(int(token_id) for token_id in ids)


def neutralise_generation_defaults(model: Any) -> None:
    """A model's own generation_config may hold penalties and sampling nobody asked for; only requests decide."""
    for part in (model, getattr(model, "language_model", None)):
        if part is not None and getattr(part, "generation_config", None) is not None:
            part.generation_config = GenerationConfig()
