"""What happened while the operator could not read is found when it can, whatever was written and restarted meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.ledger_map import from_config_map, ledger_name
from cutover_operator.evidence.query import window_for
from cutover_operator.evidence.reading import PROBED_FROM_SECONDS
from cutover_operator.evidence.samples import Answer, Asked, Unavailable, custom_key
from cutover_operator.port import CONFIG_MAPS, MODEL_ROLLOUTS, Object
from cutover_operator.turns import Turn
from fakes.rollout_town import NAMESPACE, Behaviour, Town, run_until, started
from unit.test_rollout_memory import LIVE, remembering, ticks

PATIENT = {"interval": "10s", "labels": {"perHour": 100_000, "deadline": "60s"}}
HOLD = {"onUnavailable": {"action": "hold", "after": "2h"}}
APPEALS = {"metric": "custom", "name": "appeals", "bad": "bad_total", "total": "all_total", "limit": 0.05}


async def at_a_step(**changes: Any) -> Town:
    town = await started(seed=1, spec={"steps": LIVE, "analysis": {**PATIENT, **HOLD}} | changes)
    town.samples_kept = 2000
    remembering(town)
    await run_until(town, lambda status: bool(status.get("stepConfirmedAt")))
    await ticks(town, 30)
    return town


def restart_gateways(town: Town) -> None:
    for name in town.names:
        town.restart_gateway(name)


async def parent(town: Town) -> Object:
    found = await town.kube.get(MODEL_ROLLOUTS, NAMESPACE, "cut")
    assert found is not None
    return found


async def ledger(town: Town) -> Ledger:
    obj = await town.kube.get(CONFIG_MAPS, NAMESPACE, ledger_name("cut"))
    found = from_config_map(obj, (await parent(town))["metadata"]["uid"])
    assert found is not None
    return found


def windows_of(town: Town) -> list[int]:
    """The windows that are asked for from now on."""
    found: list[int] = []
    real = town.read

    async def read(
        url: str, asked: Asked, window_seconds: int, turn: Turn, own_window_seconds: int
    ) -> dict[str, Answer | Unavailable]:
        found.append(window_seconds)
        return await real(url, asked, window_seconds, turn, own_window_seconds)

    town.read = read  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("restarts", [0, 1])
async def test_a_breach_during_an_outage_of_the_metrics_is_found_after_it(restarts: int) -> None:
    """The checkpoint comes due meanwhile, and the gateway's counters begin anew: only the samples of then know."""
    town = await at_a_step()
    town.prometheus_down = "connection refused"
    town.candidate = Behaviour(errors=0.5)
    await ticks(town, 18)
    town.candidate = Behaviour()
    restart_gateways(town)
    await ticks(town, 42)
    for _ in range(restarts):
        town.restart_operator(town.kube)
    assert (await town.status())["reason"] == "MetricsUnavailable"
    town.prometheus_down = ""
    await ticks(town, 2)
    status = await town.status()
    assert (status["phase"], status["reason"]) == ("RolledBack", "ErrorRateAboveLimit")


async def test_one_failed_look_after_a_restart_loses_nothing() -> None:
    town = await at_a_step()
    town.candidate = Behaviour(errors=0.5)
    for _ in range(60):
        await town.tick()
    town.candidate = Behaviour()
    restart_gateways(town)
    for _ in range(120):
        await town.tick()
    town.restart_operator(town.kube)
    town.prometheus_down = "answered 503"
    await ticks(town, 1)
    town.prometheus_down = ""
    await ticks(town, 2)
    assert (await town.status())["reason"] == "ErrorRateAboveLimit"


async def test_a_checkpoint_says_until_when_everything_was_counted() -> None:
    town = await at_a_step()
    begun = town.now
    town.prometheus_down = "connection refused"
    await ticks(town, 120)
    assert (await ledger(town)).written_at <= begun
    town.prometheus_down = ""
    await ticks(town, 2)
    assert (await ledger(town)).written_at > begun + 1000


