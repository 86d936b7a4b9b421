"""Adapter folders as the trainer writes them, without a training: the weights are drawn, and the same on every machine."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cutover.api.trainingrun import Family, FineTune, Lora
from cutover_trainer.adapter import make_probe, versions, write_adapter
from cutover_trainer.adapter_facts import AdapterFacts
from cutover_trainer.base_model import base_digest
from cutover_trainer.encoding import Encoder
from cutover_trainer.examples import PICTURES_FOLDER, Example, PreparedData
from cutover_trainer.models import Hardware, load_base, with_new_adapter
from cutover_trainer.processors import load_encoder
from cutover_trainer.storage import ArtifactStore
from fakes import sample_models

HARDWARE = Hardware(torch.device("cpu"), torch.float32, False)


def example(data: Path, seed: int, system: str, question: str, answer: str) -> Example:
    """A row of prepared data; its picture is put into the data's folder."""
    image = sample_models.picture(seed, 60, 44)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    kept = buffer.getvalue()
    name = hashlib.sha256(kept).hexdigest()
    (data / PICTURES_FOLDER).mkdir(exist_ok=True)
    (data / PICTURES_FOLDER / name).write_bytes(kept)
    parts = [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": f"sha256:{name}"}},
    ]
    return Example(
        id=f"row-{seed}",
        group="g",
        picture=name,
        width=image.width,
        height=image.height,
        question=[{"role": "system", "content": system}, {"role": "user", "content": parts}],
        answer=answer,
        truth=json.loads(answer),
        control=None,
    )


def draw_weights(model: Any, seed: int, spread: float) -> None:
    """Gives every adapter matrix numbers of numpy's legacy generator, whose stream never changes."""
    draw = np.random.RandomState(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            deviation = spread if "lora_B" in name else parameter.shape[1] ** -0.5
            numbers = torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * deviation)
            parameter.data.copy_(numbers.to(parameter.dtype))


def write(
    folder: Path,
    base: Path,
    family: Family,
    lora: Lora,
    *,
    seed: int,
    spread: float,
    examples: Sequence[Example],
) -> Path:
    """The adapter's folder. The examples' pictures lie in `folder`; one of them becomes the probe."""
    torch.set_num_threads(1)
    model = with_new_adapter(load_base(base, HARDWARE), FineTune(lora=lora), "base")
    draw_weights(model, seed, spread)
    return kept(folder, base, family, lora, model, load_encoder(base, family), examples)


def kept(
    folder: Path,
    base: Path,
    family: Family,
    lora: Lora,
    model: Any,
    encoder: Encoder,
    examples: Sequence[Example],
) -> Path:
    """Writes a model's adapter with its probe, as the trainer does after its last step; the adapter's folder."""
    data = PreparedData(folder, "data-digest")
    encoded = [encoder.encode(one.question, one.answer, one.size) for one in examples]
    probe = make_probe(model, encoder, examples, encoded, data, HARDWARE)
    facts = AdapterFacts(
        task="damage",
        base_uri="claim://models/base",
        base_revision="main",
        base_digest=base_digest(base),
        family=family,
        data_digest="data-digest",
        targets=lora.targets,
        steps=1,
        versions=versions(),
    )
    config: Any = SimpleNamespace(task=SimpleNamespace(name="damage"))
    scratch = folder / "scratch"
    scratch.mkdir()
    write_adapter(config, ArtifactStore(f"file://{folder}/run"), scratch, model, encoder, probe, facts)
    return folder / "run" / "adapter"
