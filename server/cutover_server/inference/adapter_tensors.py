"""Which modules an adapter changes, from the head of its weights file: no tensor is read, no model library needed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from cutover_server.inference.refusal import Unservable

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_HEAD_BYTES = 50_000_000


def tensor_names(folder: Path) -> list[str]:
    """Raises Unservable when there is no such file, or it is no safetensors file."""
    path = folder / WEIGHTS_FILE
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEAD_BYTES:
                raise ValueError(f"a head of {length} bytes")
            head = json.loads(file.read(length))
        return sorted(name for name in head if name != "__metadata__")
    except (OSError, ValueError, struct.error, TypeError) as error:
        raise Unservable("AdapterUnreadable", f"{WEIGHTS_FILE} of {folder.name}: {error}"[:500]) from error


def refuse_vision_targets(folder: Path) -> None:
    """Raises Unservable when the adapter changes more than the language model, which is all that vLLM applies."""
    vision = [name for name in tensor_names(folder) if "vision" in name or "multi_modal_projector" in name]
    if vision:
        raise Unservable(
            "AdapterTargetsVision",
            f"adapter {folder.name} changes {len(vision)} tensors outside the language model (first {vision[0]}), and "
            "vLLM would leave them out without a word; train with lora.targets language_model, or serve it with engine "
            "builtin",
        )
