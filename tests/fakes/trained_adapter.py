"""Adapter folders as the trainer writes them, without a training: the weights are drawn, and the same on every machine."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cutover.api.trainingrun import Family, FineTune, Lora
from cutover_trainer.adapter import make_probe, versions, write_adapter
from cutover_trainer.adapter_facts import AdapterFacts
from cutover_trainer.base_model import base_digest
from cutover_trainer.examples import PICTURES_FOLDER, Example, PreparedData
from cutover_trainer.generate import Answerer
from cutover_trainer.models import Hardware, load_base, load_encoder, with_new_adapter
from cutover_trainer.storage import ArtifactStore
from fakes import sample_models

SYSTEM = "Be brief."
QUESTION = "Assess this."
ANSWER = '{"damageType": "crack", "severity": "minor"}'
ANSWER_TOKENS = 24


def example(
    data: Path, seed: int, system: str = SYSTEM, question: str = QUESTION, answer: str = ANSWER
) -> Example:
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


def trained(
    folder: Path,
    base: Path,
    family: Family,
    lora: Lora,
    *,
    seed: int = 3,
    spread: float = 0.05,
    examples: list[Example] | None = None,
) -> tuple[Path, list[Example], list[str]]:
    """The adapter's folder, the examples of its data (in `folder`), and what it answers to them."""
    torch.set_num_threads(1)
    hardware = Hardware(torch.device("cpu"), torch.float32, False)
    model = with_new_adapter(load_base(base, hardware), FineTune(lora=lora), "base")
    draw_weights(model, seed, spread)
    encoder, data = load_encoder(base, family), PreparedData(folder, "data-digest")
    rows = examples or [example(folder, seed) for seed in range(4)]
    encoded = [encoder.encode(one.question, one.answer, one.size) for one in rows]
    probe = make_probe(model, encoder, rows, encoded, data, hardware)
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
    answers = Answerer(model, encoder, data, hardware, ANSWER_TOKENS).answers(rows)
    return folder / "run" / "adapter", rows, answers
