"""Which trials go on, and for how long: ASHA's rungs over epochs (Li et al. 2018, arXiv:1810.05934). Pure.

Every trial trains to the first rung, the best third of a rung goes on to the next. A trial is promoted as soon as no
result still outstanding could keep it out of that third, and never before: who is promoted, the winner and the cost
follow from the results alone, not from the order in which they arrive. ASHA as published promotes on what is known so
far, which keeps idle workers busy, costs more epochs and makes the winner a matter of timing; see docs/decisions/0011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ETA = 3
"""One of so many is promoted; as many times longer is the next rung."""
MOST_PROMOTIONS = 2
"""A first rung below a ninth of the epochs would end within the warm-up of the learning rate."""

Results = Mapping[tuple[int, int], float | None]
"""By (trial, rung): the objective, the lower the better; None for a trial that failed. Outstanding ones are absent.
Trials are counted from 1, rungs from 0."""


@dataclass(frozen=True, slots=True)
class Rung:
    number: int
    epochs: float
    """Where it stops, counted from the start of training."""
    places: int
    """Trials that may reach it."""


@dataclass(frozen=True, slots=True)
class Search:
    """How far a search has come."""

    due: tuple[tuple[int, int], ...]
    """(trial, rung) still to be trained, the furthest first; nothing that arrives later takes one back."""
    finished: bool
    winner: int | None
    """Once finished: the best of the highest rung that anybody reached; None when every trial failed."""


def ladder(trials: int, epochs: int, scheduler: Literal["asha", "none"]) -> tuple[Rung, ...]:
    """The rungs of a search, the last of which is all the epochs."""
    promotions = 0
    while scheduler == "asha" and promotions < MOST_PROMOTIONS and trials >= ETA ** (promotions + 1):
        promotions += 1
    return tuple(
        Rung(number, round(epochs / ETA ** (promotions - number), 6), max(1, trials // ETA**number))
        for number in range(promotions + 1)
    )


def cost_epochs(rungs: Sequence[Rung]) -> float:
    """Epochs trained in all when nothing fails: a promoted trial goes on, it does not start again."""
    reached, total = 0.0, 0.0
    for rung in rungs:
        total += rung.places * (rung.epochs - reached)
        reached = rung.epochs
    return total


def judge(rungs: Sequence[Rung], results: Results) -> Search:
    """What the results decide so far."""
    entrants = list(range(1, rungs[0].places + 1))
    most = len(entrants)
    """At most so many will ever be in the rung; `entrants` are those that certainly are."""
    due: list[tuple[int, int]] = []
    finished = True
    for rung in rungs:
        known = {trial: results[trial, rung.number] for trial in entrants if (trial, rung.number) in results}
        due += [(trial, rung.number) for trial in entrants if trial not in known]
        outstanding = most - len(known)
        finished = finished and outstanding == 0
        if rung is rungs[-1]:
            break
        places = rungs[rung.number + 1].places
        good = _ranked(known)
        entrants = sorted(trial for better, trial in enumerate(good) if better + outstanding < places)
        most = min(places, len(good) + outstanding)
    due.sort(key=lambda one: (-one[1], one[0]))
    return Search(tuple(due), finished, _winner(rungs, results) if finished else None)


def _ranked(known: Mapping[int, float | None]) -> list[int]:
    """Those that did not fail, the best first; of equals the one with the lower number."""
    return [
        trial for _, trial in sorted((value, trial) for trial, value in known.items() if value is not None)
    ]


def _winner(rungs: Sequence[Rung], results: Results) -> int | None:
    failed = {trial for (trial, _), value in results.items() if value is None}
    for rung in reversed(rungs):
        known = {trial: value for (trial, number), value in results.items() if number == rung.number}
        good = [trial for trial in _ranked(known) if trial not in failed]
        if good:
            return good[0]
    return None
