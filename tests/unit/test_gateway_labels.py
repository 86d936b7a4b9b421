"""Which requests people label, and whose answers they judge: through a real gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from cutover.route import LabelSampling, assigned_to_candidate, sampled_for_label
from fakes.gateway_rig import Rig, until


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with aiohttp.ClientSession() as session:
        yield Rig(tmp_path, session)


async def test_a_sampled_request_of_the_control_is_copied_at_any_weight(rig: Rig) -> None:
    route = rig.route(
        weight_basis_points=3000, labels=LabelSampling(probability={"all": 0.4}, mirrored=True)
    )
    async with rig.all(route):
        for number in range(40):
            assert (await rig.ask(number, f"house-{number}")).status == 200
        await until(lambda: len(rig.assessments.records) == 40)
        sampled = {one["id"] for one in rig.assessments.records.values() if one["sampled"]}
        wanted = {
            one["id"]
            for one in rig.assessments.records.values()
            if one["sampled"] and one["chosen"] == "control"
        }
        assert sampled == {key for key in rig.assessments.records if sampled_for_label(route, key)}
        assert 0 < len(wanted) < len(sampled) < 40
        await until(lambda: len(rig.assessments.shadows) >= len(wanted))
        assert set(rig.assessments.shadows) == wanted
        pairs = await rig.value("cutover_shadow_pairs_total")
        assert pairs == len(wanted)


async def test_routes_without_the_flag_copy_nothing(rig: Rig) -> None:
    route = rig.route(weight_basis_points=3000, labels=LabelSampling(probability={"all": 1.0}))
    assert not route.labels.mirrored
    async with rig.all(route):
        for number in range(10):
            await rig.ask(number, f"house-{number}")
        await until(lambda: len(rig.assessments.records) == 10)
        asked = sum(assigned_to_candidate(route, f"house-{number}") for number in range(10))
        assert rig.candidate.stats["requests"] == asked
        assert rig.assessments.shadows == {}


async def test_copies_for_labels_are_given_up_under_pressure_and_counted(rig: Rig) -> None:
    rig.settings |= {"shadow_queue": 2, "shadow_concurrency": 1, "shadow_seconds": 0.5}
    async with rig.all(rig.route(labels=LabelSampling(probability={"all": 1.0}, mirrored=True))):
        rig.candidate.behaviour.hang_share = 1.0
        for number in range(6):
            assert (await rig.ask(number)).status == 200
        assert await rig.value("cutover_shadow_dropped_total", reason="queue_full") == 3
