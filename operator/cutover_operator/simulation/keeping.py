"""Which answers many runs keep: the threshold of confidence, chosen when and as `rollout.deferring` chooses it."""

from __future__ import annotations

import numpy as np

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.rollout.accuracy import pass_alpha
from cutover_operator.rollout.deferring import CHANGE_SECONDS
from cutover_operator.rollout.selective import choose_threshold
from cutover_operator.rollout.threshold import EDGES, STRICTEST, governing_gate
from cutover_operator.simulation.books import Floats, Mask


class Keeping:
    """A threshold per run, with the labels it is chosen by.

    Raises ValueError for a `fallback.confidence` inside a bin: nobody has counted which part of the bin it keeps.
    """

    def __init__(self, spec: ModelRolloutSpec, runs: int) -> None:
        first = STRICTEST if spec.fallback.auto_confidence else spec.fallback.confidence or 0.0
        if first not in EDGES:
            raise ValueError(f"fallback.confidence {first:g} is none of the thresholds that are simulated")
        gate = governing_gate(spec) if spec.fallback.auto_confidence else None
        self._limit = None if gate is None else gate.gate.limit
        self._risk = 0.0 if gate is None else pass_alpha(spec, gate)
        self.kept_from = np.full(runs, EDGES.index(first), dtype=np.int64)
        self._chosen_at = np.full(runs, -np.inf)
        self._labels = np.zeros((3, len(EDGES), runs))
        self._unseen = np.zeros_like(self._labels)
        self._known = np.zeros(runs)

    def count(self, labels: Floats) -> None:
        """Labels by result and bin of confidence, `(3, bins, runs)`."""
        self._unseen += labels

    def look(self, who: Mask, seconds: float) -> None:
        """What these runs' operators see by now; those whose hour is over choose anew."""
        self._labels[:, :, who] += self._unseen[:, :, who]
        self._unseen[:, :, who] = 0.0
        if self._limit is None:
            return
        due = who & (seconds - self._chosen_at >= CHANGE_SECONDS)
        self._chosen_at = np.where(due, seconds, self._chosen_at)
        known = self._labels.sum(axis=(0, 1))
        for run in np.flatnonzero(due & (known > self._known)):
            right, wrong, missing = self._labels[:, :, run]
            found = choose_threshold(EDGES, right, wrong, missing, floor=self._limit, risk=self._risk)
            self.kept_from[run] = EDGES.index(STRICTEST if found.threshold is None else found.threshold)
        self._known = np.where(due, known, self._known)
