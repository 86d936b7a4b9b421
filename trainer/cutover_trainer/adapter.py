"""The trained adapter's folder: what an engine needs to serve it, and to prove that it does.

adapter_config.json, adapter_model.safetensors    as peft writes them; no replaced modules, so engines take them
processor and tokenizer files                     as the base has them
cutover.json                                      what it was trained on, from and with (`AdapterFacts`)
probe.json                                        see `probe`
MANIFEST.json                                     written last; its digest is the adapter's
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from PIL import Image

from cutover.probe import PROBE_FILE, PROBE_PICTURE_URL, Probe
from cutover.stages import ADAPTER_FOLDER, StageConfig
from cutover_trainer.adapter_facts import FACTS_FILE, AdapterFacts
from cutover_trainer.batches import picture_inputs
from cutover_trainer.encoding import Encoded, Encoder
from cutover_trainer.examples import Example, PreparedData
from cutover_trainer.manifest import Manifest, commit_folder
from cutover_trainer.models import Hardware
from cutover_trainer.storage import ArtifactStore


def write_adapter(
    config: StageConfig,
    store: ArtifactStore,
    scratch: Path,
    model: Any,
    encoder: Encoder,
    probe: Probe,
    facts: AdapterFacts,
) -> Manifest:
    folder = scratch / "adapter-new"
    shutil.rmtree(folder, ignore_errors=True)
    # The embeddings are the base's; left to itself peft would ask the hub whether they changed.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    encoder.processor.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    (folder / FACTS_FILE).write_text(json.dumps(facts.model_dump(), indent=1))
    (folder / PROBE_FILE).write_text(json.dumps(probe.model_dump()))
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return commit_folder(store, ADAPTER_FOLDER, files, {"task": config.task.name, "steps": facts.steps})


def versions() -> dict[str, str]:
    return {
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "peft": str(peft.__version__),
    }


def make_probe(
    model: Any,
    encoder: Encoder,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    data: PreparedData,
    hardware: Hardware,
) -> Probe:
    """Asks about every example, and keeps the one on which adapter and base differ most."""
    candidates = (
        _probe(model, encoder, example, ids, data, hardware)
        for example, ids in zip(examples, encoded, strict=False)
    )
    return max(candidates, key=lambda probe: probe.base_distance)


def _probe(
    model: Any, encoder: Encoder, example: Example, encoded: Encoded, data: PreparedData, hardware: Hardware
) -> Probe:
    """Asks the adapter, then the bare base."""
    model.eval()
    image = data.picture(example)
    adapter = _answer_logprobs(model, encoder, image, encoded, hardware)
    with model.disable_adapter():
        base = _answer_logprobs(model, encoder, image, encoded, hardware)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Probe(
        picture=base64.b64encode(buffer.getvalue()).decode(),
        messages=_with_probe_picture(example.question),
        answer=example.answer,
        prompt_token_ids=list(encoded.prompt_ids),
        answer_token_ids=list(encoded.answer_ids),
        adapter_logprobs=adapter,
        base_logprobs=base,
    )


def _answer_logprobs(
    model: Any, encoder: Encoder, image: Image.Image, encoded: Encoded, hardware: Hardware
) -> list[float]:
    ids = torch.tensor([encoded.prompt_ids + encoded.answer_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **picture_inputs(encoder, [image])}
    inputs = {name: value.to(hardware.device) for name, value in inputs.items()}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(hardware.dtype)
    with torch.no_grad():
        logits = model(**inputs).logits[0].float()
    logprobs = torch.log_softmax(logits[-len(encoded.answer_ids) - 1 : -1], -1)
    wanted = torch.tensor(encoded.answer_ids, device=logprobs.device)
    return [float(value) for value in logprobs.gather(1, wanted[:, None])[:, 0]]


def _with_probe_picture(question: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    def replaced(part: Mapping[str, Any]) -> Mapping[str, Any]:
        if part.get("type") != "image_url":
            return part
        return {"type": "image_url", "image_url": {"url": PROBE_PICTURE_URL}}

    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [replaced(part) for part in message["content"]],
        }
        for message in question
    ]
