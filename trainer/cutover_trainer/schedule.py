"""What is drawn by chance while training, as functions of the seed and the place: there is no state to restore.

Pure. A run that was interrupted anywhere draws the same permutation, the same augmentation and the same learning rate
as one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cutover.api.trainingrun import Augmentation

WARM_UP_SHARE = 0.05
FINAL_RATE_SHARE = 0.02
_ORDER, _AUGMENTATION, _DROPOUT = 1, 2, 3
"""Streams of one seed, kept apart."""


@dataclass(frozen=True, slots=True)
class Distortion:
    """Neutral values leave the picture as it is."""

    rotation_degrees: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    rows: int
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def epoch_of(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """Row numbers of a step, counted from 0; the last batch of an epoch may be smaller."""
        start = (step % self.steps_per_epoch) * self.batch_size
        order = np.random.default_rng([self.seed, _ORDER, self.epoch_of(step)]).permutation(self.rows)
        return [int(row) for row in order[start : start + self.batch_size]]

    def learning_rate(self, step: int, peak: float) -> float:
        """Linear warm-up, then a cosine to 2 % of the peak."""
        warm_up = max(1, round(WARM_UP_SHARE * self.steps))
        if step < warm_up:
            return peak * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.steps - warm_up)
        return peak * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))

    def view(self, step: int, wanted: Augmentation) -> int:
        """Number of the look that pictures have in a step."""
        epoch = self.epoch_of(step)
        views = views_of(wanted)
        return epoch % views if views else epoch

    def distortion(self, view: int, row: int, wanted: Augmentation) -> Distortion:
        if not wanted.enabled:
            return Distortion()
        random = np.random.default_rng([self.seed, _AUGMENTATION, view, row])
        rotation, brightness, contrast = random.uniform(-1, 1, 3)
        return Distortion(
            rotation_degrees=float(rotation * wanted.rotation_degrees),
            brightness=float(1 + brightness * wanted.brightness),
            contrast=float(1 + contrast * wanted.contrast),
        )

    def dropout_seed(self, step: int) -> tuple[int, ...]:
        """Seed of the dropout masks of a step."""
        return self.seed, _DROPOUT, step


def views_of(wanted: Augmentation) -> int:
    """How many looks a picture has in all; 0 stands for one in every epoch."""
    return wanted.views if wanted.enabled else 1
