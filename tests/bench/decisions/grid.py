"""Tables B1 to B3: nine cells of traffic and label rate, five kinds of candidates, the engine beside other policies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.decisions.policies import Ending, others, walk
from bench.decisions.report import Report, hours, share
from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.rollout.evalue import divergence
from cutover_operator.simulation import Behaviour, Outcome, Scenario, simulate
from cutover_operator.simulation.outcome import PROMOTED, ROLLED_BACK
from cutover_operator.simulation.scenario import after_half

CELLS = [(rps, rate) for rps in (0.2, 2.0, 20.0) for rate in (0.01, 0.05, 0.20)]
DEADLINE_SECONDS = 7200.0
SEED = 4000
LIMIT_ALPHA = 0.02
"""The information limit is quoted for this risk of a false rollback."""
CANDIDATES = {
    "good": Behaviour(accuracy=0.93, errors=0.02),
    "border": Behaviour(accuracy=0.90, errors=0.02),
    "bad": Behaviour(accuracy=0.85, errors=0.02),
    "catastrophic": Behaviour(accuracy=0.93, errors=0.15),
    "drift": Behaviour(accuracy=after_half(0.93, 0.85, 12.0), errors=0.02),
}
CONTROL = Behaviour(accuracy=0.92, errors=0.02)
TWO_GATES: list[dict[str, Any]] = [
    {"metric": "accuracy", "limit": 0.90},
    {"metric": "errorRate", "limit": 0.05},
]
STEPS: list[dict[str, Any]] = [
    {"weight": w, "minDuration": "1h", "minRequests": 50} for w in (10, 25, 50, 100)
]
ENGINE, MIRRORED = "engine", "engine, mirrored labels"


def spec(
    gates: list[dict[str, Any]] = TWO_GATES, steps: list[dict[str, Any]] = STEPS, deadline: str = "2h"
) -> ModelRolloutSpec:
    return ModelRolloutSpec.model_validate(
        {
            "gatewayRef": "assessor",
            "candidate": {"model": {"uri": "claim://models/damage-v1", "version": "damage-v1"}},
            "steps": steps,
            "gates": gates,
            # People who label do not err here (they have a table of their own), and nobody measures them.
            "analysis": {"labels": {"deadline": deadline, "doubleShare": 0}},
        }
    )


@dataclass(frozen=True)
class Found:
    """What a policy did in a cell, the same for engine and others."""

    finish: np.ndarray
    hours: np.ndarray
    """Until everything was the candidate's, or nothing any more."""
    half_hours: np.ndarray
    requests: np.ndarray
    labels: np.ndarray
    bad_answers: np.ndarray
    ever_full: float

    def share(self, finish: int) -> float:
        return float((self.finish == finish).mean())

    def median(self, which: np.ndarray) -> float:
        there = which[self.finish != 0]
        return float(np.median(there)) if len(there) else math.inf


def of_engine(o: Outcome) -> Found:
    """All traffic counts as promoted: what follows at 100 % is watching."""
    full = np.isfinite(o.full_hours)
    finish = np.where(o.finish == ROLLED_BACK, ROLLED_BACK, np.where(full, PROMOTED, o.finish))
    end = np.where(o.finish == ROLLED_BACK, o.decided_hours, o.full_hours)
    return Found(finish, end, o.half_hours, o.requests, o.labels, o.bad_answers, o.served_all)


def of_other(e: Ending) -> Found:
    return Found(
        e.finish, e.decided_hours, e.half_hours, e.requests, e.labels, e.bad_answers, e.share(PROMOTED)
    )


def limit_hours(rps: float, rate: float, mirrored: bool) -> float:
    """Hours no test can beat on average for .85 against .90 at the first step, labels two hours late."""
    labels = math.log(1 / LIMIT_ALPHA) / divergence(0.85, 0.90)
    return DEADLINE_SECONDS / 3600 + labels / (rps * 3600 * rate * 0.98 * (1.0 if mirrored else 0.10))


def run(report: Report) -> None:
    runs = report.runs
    found: dict[tuple[str, str, float, float], Found] = {}
    for kind, behaviour in CANDIDATES.items():
        for cell, (rps, rate) in enumerate(CELLS):
            seed = SEED + 100 * cell
            for mirrored in (False, True):
                # In mirrored mode the first step is left as early; labels come from all requests.
                scenario = Scenario(rps, behaviour, CONTROL, rate, mirrored)
                done = simulate(spec(), scenario, runs, seed + mirrored, watch=kind == "drift")
                found[kind, MIRRORED if mirrored else ENGINE, rps, rate] = of_engine(done)
            scenario = Scenario(rps, behaviour, CONTROL, rate)
            for i, (name, (policy, jumps)) in enumerate(others().items()):
                ended = walk(policy(), jumps, scenario, runs, seed + 10 + i, DEADLINE_SECONDS)
                found[kind, name, rps, rate] = of_other(ended)
        print(f"... {kind} done", flush=True)
    names = [ENGINE, MIRRORED, *others()]
    _shares(report, found, names)
    _one_cell(report, found, names)
    _cells(report, found)
    _goals(report, found)
    _catastrophic(report)


def _pool(
    found: dict[tuple[str, str, float, float], Found], kind: str, name: str, finish: int
) -> tuple[float, str]:
    each = [found[kind, name, rps, rate].share(finish) for rps, rate in CELLS]
    return float(np.mean(each)), f"{min(each):.2f}-{max(each):.2f}"