async def test_while_nothing_can_be_seen_nobody_looks_back_for_hours() -> None:
    town = await at_a_step()
    town.prometheus_down = "connection refused"
    await ticks(town, 120)
    windows = windows_of(town)
    await ticks(town, 20)
    assert set(windows) == {window_for(0.0)}
    town.prometheus_down = ""
    await ticks(town, 1)
    assert max(windows) >= 1200 > PROBED_FROM_SECONDS, "and then once for all of it"
    del windows[:]
    await ticks(town, 5)
    assert set(windows) == {window_for(0.0)}


# ---------------------------------------------------------------- counters of somebody else
class Claims:
    """An exporter that has nothing to do with the gateway."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.truth = [0.0, 0.0]

    def add(self, bad: float, total: float) -> None:
        for metric, amount in (("bad_total", bad), ("all_total", total)):
            self.town._add(metric, amount, instance="claims:1", job="claims")
        self.truth = [self.truth[0] + bad, self.truth[1] + total]

    def restart(self) -> None:
        for name in list(self.town.counters):
            if name[0] in ("bad_total", "all_total"):
                self.town.counters[name] = 0.0

    async def run(self, looks: int, bad: float, total: float = 100) -> None:
        for _ in range(looks):
            self.add(bad, total)
            await ticks(self.town, 1)


def without_claims(town: Town) -> dict[str, bool]:
    """A switch for whether the exporter's counters can be read."""
    switch, real = {"away": False}, town.read

    async def read(
        url: str, asked: Asked, window_seconds: int, turn: Turn, own_window_seconds: int
    ) -> dict[str, Answer | Unavailable]:
        found = await real(url, asked, window_seconds, turn, own_window_seconds)
        if switch["away"]:
            found |= {
                custom_key(name): Unavailable("HttpError", "answered 503")
                for name in ("bad_total", "all_total")
            }
        return found

    town.read = read  # type: ignore[method-assign]
    return switch


@pytest.mark.parametrize("restarts", [0, 1])
async def test_counters_of_a_users_own_that_could_not_be_read_are_counted_later(restarts: int) -> None:
    town = await at_a_step(gates=[APPEALS])
    switch, claims = without_claims(town), Claims(town)
    await claims.run(20, bad=1)
    switch["away"] = True
    await claims.run(6, bad=60)
    claims.restart()
    await claims.run(40, bad=1)
    for _ in range(restarts):
        town.restart_operator(town.kube)
    assert (await town.status())["phase"] == "Progressing"
    switch["away"] = False
    await claims.run(3, bad=1)
    status = await town.status()
    assert (status["phase"], status["reason"]) == ("RolledBack", "CustomShareAboveLimit")


async def test_an_old_counter_that_is_first_seen_late_is_no_evidence() -> None:
    """Its exporter was away when the rollout began; what it tells of is years old."""
    town = await at_a_step(gates=[APPEALS])
    claims = Claims(town)
    claims.add(90_000, 1_000_000)
    await ticks(town, 40)
    assert (await town.status())["phase"] == "Progressing"
    await claims.run(30, bad=1)
    assert (await town.status())["phase"] == "Progressing"
    await claims.run(30, bad=50)
    assert (await town.status())["reason"] == "CustomShareAboveLimit"


async def test_a_gate_that_is_added_later_begins_with_what_comes_then() -> None:
    town = await at_a_step()
    claims = Claims(town)
    claims.add(90_000, 1_000_000)
    await ticks(town, 40)
    town.edit(gates=[*(await parent(town))["spec"]["gates"], APPEALS])
    await claims.run(40, bad=1)
    status = await town.status()
    assert status["phase"] == "Progressing"
    (gate,) = [gate for gate in status["gates"] if gate["name"] == "appeals"]
    assert 0 < gate["samples"] <= 4_100
