"""What the first prototype left open: outages and bursts, traffic that swings, every kind of gate, late labels in rollouts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from bench.decisions.grid import CANDIDATES, CONTROL, DEADLINE_SECONDS, STEPS, TWO_GATES, spec
from bench.decisions.policies import others, walk
from bench.decisions.report import Report, hours, share
from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.rollout.gates import named_gates
from cutover_operator.simulation import Behaviour, Incident, LabelDelay, Outcome, Scenario, diurnal, simulate
from cutover_operator.simulation.outcome import PROMOTED, ROLLED_BACK, UNDECIDED

SEED = 9000
GOOD = replace(CANDIDATES["good"], accuracy=0.95)
FIVE_GATES: list[dict[str, Any]] = [
    *TWO_GATES,
    {"metric": "latency", "limit": 2.0},
    {"metric": "cost", "limit": 0.01},
    {"metric": "satisfaction", "margin": 0.5},
]
NEVER = 3 * 24.0


def run(report: Report) -> None:
    _outages(report)
    _swinging(report)
    _gates(report)
    _late(report)
    _ways(report)


def tolerated(risk: float, runs: int) -> float:
    """A risk with three standard errors of a simulation."""
    return risk + 3 * math.sqrt(risk * (1 - risk) / runs)


def _ends(o: Outcome) -> tuple[str, str, str, str]:
    """(promoted, rolled back, undecided, median hours to the decision)."""
    return (
        share(o.share(PROMOTED), o.runs),
        share(o.share(ROLLED_BACK), o.runs),
        share(o.share(UNDECIDED), o.runs),
        hours(o.summary().median_hours),
    )


# ---------------------------------------------------------------- outages and bursts
INCIDENTS: dict[str, tuple[Incident, ...]] = {
    "quiet": (),
    "both arms fail in 50 %, 30 min, twice a day": (Incident(0.5, 0.5, per_day=2.0),),
    "the same, the control's breaker opens": (Incident(0.5, 0.5, per_day=2.0, breaker=True),),
    "both arms fail in 15 %, 2 h, once a day": (Incident(0.15, 2.0, per_day=1.0),),
    "only the control fails in 50 %, 30 min, twice a day": (Incident(0.5, 0.5, ("control",), per_day=2.0),),
    "only the candidate fails in 10 %, 10 min, twice a day": (
        Incident(0.10, 1 / 6, ("candidate",), per_day=2.0),
    ),
    "only the candidate fails in 30 %, 10 min, twice a day": (
        Incident(0.30, 1 / 6, ("candidate",), per_day=2.0),
    ),
}


def _outages(report: Report) -> None:
    """Errors that clump. At 100 % the control has no traffic, so an outage of both cannot be told there from the
    candidate's own: such runs end before it, at 50 %."""
    steps, runs, rows = STEPS[:3], report.runs, []
    early: dict[str, float] = {}
    for name, incidents in INCIDENTS.items():
        for kind, behaviour in (("good", GOOD), ("bad", CANDIDATES["bad"])):
            world = Scenario(2.0, behaviour, CONTROL, 0.05, incidents=incidents, horizon_hours=7 * 24.0)
            o = simulate(spec(steps=steps), world, runs, SEED)
            rows.append(
                (
                    name,
                    kind,
                    *_ends(o),
                    f"{o.frozen_hours.mean():.1f}",
                    share(o.stopped_by_gate("errorrate"), runs),
                    *_beside(world, runs),
                )
            )
            if kind == "good":
                early[name] = o.share(ROLLED_BACK)
    report.table(
        f"Outages and bursts: 2 rps, 5 % labels, steps to 50 %, {runs} runs, 7 days, seed {SEED}; good is .95",
        (
            "world",
            "candidate",
            "promoted",
            "rolled back",
            "undecided",
            "median h",
            "mean h frozen",
            "rolled back for errors",
            "argo 6x10m: rolled back",
            "argo 24x1h",
            "flagger",
        ),
        rows,
    )
    for name in ("both arms fail in 50 %, 30 min, twice a day", "both arms fail in 15 %, 2 h, once a day"):
        report.goal(f"good rolled back: {name}", early[name], at_most=0.01)
    _small_outages(report)


