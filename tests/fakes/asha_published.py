"""ASHA as Li et al. (2018) publish it, on a clock of its own: what the operator's search is compared with.

`run` also drives the operator's own rule through the same clock, so that both see the same curves and the same delays.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from cutover_operator.training.halving import ETA, Rung, judge

Results = dict[tuple[int, int], float | None]
Next = Callable[[tuple[Rung, ...], Results, set[tuple[int, int]]], tuple[int, int] | None]
"""Results and what was ever started in, what to start now out; None to wait."""


@dataclass(frozen=True)
class Told:
    epochs: float
    """Trained in all."""
    seconds: float
    winner: int
    loss: float
    """Of the winner after all the epochs."""


def published(
    rungs: tuple[Rung, ...], results: Results, begun: set[tuple[int, int]]
) -> tuple[int, int] | None:
    """get_job of the paper's algorithm 2: promote whatever is in the best third of what is known, else begin another."""
    for rung in reversed(rungs[:-1]):
        known = sorted(
            (value, trial)
            for (trial, at), value in results.items()
            if at == rung.number and value is not None
        )
        for _, trial in known[: len(known) // ETA]:
            if (trial, rung.number + 1) not in begun:
                return trial, rung.number + 1
    fresh = [trial for trial in range(1, rungs[0].places + 1) if (trial, 0) not in begun]
    return (fresh[0], 0) if fresh else None


def certain(rungs: tuple[Rung, ...], results: Results, begun: set[tuple[int, int]]) -> tuple[int, int] | None:
    """The operator's rule."""
    return next((one for one in judge(rungs, results).due if one not in begun), None)


def run(
    rungs: tuple[Rung, ...],
    curve: Callable[[int, float], float],
    choose: Next,
    workers: int,
    seed: int,
    fails: Callable[[int, int], bool] = lambda trial, rung: False,
) -> Told:
    """`curve`: loss of a trial after some epochs. The seed draws how long every piece of work takes."""
    chance = random.Random(seed)
    results: Results = {}
    begun: set[tuple[int, int]] = set()
    at_work: list[tuple[float, tuple[int, int]]] = []
    now = epochs = 0.0
    while True:
        while len(at_work) < workers and (one := choose(rungs, results, begun)) is not None:
            begun.add(one)
            trial, at = one
            more = rungs[at].epochs - (rungs[at - 1].epochs if at else 0.0)
            epochs += more
            heapq.heappush(at_work, (now + more * chance.lognormvariate(0.0, 0.5), one))
        if not at_work:
            break
        now, (trial, at) = heapq.heappop(at_work)
        results[trial, at] = None if fails(trial, at) else curve(trial, rungs[at].epochs)
    reached = max(at for (_, at), value in results.items() if value is not None)
    best = min((v, trial) for (trial, at), v in results.items() if at == reached and v is not None)
    return Told(epochs, now, best[1], curve(best[1], rungs[-1].epochs))
