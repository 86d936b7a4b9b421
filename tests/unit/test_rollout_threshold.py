"""The threshold of confidence: what is kept before anything is proven, what is certified, and what status says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cutover.api.modelrollout import ModelRolloutSpec, RoutingStatus
from cutover.contract import CONFIDENCE_BINS, CONFIDENCE_EDGES
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.rollout.deferring import CHANGE_SECONDS
from cutover_operator.rollout.threshold import EDGES, STRICTEST, bins_of, choose, governing_gate
from fakes.rollout_town import STEPS, Behaviour, Town, finished, rollout_spec, run_until, started

SPEC = ModelRolloutSpec.model_validate(
    rollout_spec(fallback={"autoConfidence": True}, analysis={"labels": {"doubleShare": 0}})
)
SURE = (("0", 0.1, 0.4), ("0.5", 0.15, 0.7), ("0.9", 0.35, 0.93), ("0.999", 0.4, 0.985))
"""(bin, share, accuracy): 0.87 right over all, 0.96 from 0.9 up."""


def ledger_of(n: int, sure: tuple[tuple[str, float, float], ...] = SURE, **totals: float) -> Ledger:
    """Exactly the expected counts of n labels and ten times as many answers."""
    found = {key.replace("__", "/"): value for key, value in totals.items()}
    for name, share, accuracy in sure:
        found[f"sure/overall/{name}/right"] = round(n * share * accuracy)
        found[f"sure/overall/{name}/wrong"] = round(n * share * (1 - accuracy))
        found[f"confidence/{name}"] = 10.0 * n * share
    return Ledger(uid="u", version="v1", started_at=0.0, totals=found)


def chosen(ledger: Ledger, spec: ModelRolloutSpec = SPEC) -> RoutingStatus:
    found = choose(spec, ledger, "2026-11-24T10:00:00Z")
    assert found is not None
    return found


def test_nothing_below_the_strictest_is_kept_before_anything_is_proven() -> None:
    nothing = chosen(Ledger(uid="u", version="v1", started_at=0.0))
    assert (nothing.threshold, nothing.certified, nothing.kept_share) == (STRICTEST, False, 0.0)
    few = chosen(ledger_of(60))
    assert (few.threshold, few.certified, few.kept_share) == (STRICTEST, False, pytest.approx(0.4))
    assert "more labels are missing" in few.message
    hopeless = chosen(ledger_of(2000, (("0.5", 0.5, 0.6), ("0.999", 0.5, 0.65))))
    assert not hopeless.certified
    assert "no share of sure answers" in hopeless.message


def test_a_certified_threshold_keeps_what_meets_the_floor_and_says_what_follows() -> None:
    costs = {
        "requests__candidate__ok": 750.0,
        "requests__candidate__deferred": 250.0,
        "requests__control__ok": 1000.0,
        "cost__candidate": 1000 * 0.004 + 250 * 0.04,
        "cost__control": 1000 * 0.04,
    }
    found = chosen(ledger_of(2000, **costs))
    assert (found.threshold, found.certified, found.labels) == (pytest.approx(0.6), True, 2000)
    assert found.kept_share == pytest.approx(0.75)
    assert found.kept_accuracy == pytest.approx(0.959, abs=0.002)
    assert found.auroc is not None
    assert found.auroc > 0.75
    assert found.usd_per_assessment == pytest.approx(0.004 + 0.25 * 0.04)
    for part in ("75 % of all", "AUROC 0.", "keeping 40 %: 0.985", "answers 25 %", "USD per assessment"):
        assert part in found.message
    assert chosen(ledger_of(60)).usd_per_assessment is None


def test_answers_without_a_confidence_are_never_kept_and_are_counted_in_the_share() -> None:
    ledger = ledger_of(2000, confidence__none=10 * 2000.0)
    found = chosen(ledger)
    assert found.kept_share == pytest.approx(0.375)
    assert found.certified
    assert bins_of(ledger, "overall").unknown_answers == 20_000
    assert len(EDGES) == len(CONFIDENCE_BINS) - 1
    assert EDGES[1:] == CONFIDENCE_EDGES


def test_missing_labels_count_as_wrong() -> None:
    whole = chosen(ledger_of(600))
    gaps = {f"sure__overall__{name}__missing": 60.0 for name in ("0.9", "0.999")}
    assert whole.certified
    assert not chosen(ledger_of(600, **gaps)).certified


def test_a_threshold_needs_a_gate_to_meet() -> None:
    none = ModelRolloutSpec.model_validate(rollout_spec(gates=[{"metric": "errorRate", "limit": 0.05}]))
    assert governing_gate(none) is None
    assert choose(none, ledger_of(100), "now") is None


def test_thresholds_below_the_floor_are_named_rarely() -> None:
    """100 rollouts, looked at after each of 40 hours: certified below the floor in at most 5 % plus three errors."""
    rng = np.random.default_rng(5)
    edge = (("0.5", 0.3, 0.7), ("0.8", 0.3, 0.88), ("0.95", 0.4, 0.899))
    broken = 0
    for _ in range(100):
        totals: dict[str, float] = {}
        for _ in range(40):
            for (name, _, accuracy), n in zip(
                edge, rng.multinomial(60, [s for _, s, _ in edge]), strict=True
            ):
                right = int(rng.binomial(n, accuracy))
                for result, count in (("right", right), ("wrong", n - right)):
                    key = f"sure/overall/{name}/{result}"
                    totals[key] = totals.get(key, 0.0) + count
            if chosen(Ledger(uid="u", version="v1", started_at=0.0, totals=totals)).certified:
                broken += 1
                break
    assert broken <= 100 * 0.05 + 3 * (100 * 0.05 * 0.95) ** 0.5


# ---------------------------------------------------------------- from the metric to the route
AUTO: dict[str, Any] = {
    "fallback": {"autoConfidence": True},
    "gates": [{"metric": "accuracy", "limit": 0.9}, {"metric": "errorRate", "limit": 0.05}],
    "analysis": {"interval": "10s", "labels": {"perHour": 360, "deadline": "10m", "doubleShare": 0}},
}
SLOW: dict[str, Any] = {"tick_seconds": 120.0, "requests_per_second": 2.0}


async def confidence_of(town: Town) -> float | None:
    route = await town.route()
    return None if route is None or route.candidate is None else route.fallback_rules.confidence


async def test_a_model_below_the_limit_is_promoted_with_the_answers_it_is_sure_of() -> None:
    steps = [{**step, "minDuration": "70m"} for step in (STEPS[0], *STEPS[3:])]
    town = await started(
        spec=AUTO | {"steps": steps}, candidate=Behaviour(accuracy=0.87), sureness=SURE, **SLOW
    )
    seen: list[tuple[float, float]] = []
    for _ in range(1500):
        await town.tick()
        await town.run_pass()
        limit = await confidence_of(town)
        if limit is not None and (not seen or seen[-1][1] != limit):
            seen.append((town.now, limit))
        if finished(await town.status()):
            break
    status = await town.status()
    assert status["finish"] == "Promoted"
    assert seen[0][1] == STRICTEST, "nothing is kept on trust"
    assert 0.0 < seen[-1][1] <= 0.9
    assert all(later[0] - earlier[0] >= CHANGE_SECONDS for earlier, later in pairwise(seen[1:]))
    routing = status["routing"]
    assert (routing["certified"], routing["threshold"]) == (True, seen[-1][1])
    assert 0.6 < routing["keptShare"] < 0.95
    assert routing["auroc"] > 0.7
    deferred = sum(
        value
        for (name, labels), value in town.counters.items()
        if name == "cutover_requests_total" and dict(labels).get("outcome") == "deferred"
    )
    assert deferred > 0


async def test_without_auto_confidence_nothing_is_deferred_and_status_says_nothing() -> None:
    town = await started(spec={"steps": STEPS[1:]})
    for _ in range(10):
        await town.tick()
        await town.run_pass()
    assert await confidence_of(town) is None
    assert "routing" not in await town.status()


async def test_a_fresh_start_takes_the_threshold_back() -> None:
    town = await started(spec=AUTO, candidate=Behaviour(accuracy=0.87), sureness=SURE, **SLOW)
    await run_until(town, lambda s: bool((s.get("routing") or {}).get("certified")), ticks=600)
    town.edit(request={"id": "1", "action": "abort"})
    await town.tick()
    await town.run_pass()
    town.edit(request={"id": "2", "action": "retry"})
    await run_until(town, lambda s: "finish" not in s and s.get("phase") == "Progressing", ticks=20)
    assert await confidence_of(town) == STRICTEST