def _beside(world: Scenario, runs: int) -> tuple[str, ...]:
    found = []
    for i, name in enumerate(("argo 6x10m", "argo 24x1h", "flagger")):
        policy, jumps = others()[name]
        found.append(
            share(walk(policy(), jumps, world, runs, SEED + i, DEADLINE_SECONDS).share(ROLLED_BACK), runs)
        )
    return tuple(found)


def _small_outages(report: Report) -> None:
    """Few requests and a look a minute: the moment at which only one arm's outage is proven yet."""
    rows = []
    for rps in (0.2, 2.0):
        for weight in (10, 50):
            for errors in (0.15, 0.5):
                steps = [{"weight": weight, "minDuration": "12h"}]
                both = Scenario(
                    rps,
                    GOOD,
                    CONTROL,
                    0.05,
                    tick_seconds=60.0,
                    horizon_hours=6.0,
                    incidents=(Incident(errors, 2.0, at_hours=3.0),),
                )
                alone = replace(both, incidents=(Incident(errors, 2.0, ("candidate",), at_hours=3.0),))
                shared, own = (simulate(spec(steps=steps), w, report.runs, SEED + 1) for w in (both, alone))
                caught = own.decided_hours[own.finish == ROLLED_BACK] - 3.0
                rows.append(
                    (
                        f"{rps:g} rps, {weight} %",
                        f"{errors:.0%}",
                        share(shared.share(ROLLED_BACK), report.runs),
                        share(own.share(ROLLED_BACK), report.runs),
                        float(np.median(caught) * 60) if len(caught) else None,
                    )
                )
                report.goal(
                    f"outage of both arms at {rps:g} rps, {weight} %, {errors:.0%} errors: rolled back",
                    shared.share(ROLLED_BACK),
                    at_most=tolerated(0.05, report.runs),
                )
    report.table(
        f"A first outage of 2 h, looks every 60 s, {report.runs} runs, seed {SEED + 1}",
        (
            "traffic",
            "errors",
            "both arms: rolled back",
            "candidate alone: rolled back",
            "median minutes to it",
        ),
        rows,
    )


# ---------------------------------------------------------------- traffic
def _swinging(report: Report) -> None:
    rows, promoted, back = [], {}, {}
    for mean in (0.2, 2.0):
        for shape, rps in (("constant", mean), ("diurnal, ±90 %", diurnal(mean))):
            for kind in ("good", "border", "bad", "drift"):
                world = Scenario(rps, CANDIDATES[kind], CONTROL, 0.05)
                o = simulate(spec(), world, report.runs, SEED + 2, watch=kind == "drift")
                rows.append((f"{mean:g} rps, {shape}", kind, *_ends(o)))
                promoted[mean, shape, kind], back[mean, shape, kind] = o.served_all, o.share(ROLLED_BACK)
    report.table(
        f"Traffic that swings: 5 % labels, {report.runs} runs, seed {SEED + 2}",
        ("traffic", "candidate", "promoted", "rolled back", "undecided", "median h"),
        rows,
    )
    swings = [(m, "diurnal, ±90 %") for m in (0.2, 2.0)]
    report.goal("diurnal: good rolled back", max(back[m, s, "good"] for m, s in swings), at_most=0.01)
    report.goal(
        "diurnal: border promoted",
        float(np.mean([promoted[m, s, "border"] for m, s in swings])),
        at_most=0.05,
    )
    report.goal("diurnal: bad promoted", max(promoted[m, s, "bad"] for m, s in swings), at_most=0.0)


# ---------------------------------------------------------------- gates
LEVELS: dict[str, tuple[str, tuple[float, float, float]]] = {
    "accuracy": ("accuracy", (0.95, 0.90, 0.85)),
    "errorrate": ("errors", (0.02, 0.05, 0.10)),
    "latency": ("slow", (0.02, 0.05, 0.10)),
    "cost": ("cost_usd", (0.005, 0.010, 0.013)),
    "satisfaction": ("thumbs_down", (0.10, 0.15, 0.30)),
}
NOT_CERTIFIED = ("cost", "satisfaction")


