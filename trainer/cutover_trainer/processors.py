"""Loads a model's processor: what turns pictures and text into what the model reads. Never its weights, and never torch.

transformers works without torch as far as tokenizers and pictures go, and takes a tenth of the memory and of the start
that way: 80 MB against 800. A process that only prepares data says so with `keep_torch_out`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cutover.api.trainingrun import Family
from cutover_trainer.encoding import Encoder
from cutover_trainer.outcome import BadInput
from cutover_trainer.processor_checks import processor_mistakes


def keep_torch_out() -> None:
    """From now on nothing in this process finds torch; an import of it raises ImportError. Before transformers is
    imported, and not where a later stage trains."""
    for name in ("torch", "torchvision"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def keep_bitsandbytes_out() -> None:
    """From now on peft does not find it. peft would import it for nothing wherever it is installed, which takes 5 s of
    CPU and 50 MB. Before peft is imported, and not where a base is quantized."""
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def load_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, local_files_only=True)


def load_encoder(folder: Path, family: Family) -> Encoder:
    """Processor and limits of a model; reads no weights."""
    from transformers import AutoConfig

    try:
        processor = load_processor(folder)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            "BaseModelUnreadable", f"baseModel.uri: no usable processor in the model: {error}"[:600]
        ) from None
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    mistakes = processor_mistakes(processor, config, family)
    if mistakes:
        raise BadInput(
            "BaseModelInconsistent",
            f"baseModel.uri: {'; '.join(mistakes)}: correct the files of the model or use another revision"[
                :600
            ],
        )
    return Encoder(processor, config, family)
