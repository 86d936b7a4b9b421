"""Features of pictures that no step of training changes: reckoned once for each picture and view, then reused.

They are constant when the tower and the projector are frozen and a picture comes in a fixed number of views. Always
reckoned in the same groups of rows, so that a resumed run has the same bits as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cutover.api.trainingrun import Family, FineTune
from cutover_trainer.schedule import Schedule

GROUP_ROWS = 16
MAX_BYTES = 4_000_000_000
"""Of a pod, whose workers each hold their own. More would crowd out the rest of it; such runs reckon features at every
use."""

Pixels = Callable[[Sequence[int], int], Any]
"""The processed pictures of some rows as they look in a view."""


def reusable(
    family: Family,
    settings: FineTune,
    schedule: Schedule,
    views: int,
    places: int,
    config: Any,
    workers: int = 1,
) -> bool:
    """Whether features are constant, used more than once, and few enough for the `workers` of a pod. The same answer in
    every attempt."""
    frozen = family == "llava" and settings.lora.targets == "language_model"
    width = int(config.get_text_config().hidden_size)
    needed = schedule.rows * min(views, schedule.epochs) * places * width * 4 * workers
    return frozen and 0 < views < schedule.epochs and needed <= MAX_BYTES


class FrozenFeatures:
    """`model` answers `get_image_features`; `rows` is the number of all rows."""

    def __init__(self, model: Any, rows: int, pixels: Pixels, device: Any, dtype: Any) -> None:
        self._model = model
        self._rows = rows
        self._pixels = pixels
        self._device = device
        self._dtype = dtype
        self._held: dict[tuple[int, int], Any] = {}

    def inputs(self, rows: Sequence[int], view: int) -> dict[str, Any]:
        """What a forward pass takes instead of pixels."""
        features = [self._of(row, view).to(self._device) for row in rows]
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}

    def _of(self, row: int, view: int) -> Any:
        """[places, width]"""
        if (row, view) not in self._held:
            self._reckon(row // GROUP_ROWS, view)
        return self._held[row, view]

    def _reckon(self, group: int, view: int) -> None:
        rows = range(group * GROUP_ROWS, min(self._rows, (group + 1) * GROUP_ROWS))
        pixels = self._pixels(rows, view).to(self._device, self._dtype)
        with torch.no_grad():
            found = self._model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        for row, features in zip(rows, found, strict=True):
            self._held[row, view] = features.cpu()