def _gates(report: Report) -> None:
    """One metric at a time within its limit, exactly at it, beyond it, the others good; five gates share the risk."""
    rows, five = [], spec(FIVE_GATES)
    alphas = {g.name: g.rollback_alpha for g in named_gates(five)}
    control = replace(CONTROL, thumbs_down=0.10)
    for name, (field, levels) in LEVELS.items():
        for level, kind in zip(levels, ("within", "at the limit", "beyond"), strict=True):
            how = replace(Behaviour(accuracy=0.95, cost_usd=0.005), **{field: level})
            world = Scenario(2.0, how, control, 0.05, vote_rate=0.05, horizon_hours=NEVER)
            o = simulate(five, world, report.runs, SEED + 3)
            mine = o.stopped_by_gate(name)
            rows.append((name, f"{level:g}", kind, *_ends(o), share(mine, o.runs), f"{alphas[name]:.4f}"))
            if kind == "at the limit":
                report.goal(
                    f"{name} at its limit: rolled back by it",
                    mine,
                    at_most=tolerated(alphas[name], report.runs),
                )
                if name not in NOT_CERTIFIED:
                    report.goal(
                        f"{name} at its limit: promoted",
                        o.served_all,
                        at_most=tolerated(0.05, report.runs),
                    )
            elif kind == "beyond":
                certified = name not in NOT_CERTIFIED
                if certified:
                    report.goal(f"{name} beyond its limit: promoted", o.served_all, at_most=0.0)
                report.goal(
                    f"{name} beyond its limit: rolled back",
                    o.share(ROLLED_BACK),
                    at_least=0.99 if certified else 0.9,
                )
            else:
                report.goal(f"{name} within its limit: rolled back", o.share(ROLLED_BACK), at_most=0.01)
    report.table(
        f"Five gates, 2 rps, 5 % labels, 5 % of answers voted on, {report.runs} runs, 3 days, seed {SEED + 3}",
        (
            "gate",
            "level",
            "",
            "promoted",
            "rolled back",
            "undecided",
            "median h",
            "by this gate",
            "its part of the risk",
        ),
        rows,
    )


# ---------------------------------------------------------------- labels in rollouts
def _late(report: Report) -> None:
    rows, day = [], spec(deadline="24h")
    for name, delay in (("all in time", None), ("wrong 8 h, right 2 h on average", LabelDelay(2.0, 8.0))):
        for kind in ("good", "border", "bad"):
            world = Scenario(2.0, CANDIDATES[kind], CONTROL, 0.05, label_delay=delay)
            o = simulate(day, world, report.runs, SEED + 4)
            rows.append((name, kind, *_ends(o), f"{np.median(o.labels):.0f}"))
            if kind == "border":
                report.goal(
                    f"labels {name}: border promoted", o.served_all, at_most=tolerated(0.05, report.runs)
                )
    report.table(
        f"Whole rollouts with late labels: deadline 24 h, 2 rps, 5 % labels, {report.runs} runs, seed {SEED + 4}",
        ("labels", "candidate", "promoted", "rolled back", "undecided", "median h", "median labels"),
        rows,
    )


def _ways(report: Report) -> None:
    """The same candidates by different specs: where labels come from decides who pays for a bad one."""
    shadow: ModelRolloutSpec = spec(steps=[{"shadow": 100, "minDuration": "1h"}, *STEPS])
    rows = []
    for name, used, mirrored in (
        ("live steps, labels on what was served", spec(), False),
        ("live steps, labels on mirrored requests too", spec(), True),
        ("a shadow step first", shadow, False),
    ):
        for kind in ("good", "border", "bad", "catastrophic"):
            o = simulate(
                used, Scenario(2.0, CANDIDATES[kind], CONTROL, 0.05, mirrored), report.runs, SEED + 5
            )
            rows.append(
                (name, kind, *_ends(o), f"{np.median(o.labels):.0f}", f"{np.median(o.bad_answers):.0f}")
            )
            if name == "a shadow step first" and kind == "bad":
                report.goal(
                    "shadow step: bad answers a bad model serves", float(np.max(o.bad_answers)), at_most=0.0
                )
    report.table(
        f"Ways to prove accuracy: 2 rps, 5 % labels, {report.runs} runs, seed {SEED + 5}",
        (
            "spec",
            "candidate",
            "promoted",
            "rolled back",
            "undecided",
            "median h",
            "labels",
            "bad answers served",
        ),
        rows,
    )
