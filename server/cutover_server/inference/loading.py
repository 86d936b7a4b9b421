"""From settings to a model that may answer: fetched, verified, adapted, proven, warmed up. Raises Unservable."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cutover_server.inference.adapter import Adapted, apply_adapter
from cutover_server.inference.base_digest import base_digest
from cutover_server.inference.chat import Sampling
from cutover_server.inference.content import verify
from cutover_server.inference.generation import OnStep, Row, RowRun, generate
from cutover_server.inference.lines import log
from cutover_server.inference.probe import Proof, read_probe
from cutover_server.inference.prompt import Detokenizer, PromptBuilder
from cutover_server.inference.proof import prove
from cutover_server.inference.refusal import Unservable
from cutover_server.inference.settings import ServeSettings
from cutover_server.inference.sources import local_folder
from cutover_server.inference.weights import BaseModel, load_base, pick_device, pick_dtype

CARD_FILE = "cutover.json"
WARM_UP_TOKENS = 2
WARM_UP_PIXELS = (336, 336)


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model and all it takes to ask it."""

    model: Any
    base: BaseModel
    prompts: PromptBuilder
    detokenizer: Detokenizer
    adapted_modules: int
    adapter_digest: str | None
    proof: Proof | None

    def run(self, rows: Sequence[Row], sampling: Sampling, on_step: OnStep) -> list[RowRun]:
        return generate(
            self.model, rows, sampling, pad_id=self.base.pad_id, eos_ids=self.base.eos_ids, on_step=on_step
        )


def load(settings: ServeSettings) -> Served:
    """Takes seconds for a tiny model, minutes for a large one. Run it in the thread that will own the model."""
    torch.set_num_threads(settings.threads)
    started = time.monotonic()
    cache = None if settings.cache is None else Path(settings.cache)
    base_folder = local_folder(settings.base, settings.revision, cache)
    verify(base_folder)
    adapter_folder = None if settings.adapter is None else local_folder(settings.adapter, "main", cache)
    adapter_digest = None
    if adapter_folder is not None:
        adapter_digest = verify(adapter_folder)
        _check_base(base_folder, adapter_folder)
    device = pick_device(settings.device)
    base = load_base(
        base_folder,
        _processor_folder(base_folder, adapter_folder),
        settings.family,
        device,
        pick_dtype(settings.dtype, device),
    )
    prompts = PromptBuilder(base.processor, base.family, base.max_positions)
    model, modules, proof = base.model, 0, None
    if adapter_folder is not None:
        adapted = apply_adapter(base.model, adapter_folder)
        model, modules = adapted.model, adapted.modules
        proof = _prove(adapted, adapter_folder, prompts, base.pad_id, settings)
    served = Served(
        model, base, prompts, Detokenizer(base.processor.tokenizer), modules, adapter_digest, proof
    )
    warm_up(served)
    log(
        "loaded",
        family=base.family,
        device=str(device),
        dtype=str(model.dtype),
        adapted_modules=modules,
        proof_distance=None if proof is None else round(proof.distance, 6),
        base_distance=None if proof is None else round(proof.base_distance, 6),
        seconds=round(time.monotonic() - started, 3),
    )
    return served


def warm_up(served: Served) -> None:
    """One real picture through the whole path, so that the first caller does not pay for it."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe it."}]}]
    try:
        inputs = served.prompts.inputs(messages, [Image.new("RGB", WARM_UP_PIXELS, (127, 127, 127))])
        served.run([Row(inputs, WARM_UP_TOKENS, 1)], Sampling(), lambda _index, _step: True)
    except Exception as error:  # a model that cannot answer this can answer nothing
        raise Unservable(
            "WarmUpFailed", f"the model does not answer a picture: {type(error).__name__}: {error}"[:1000]
        ) from error


def _processor_folder(base: Path, adapter: Path | None) -> Path:
    """The adapter's own processor is the one it was trained with."""
    if adapter is not None and (adapter / "processor_config.json").is_file():
        return adapter
    return base


def _check_base(base: Path, adapter: Path) -> None:
    card = adapter / CARD_FILE
    if not card.is_file():
        return
    try:
        recorded = json.loads(card.read_bytes()).get("base_digest")
    except (ValueError, AttributeError) as error:
        raise Unservable("AdapterUnreadable", f"{CARD_FILE} of {adapter.name}: {error}"[:500]) from error
    if not recorded:
        return
    found = base_digest(base)
    if found != recorded:
        raise Unservable(
            "WrongBase",
            f"adapter {adapter.name} was trained on a base with digest {str(recorded)[:16]}…, the base folder has "
            f"{found[:16]}…: serve the base and revision it was trained on",
        )


def _prove(
    adapted: Adapted, folder: Path, prompts: PromptBuilder, pad_id: int, settings: ServeSettings
) -> Proof | None:
    probe = read_probe(folder)
    if probe is not None:
        return prove(adapted.model, probe, prompts, pad_id)
    if not settings.allow_unproven:
        raise Unservable(
            "NoProbe",
            f"adapter {folder.name} has no probe.json, so nothing proves that it is in force; train it with "
            "cutover-trainer, or say --allow-unproven",
        )
    log("adapter_unproven", level="warning", adapter=folder.name)
    return None
