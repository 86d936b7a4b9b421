"""The threshold of confidence for a rollout that is looked at again and again. Pure.

`cutover.selective` has the method. With `looks="many"` the test is an e-process per threshold, so the threshold may be
looked for after every cohort of labels; with "once" it is the binomial one, for a single look at finished data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cutover import selective
from cutover.selective import Proof, Routing, proven_once
from cutover_operator.rollout.evalue import KAPPA_ACCURACY, Floats, log_e


def choose_threshold(
    edges: Sequence[float],
    right: ArrayLike,
    wrong: ArrayLike,
    missing: ArrayLike,
    *,
    floor: float,
    risk: float,
    looks: Literal["once", "many"] = "many",
) -> Routing:
    """`cutover.selective.choose_threshold` with the test that suits the looks."""
    proof = proven_once(floor) if looks == "once" else _proven_at_every_look(floor)
    return selective.choose_threshold(edges, right, wrong, missing, proof=proof, risk=risk)


def _proven_at_every_look(floor: float) -> Proof:
    def proof(right: Floats, bad: Floats, risk: float) -> NDArray[np.bool_]:
        return np.asarray(log_e(right, bad, floor, 1, KAPPA_ACCURACY) >= -np.log(risk))

    return proof