def _shares(report: Report, found: dict[tuple[str, str, float, float], Found], names: list[str]) -> None:
    rows = []
    for name in names:
        row: list[str] = [name]
        for kind, finish in (
            ("good", ROLLED_BACK),
            ("good", PROMOTED),
            ("border", PROMOTED),
            ("bad", PROMOTED),
            ("bad", ROLLED_BACK),
            ("drift", PROMOTED),
        ):
            mean, spread = _pool(found, kind, name, finish)
            row.append(f"{share(mean, report.runs * len(CELLS))} [{spread}]")
        rows.append(tuple(row))
    report.table(
        f"B1: share of runs, mean over the 9 cells ± standard error [min-max]; {report.runs} runs a cell, seeds {SEED}+",
        (
            "policy",
            "good: rolled back",
            "good: promoted",
            "border: promoted",
            "bad: promoted",
            "bad: rolled back",
            "drift: ends promoted",
        ),
        rows,
    )


def _one_cell(report: Report, found: dict[tuple[str, str, float, float], Found], names: list[str]) -> None:
    rows = []
    for name in names:
        row: list[str] = [name]
        for kind in ("good", "bad", "catastrophic", "drift"):
            f = found[kind, name, 2.0, 0.05]
            took = f.hours - f.half_hours if kind == "drift" else f.hours
            text = f"{hours(f.median(took))} h, {np.median(f.labels):.0f}, {np.median(f.bad_answers):.0f}"
            row.append(f"{text} (+{f.share(PROMOTED):.2f} -{f.share(ROLLED_BACK):.2f})")
        rows.append(tuple(row))
    report.table(
        "B2: 2 rps, 5 % labels: median hours, labels drawn, bad answers served (+promoted -rolled back)",
        ("policy", "good", "bad (.85)", "catastrophic", "drift, hours since its start"),
        rows,
    )


def _cells(report: Report, found: dict[tuple[str, str, float, float], Found]) -> None:
    rows = []
    for rps, rate in CELLS:
        row: list[str] = [f"{rps:g} rps, {rate:.0%}"]
        for kind, finish in (("good", PROMOTED), ("bad", ROLLED_BACK)):
            parts = []
            for name in (ENGINE, MIRRORED):
                f = found[kind, name, rps, rate]
                got = f.share(finish)
                there = f.hours[f.finish == finish]
                text = hours(float(np.median(there))) if len(there) else "-"
                parts.append(text + (f" ({got:.2f})" if got < 1 else ""))
            row.append(" / ".join(parts))
        row.append(f"{hours(limit_hours(rps, rate, False))} / {hours(limit_hours(rps, rate, True))}")
        f = found["catastrophic", ENGINE, rps, rate]
        row.append(f"{hours(f.median(f.hours))}, {np.median(f.bad_answers):.0f} bad answers")
        border = [found["border", name, rps, rate].share(PROMOTED) for name in (ENGINE, MIRRORED)]
        row.append(" / ".join(share(p, report.runs) for p in border))
        rows.append(tuple(row))
    report.table(
        "B3: engine / with mirrored labels, median hours (share if < 1)",
        (
            "cell",
            "good promoted",
            "bad rolled back",
            "limit for bad",
            "catastrophic",
            "border promoted",
        ),
        rows,
    )


def _goals(report: Report, found: dict[tuple[str, str, float, float], Found]) -> None:
    for name in (ENGINE, MIRRORED):
        report.goal(f"{name}: good rolled back", _pool(found, "good", name, ROLLED_BACK)[0], at_most=0.01)
        border = [found["border", name, rps, rate].ever_full for rps, rate in CELLS]
        report.goal(f"{name}: border promoted, pooled", float(np.mean(border)), at_most=0.05)
        report.goal(f"{name}: border promoted, worst cell", max(border), at_most=0.088)
        bad = max(found["bad", name, rps, rate].ever_full for rps, rate in CELLS)
        report.goal(f"{name}: bad promoted, worst cell", bad, at_most=0.0)
        report.goal(f"{name}: drift ends promoted", _pool(found, "drift", name, PROMOTED)[0], at_most=0.0)
        drift = found["drift", name, 2.0, 0.05]
        report.goal(
            f"{name}: hours to find drift at 2 rps, 5 %",
            drift.median(drift.hours - drift.half_hours),
            at_most=15.0,
        )
    for name, limit in ((ENGINE, 12.7), (MIRRORED, 3.2)):
        bad_cell = found["bad", name, 2.0, 0.05]
        report.goal(
            f"{name}: hours to find bad at 2 rps, 5 % (limit {limit_hours(2.0, 0.05, name == MIRRORED):.1f})",
            bad_cell.median(bad_cell.hours),
            at_most=limit,
        )


def _catastrophic(report: Report) -> None:
    """At one look a minute, where a tick holds about twelve of the candidate's requests."""
    scenario = Scenario(2.0, CANDIDATES["catastrophic"], CONTROL, 0.05, tick_seconds=60.0, horizon_hours=12.0)
    o = simulate(spec(), scenario, report.runs, SEED + 7)
    report.table(
        f"Catastrophic (15 % errors) at 60 s ticks, 2 rps, seed {SEED + 7}: 66 requests is the limit at risk .01",
        ("rolled back", "median requests", "9 of 10 within", "median minutes", "bad answers"),
        [
            (
                share(o.share(ROLLED_BACK), o.runs),
                float(np.median(o.requests)),
                float(np.quantile(o.requests, 0.9)),
                float(np.median(o.decided_hours) * 60),
                float(np.median(o.bad_answers)),
            )
        ],
    )
    report.goal("catastrophic: median candidate requests", float(np.median(o.requests)), at_most=99.0)
