"""The simulated rollouts are the operator's: `decide` driven through the same events makes the same moves at the same ticks.

Each history is drawn by a walk, then replayed to the real loop (gather, fold, decide, settle) in a town whose traffic,
labels and votes are the recorded ones. What the walk shows in benches and in `kubectl cutover simulate` is therefore
what the operator does, not a copy of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cutover.api.modelrollout import ModelRolloutSpec
from cutover.contract import (
    CONFIDENCE_BINS,
    COST,
    DURATION,
    LABEL_CONFIDENCE,
    LABEL_PAIRS,
    LABEL_POOL,
    LABEL_RESULTS,
    LABEL_WEIGHT,
    LABELS_MATURED,
    LATENCY_EDGES_SECONDS,
    PAIR_RESULTS,
    REQUESTS,
    ROLLOUT_NONE,
    ROUTE_GENERATION,
    SATISFACTION,
    SHADOW_DURATION,
    SHADOW_PAIRS,
)
from cutover_operator.rollout.cohorts import STRATA
from cutover_operator.rollout.threshold import EDGES
from cutover_operator.simulation import (
    Behaviour,
    Incident,
    LabelDelay,
    Scenario,
    Sureness,
    Together,
    simulate,
)
from cutover_operator.simulation.books import Col
from cutover_operator.simulation.hours import MISSING, PAIRS, POOL, RIGHT, WEIGHT, WRONG
from cutover_operator.simulation.outcome import PROMOTED, ROLLED_BACK
from cutover_operator.simulation.scenario import after, after_half
from cutover_operator.simulation.walk import Look
from fakes.rollout_town import CONFIG, GATEWAY, START, Town, rollout_spec

LIVE = [{"weight": w, "minDuration": "1h", "minRequests": 50} for w in (10, 25, 50, 100)]
SHADOWED = [{"shadow": 50, "minDuration": "30m", "minRequests": 50}, *LIVE[:3]]
TWO = [{"metric": "accuracy", "limit": 0.90}, {"metric": "errorRate", "limit": 0.05}]
FOUR = [*TWO, {"metric": "latency", "limit": 2.0}, {"metric": "cost", "limit": 0.01}]
SIX = [
    {"metric": "accuracy", "limit": 0.88, "margin": 0.2},
    {"metric": "errorRate", "limit": 0.05, "margin": 0.5},
    {"metric": "latency", "limit": 2.0},
    {"metric": "cost", "limit": 0.01},
    {"metric": "satisfaction", "margin": 0.5},
    {"metric": "custom", "name": "appeals", "bad": "appeals_total", "total": "claims_total", "limit": 0.1},
]


class Replay(Town):
    """A town in which the recorded events of one run happen, whatever the operator does: it has to do the same."""

    def recorded(self, looks: list[Look], run: int) -> Replay:
        self.looks, self.run, self.past = looks, run, -1
        return self

    def _add_all(self, metric: str, own: dict[str, str], values: dict[str, float], label: str) -> None:
        for value, count in values.items():
            self._add(metric, count, **own, **{label: value})

    def _serve(self, pod: str) -> None:
        route = self.in_force.get(pod)
        generation = route.generation if route is not None else 0
        self.counters[ROUTE_GENERATION, (("gateway", GATEWAY), ("instance", pod))] = generation
        if route is None or route.rollout == ROLLOUT_NONE or route.candidate is None:
            return
        self.past += 1
        look = self.looks[self.past]
        e = [float(v) for v in look.events[:, self.run]]
        assert route.weight_basis_points == round(10000 * look.weight[self.run])
        assert route.shadow_basis_points == round(10000 * look.shadow[self.run])
        base = {"gateway": GATEWAY, "rollout": route.rollout, "instance": pod}
        mine = {**base, "arm": "candidate", "version": route.candidate.version}
        theirs = {**base, "arm": "control", "version": route.control.version}
        copies = {**base, "version": route.candidate.version}
        deferred = float(look.deferred[self.run])
        kept_from = int(look.kept_from[self.run])
        if kept_from:
            assert route.fallback_rules.confidence == EDGES[kept_from]
        self._arm(mine, e[Col.ANSWERED], e[Col.ERRORS], e[Col.SLOW], e[Col.COST], deferred)
        self._arm(theirs, e[Col.CONTROL_ANSWERED], e[Col.CONTROL_ERRORS], e[Col.CONTROL_SLOW], 0.0)
        good = e[Col.MIRRORED] - e[Col.MIRRORED_ERRORS]
        self._add_all(SHADOW_PAIRS, copies, {"agree": good, "error": e[Col.MIRRORED_ERRORS]}, "agreement")
        self._histogram(SHADOW_DURATION, copies, e[Col.MIRRORED], e[Col.MIRRORED_SLOW])
        for own, labels, votes in (
            (mine, (Col.RIGHT, Col.WRONG, Col.MISSING), (Col.UP, Col.DOWN)),
            (
                theirs,
                (Col.CONTROL_RIGHT, Col.CONTROL_WRONG, Col.CONTROL_MISSING),
                (Col.CONTROL_UP, Col.CONTROL_DOWN),
            ),
        ):
            database = {k: v for k, v in own.items() if k != "gateway"}
            words = dict(zip(("right", "wrong", "missing"), (e[c] for c in labels), strict=True))
            self._add_all(LABELS_MATURED, {**database, "field": "overall", "stratum": "all"}, words, "result")
            self._add_all(
                SATISFACTION, database, dict(zip(("up", "down"), (e[c] for c in votes), strict=True)), "score"
            )
        self._bets_and_confidence({k: v for k, v in copies.items() if k != "gateway"}, look)
        self._add("claims_total", e[Col.ANSWERED], instance=pod)
        self._add("appeals_total", e[Col.BAD], instance=pod)

    def _bets_and_confidence(self, own: dict[str, str], look: Look) -> None:
        """What the database says beside plain labels. Labels drawn alike are the whole of their own pool."""
        hourly, every = look.hourly[:, self.run], {**own, "field": "overall"}
        alike = look.events[[Col.RIGHT, Col.WRONG, Col.MISSING], self.run].sum()
        for metric, part in ((LABEL_POOL, POOL), (LABEL_WEIGHT, WEIGHT)):
            counts = dict(zip(STRATA, (float(v) for v in hourly[part]), strict=True))
            self._add_all(metric, own, {**counts, "all": float(alike)}, "stratum")
        for result, part in zip(LABEL_RESULTS, (RIGHT, WRONG, MISSING), strict=True):
            drawn = dict(zip(STRATA[1:], (float(v) for v in hourly[part][1:]), strict=True))
            self._add_all(LABELS_MATURED, {**every, "arm": "candidate", "result": result}, drawn, "stratum")
        told = dict(zip(PAIR_RESULTS, (float(v) for v in hourly[PAIRS]), strict=True))
        self._add_all(LABEL_PAIRS, every, told, "result")
        for result, bins in zip(LABEL_RESULTS, look.sure[:, :, self.run], strict=True):
            sure = dict(zip(CONFIDENCE_BINS[1:], (float(v) for v in bins), strict=True))
            self._add_all(LABEL_CONFIDENCE, {**every, "result": result}, sure, "bin")

    def _arm(
        self, own: dict[str, str], n: float, errors: float, slow: float, usd: float, deferred: float = 0.0
    ) -> None:
        outcomes = {"ok": n - errors - deferred, "error": errors, "deferred": deferred}
        self._add_all(REQUESTS, own, outcomes, "outcome")
        self._histogram(DURATION, own, n, slow)
        self._add(COST, usd, **own)

    def _histogram(self, metric: str, own: dict[str, str], n: float, slow: float) -> None:
        edges = {f"{edge:.1f}": n - slow if edge <= 4 else n for edge in LATENCY_EDGES_SECONDS}
        self._add_all(metric, own, {**edges, "+Inf": n}, "le")

    def _label(self) -> None:
        """Labels and votes are recorded as matured."""

    async def settle(self) -> dict[str, Any]:
        """Passes within the same second until nothing changes: routes reach the gateways at once."""
        before: dict[str, Any] = {}
        for _ in range(12):
            await self.run_pass()
            route = await self.route()
            if route is not None:
                self.in_force = dict.fromkeys(self.names, route)
            await self._pods_start()
            status = await self.status()
            if status == before:
                return status
            before = status
        raise AssertionError("the operator does not come to rest")


def spec_of(
    gates: list[dict[str, Any]],
    steps: list[dict[str, Any]],
    pool: str = "served",
    strata: str = "none",
    **more: Any,
) -> dict[str, Any]:
    labels = {"perHour": 100_000, "deadline": "2h", "pool": pool, "strata": strata}
    return {"gates": gates, "steps": steps, "analysis": {"interval": "30s", "labels": labels}, **more}


GOOD = Behaviour(accuracy=0.95, errors=0.02)
PAST_THE_HOUR = START % 3600.0
MARGIN = [{"metric": "accuracy", "limit": 0.85, "margin": 0.03}, TWO[1]]
ONLY_MARGIN = [{"metric": "accuracy", "margin": 0.03}, TWO[1]]
BOTH = Scenario(mirrored_labels=True, past_the_hour_seconds=PAST_THE_HOUR, rps=1.0)
TOGETHER = Together(discordance=0.1, agreement=0.86)
SURE = Sureness(
    shares=tuple([0.1, *[0.0] * 8, 0.2, *[0.0] * 4, 0.4, 0.0, 0.3]),
    accuracy=tuple([0.5, *[0.0] * 8, 0.8, *[0.0] * 4, 0.97, 0.0, 0.99]),
)
AUTO = {"autoConfidence": True}
HISTORIES: dict[str, tuple[dict[str, Any], Scenario]] = {
    "good": (spec_of(TWO, LIVE), Scenario(candidate=GOOD)),
    "bad": (spec_of(TWO, LIVE), Scenario(candidate=Behaviour(accuracy=0.83))),
    "on the limit, with a deadline": (
        spec_of(TWO, [{**s, "deadline": "10h", "onDeadline": "rollback"} for s in LIVE]),
        Scenario(candidate=Behaviour(accuracy=0.9)),
    ),
    "shadow first, missing labels": (
        spec_of(FOUR, SHADOWED),
        Scenario(candidate=Behaviour(accuracy=0.97), label_delay=LabelDelay(0.5, 0.7)),
    ),
    "errors in the shadow": (spec_of(FOUR, SHADOWED), Scenario(candidate=Behaviour(errors=0.12))),
    "slow later": (spec_of(FOUR, LIVE), Scenario(candidate=Behaviour(0.95, slow=after(5.0, 0.01, 0.2)))),
    "dear": (spec_of(FOUR, LIVE), Scenario(candidate=Behaviour(0.95, cost_usd=0.014))),
    "dearer later, two limits": (
        spec_of(
            [*TWO, {"metric": "cost", "limit": 0.012}, {"metric": "cost", "limit": 0.02, "name": "cap"}], LIVE
        ),
        Scenario(candidate=Behaviour(0.95, cost_usd=after(7.0, 0.005, 0.03)), horizon_hours=40.0),
    ),
    "worse than the control, whose answers nobody sees twice": (
        spec_of(ONLY_MARGIN, LIVE),
        Scenario(candidate=Behaviour(0.8), control=Behaviour(0.95), label_rate=0.2, horizon_hours=60.0),
    ),
    "disliked later": (
        spec_of(SIX, LIVE[:3]),
        Scenario(
            candidate=Behaviour(0.96, thumbs_down=after(9.0, 0.1, 0.5), errors=after(9.0, 0.01, 0.03)),
            control=Behaviour(0.93, errors=0.01),
            vote_rate=0.1,
            horizon_hours=60.0,
        ),
    ),
    "everything at once": (
        spec_of(SIX, LIVE),
        Scenario(candidate=Behaviour(0.96, custom_bad=0.05), control=Behaviour(0.93), vote_rate=0.1),
    ),
    "disliked": (
        spec_of(SIX, LIVE),
        Scenario(candidate=Behaviour(0.96, thumbs_down=0.3), control=Behaviour(0.93), vote_rate=0.1),
    ),
    "shared outages": (
        spec_of(TWO, LIVE),
        Scenario(
            candidate=GOOD,
            incidents=(Incident(0.5, 1.0, at_hours=2.0), Incident(0.4, 0.5, at_hours=6.0)),
        ),
    ),
    "shared outages while few ask": (
        spec_of(TWO, LIVE),
        Scenario(
            rps=0.04,
            candidate=GOOD,
            label_rate=0.5,
            incidents=(Incident(0.5, 3.0, at_hours=2.0), Incident(0.2, 4.0, at_hours=9.0)),
        ),
    ),
    "bad since a shared outage": (
        spec_of(FOUR, LIVE),
        Scenario(
            rps=0.2,
            candidate=Behaviour(0.95, errors=after(2.0, 0.02, 0.4)),
            incidents=(Incident(0.5, 4.0, at_hours=2.0),),
        ),
    ),
    "drift after half": (
        spec_of(TWO, LIVE),
        Scenario(candidate=Behaviour(after_half(0.95, 0.75, 4.0)), horizon_hours=48.0),
    ),
    "slow to decide, over many epochs": (
        spec_of(TWO, LIVE),
        Scenario(
            rps=0.5, candidate=Behaviour(after(40.0, 0.91, 0.8)), tick_seconds=1800.0, horizon_hours=90.0
        ),
    ),
    "pairs, good": (
        spec_of(MARGIN, LIVE, "mirrored"),
        replace(BOTH, candidate=Behaviour(0.94), control=Behaviour(0.92), together=TOGETHER),
    ),
    "pairs, worse than the control": (
        spec_of(ONLY_MARGIN, SHADOWED),
        replace(
            BOTH,
            mirrored_labels=False,
            rps=2.0,
            candidate=Behaviour(0.85),
            control=Behaviour(0.95),
            label_rate=0.2,
        ),
    ),
    "pairs, later worse, over many epochs": (
        spec_of(ONLY_MARGIN, LIVE, "mirrored"),
        replace(
            BOTH,
            candidate=Behaviour(after(30.0, 0.94, 0.8)),
            control=Behaviour(0.92),
            label_delay=LabelDelay(0.4, 0.6),
            tick_seconds=1200.0,
        ),
    ),
    "strata, good": (
        spec_of(TWO, LIVE, "mirrored", "disagreement"),
        replace(BOTH, candidate=GOOD, together=TOGETHER, label_delay=LabelDelay(0.4, 0.5)),
    ),
    "strata, drift": (
        spec_of(TWO, LIVE, "mirrored", "disagreement"),
        replace(
            BOTH, candidate=Behaviour(after_half(0.95, 0.8, 6.0)), horizon_hours=60.0, scrapes_missing=0.0
        ),
    ),
    "sure answers kept": (
        spec_of(TWO, LIVE, "mirrored", fallback=AUTO),
        replace(BOTH, sureness=SURE, control=Behaviour(0.92, cost_usd=0.04)),
    ),
    "a fixed confidence and pairs": (
        spec_of(MARGIN, SHADOWED, "mirrored", fallback={"confidence": 0.93}),
        replace(BOTH, sureness=SURE, control=Behaviour(0.92), together=TOGETHER),
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
async def test_decide_and_the_walk_move_alike(name: str) -> None:
    changes, scenario = HISTORIES[name]
    # The town scrapes once a tick.
    scenario = replace(
        scenario, horizon_hours=min(scenario.horizon_hours, 90.0), cost_seconds=scenario.tick_seconds
    )
    runs, run = 4, 1
    looks: list[Look] = []
    spec = ModelRolloutSpec.model_validate(rollout_spec(**changes))
    simulate(spec, scenario, runs, seed=21, watch=True, observe=looks.append)
    town = Replay(pods=1, tick_seconds=scenario.tick_seconds).recorded(looks, run)
    assert CONFIG["name"] == GATEWAY
    await town.prepare()
    await town.submit(**changes)
    town._add("claims_total", 0.0, instance="gw-0")
    town._add("appeals_total", 0.0, instance="gw-0")
    town._scrape()
    status = await town.settle()
    assert status["phase"] == "Progressing"
    after_promotion = 0
    for look in looks:
        await town.tick()
        status = await town.settle()
        assert town.now - START == pytest.approx(look.seconds)
        assert status["weight"] == round(100 * look.after[run]), f"at hour {look.seconds / 3600:.2f}"
        finish = {PROMOTED: "Promoted", ROLLED_BACK: "RolledBack"}.get(int(look.finish[run]))
        assert status.get("finish") == finish, status["message"]
        after_promotion += finish == "Promoted"
        if finish == "RolledBack" or after_promotion > 5:
            return
    raise AssertionError("the history never ended")


def test_the_histories_end_in_different_ways() -> None:
    """Otherwise the comparison above would prove little."""
    ends = []
    for changes, scenario in HISTORIES.values():
        spec = ModelRolloutSpec.model_validate(rollout_spec(**changes))
        outcome = simulate(spec, scenario, 4, seed=21)
        ends.append(int(outcome.finish[1]))
    assert {PROMOTED, ROLLED_BACK} <= set(ends)
    assert np.mean(np.asarray(ends) == PROMOTED) >= 0.25
