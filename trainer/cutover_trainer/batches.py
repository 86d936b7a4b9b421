"""Builds what the model reads in one step: pictures distorted as drawn, ids padded, labels only on the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from cutover.api.trainingrun import Augmentation
from cutover_trainer.augment import distorted
from cutover_trainer.encoding import Encoded, Encoder, Unencodable
from cutover_trainer.examples import Example, PreparedData
from cutover_trainer.frozen_features import FrozenFeatures
from cutover_trainer.models import Hardware
from cutover_trainer.outcome import BadInput
from cutover_trainer.schedule import Schedule

PICTURE_CACHE_BYTES = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Batch:
    inputs: dict[str, Any]
    targets: Any
    """[rows, kept positions]: the next token of each kept position, or -100."""
    kept: int
    """Number of last positions whose logits are needed."""
    tokens: int
    """Trained tokens."""


def encode_all(encoder: Encoder, examples: Sequence[Example]) -> list[Encoded]:
    """Once per row. Raises BadInput: prepare checked the same, so the model or the data changed since."""
    encoded = []
    for example in examples:
        try:
            encoded.append(encoder.encode(example.question, example.answer, example.size))
        except Unencodable as error:
            raise BadInput("Unencodable", f"dataset: row {example.id}: {error}") from None
    return encoded


class PictureCache:
    """Decoded pictures, as many as fit into memory; the rest is decoded at each use."""

    def __init__(self, data: PreparedData) -> None:
        self._data = data
        self._held: dict[str, Image.Image] = {}
        self._room = PICTURE_CACHE_BYTES

    def get(self, example: Example) -> Image.Image:
        held = self._held.get(example.picture)
        if held is not None:
            return held
        image = self._data.picture(example)
        needed = 3 * image.width * image.height
        if needed <= self._room:
            self._room -= needed
            self._held[example.picture] = image
        return image


class BatchBuilder:
    """Rows of one part of the data, ready for a model."""

    def __init__(
        self,
        encoder: Encoder,
        data: PreparedData,
        examples: Sequence[Example],
        encoded: Sequence[Encoded],
        on: Hardware,
    ) -> None:
        self._encoder = encoder
        self._examples = examples
        self._encoded = encoded
        self._pictures = PictureCache(data)
        self._hardware = on
        self._features: FrozenFeatures | None = None

    def answer_tokens(self, rows: Sequence[int]) -> int:
        return sum(len(self._encoded[row].answer_ids) for row in rows)

    def places(self, rows: Sequence[int]) -> int:
        """Token places of the longest."""
        return max(len(self._encoded[row].prompt_ids) + len(self._encoded[row].answer_ids) for row in rows)

    def distorted(self, rows: Sequence[int], step: int, schedule: Schedule, wanted: Augmentation) -> Batch:
        """A training batch."""
        view = schedule.view(step, wanted)
        if self._features is not None:
            return self._batch(rows, self._features.inputs(rows, view))
        return self._batch(rows, self._looks(rows, view, schedule, wanted))

    def plain(self, rows: Sequence[int]) -> Batch:
        """The same without augmentation."""
        images = [self._pictures.get(self._examples[row]) for row in rows]
        return self._batch(rows, picture_inputs(self._encoder, images))

    def reuse_features(self, model: Any, schedule: Schedule, wanted: Augmentation) -> None:
        """From now on a picture's features are reckoned once for each of its views."""
        self._features = FrozenFeatures(
            model,
            len(self._examples),
            lambda rows, view: self._looks(rows, view, schedule, wanted)["pixel_values"],
            self._hardware.device,
            self._hardware.dtype,
        )

    def _looks(
        self, rows: Sequence[int], view: int, schedule: Schedule, wanted: Augmentation
    ) -> dict[str, Any]:
        images = [
            distorted(self._pictures.get(self._examples[row]), schedule.distortion(view, row, wanted))
            for row in rows
        ]
        return picture_inputs(self._encoder, images)

    def _batch(self, rows: Sequence[int], pictures: dict[str, Any]) -> Batch:
        chosen = [self._encoded[row] for row in rows]
        longest = max(len(one.prompt_ids) + len(one.answer_ids) for one in chosen)
        first = min(len(one.prompt_ids) for one in chosen) - 1
        ids = torch.full((len(chosen), longest), self._encoder.pad_id)
        mask = torch.zeros_like(ids)
        targets = torch.full_like(ids, -100)
        for number, one in enumerate(chosen):
            start, end = len(one.prompt_ids), len(one.prompt_ids) + len(one.answer_ids)
            ids[number, :end] = torch.tensor(one.prompt_ids + one.answer_ids)
            mask[number, :end] = 1
            targets[number, start - 1 : end - 1] = torch.tensor(one.answer_ids)
        inputs = {"input_ids": ids, "attention_mask": mask, **pictures}
        device = self._hardware.device
        return Batch(
            inputs={
                name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()
            },
            targets=targets[:, first:].to(device),
            kept=longest - first,
            tokens=sum(len(one.answer_ids) for one in chosen),
        )


def picture_inputs(encoder: Encoder, images: Sequence[Image.Image]) -> dict[str, Any]:
    return dict(encoder.processor.image_processor(images=list(images), return_tensors="pt"))
