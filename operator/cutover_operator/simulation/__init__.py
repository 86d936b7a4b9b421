"""Rollouts that never happened: a seeded world, and the operator's own decisions walking through it.

`simulate(spec, scenario, runs, seed)` answers what a rollout would do before it matters: chance to promote and to roll
back, time, labels and requests needed, bad answers served. The decisions are not a copy: `judging` and `walk` call the
array functions of `rollout.gate_tests` and `rollout.moves` that decide live rollouts. No clock, no I/O, and chance only
from the seed.
"""

from cutover_operator.simulation.outcome import Outcome, Summary
from cutover_operator.simulation.scenario import (
    Behaviour,
    Incident,
    LabelDelay,
    Moment,
    Scenario,
    Sureness,
    Together,
    after,
    diurnal,
)
from cutover_operator.simulation.walk import simulate

__all__ = [
    "Behaviour",
    "Incident",
    "LabelDelay",
    "Moment",
    "Outcome",
    "Scenario",
    "Summary",
    "Sureness",
    "Together",
    "after",
    "diurnal",
    "simulate",
]
