"""Which requests people label, and whose answers they judge: through a real gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from cutover.contract import AGREEMENTS, CONFIDENCE_BINS, confidence_bin
from cutover.route import (
    FallbackRules,
    LabelSampling,
    assigned_to_candidate,
    bucket,
    labellers_wanted,
    sampled_for_label,
)
from fakes.gateway_rig import Rig, until


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with aiohttp.ClientSession() as session:
        yield Rig(tmp_path, session)


async def test_a_sampled_request_of_the_control_is_copied_at_any_weight(rig: Rig) -> None:
    route = rig.route(weight_basis_points=3000, labels=LabelSampling(probability={"all": 0.4}, mirrored=True))
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
    rig.settings |= {"shadow_queue": 2, "shadow_concurrency": 1, "shadow_seconds": 20.0}
    async with rig.all(rig.route(labels=LabelSampling(probability={"all": 1.0}, mirrored=True))):
        rig.candidate.behaviour.hang_share = 1.0
        for number in range(6):
            assert (await rig.ask(number)).status == 200
        assert await rig.value("cutover_shadow_dropped_total", reason="queue_full") == 3


async def test_pairs_are_drawn_by_the_stratum_their_second_answer_tells(rig: Rig) -> None:
    chances = {"all": 0.5, "agree": 0.25, "disagree": 1.0}
    route = rig.route(
        weight_basis_points=3000, labels=LabelSampling(probability=chances, mirrored=True, double_share=0.3)
    )
    async with rig.all(route):
        rig.candidate.behaviour.field_accuracy = {"damage": 0.5, "usable": 1.0}
        for number in range(40):
            assert (await rig.ask(number, f"house-{number}")).status == 200
        mine = sum(assigned_to_candidate(route, f"house-{number}") for number in range(40))
        await until(lambda: len(rig.assessments.records) == 40)
        await until(lambda: len(rig.assessments.shadows) == 40 - mine)
        strata = {"agree": 0, "disagree": 0}
        for key, record in rig.assessments.records.items():
            shadow = rig.assessments.shadows.get(key)
            assert (shadow is not None) == (record["chosen"] == "control")
            assert record["labellers"] == labellers_wanted(route, key)
            if shadow is None:
                assert record["sampled"] == sampled_for_label(route, key)
                assert record["samplingProbability"] == 0.5
                continue
            assert not record["sampled"], "the pair decides"
            same = all(
                shadow["candidate"]["answer"][name] == record["control"]["answer"][name]
                for name in ("damage", "usable")
            )
            stratum = "agree" if same else "disagree"
            strata[stratum] += 1
            assert shadow["stratum"] == stratum
            assert shadow["pooled"], "the highest chance is 1"
            assert shadow["samplingProbability"] == chances[stratum]
            assert shadow["sampled"] == sampled_for_label(route, key, stratum)
        assert min(strata.values()) > 2
        for stratum, n in strata.items():
            assert await rig.value("cutover_shadow_pairs_total", agreement=stratum) == n
        assert await rig.value("cutover_label_sampling_probability", stratum="disagree") == 1.0


async def test_only_what_may_be_drawn_is_copied(rig: Rig) -> None:
    chances = {"all": 0.1, "agree": 0.1, "disagree": 0.4}
    route = rig.route(labels=LabelSampling(probability=chances, mirrored=True))
    async with rig.all(route):
        for number in range(40):
            await rig.ask(number, f"house-{number}")
        await until(lambda: len(rig.assessments.records) == 40)
        may = {key for key in rig.assessments.records if bucket(route.salt, "label", key) < 0.4}
        await until(lambda: len(rig.assessments.shadows) >= len(may))
        assert 0 < len(may) < 40
        assert set(rig.assessments.shadows) == may
        for key, shadow in rig.assessments.shadows.items():
            drawn = bucket(route.salt, "label", key) < chances[shadow["stratum"]]
            assert (shadow["pooled"], shadow["sampled"]) == (True, drawn)
            once_pooled = 1.0 if shadow["stratum"] == "disagree" else 0.25
            assert shadow["samplingProbability"] == once_pooled


async def test_a_shadow_step_draws_from_the_same_pool(rig: Rig) -> None:
    chances = {"all": 0.2, "agree": 0.1, "disagree": 0.4}
    route = rig.route(shadow_basis_points=10_000, labels=LabelSampling(probability=chances))
    async with rig.all(route):
        for number in range(40):
            await rig.ask(number, f"house-{number}")
        await until(lambda: len(rig.assessments.shadows) == 40)
        pooled = {key for key, one in rig.assessments.shadows.items() if one["pooled"]}
        assert pooled == {key for key in rig.assessments.shadows if bucket(route.salt, "label", key) < 0.4}


async def test_a_control_without_an_answer_makes_no_pair_and_is_drawn_by_itself(rig: Rig) -> None:
    chances = {"all": 1.0, "agree": 0.5, "disagree": 1.0}
    async with rig.all(rig.route(labels=LabelSampling(probability=chances, mirrored=True), fallback=None)):
        rig.control.behaviour.prose_share = 1.0
        await rig.ask(1, "house-1")
        record = (await until(lambda: list(rig.assessments.records.values())))[0]
        assert (record["outcome"], record["sampled"], record["stratum"]) == ("error", True, "all")
        assert await rig.value("cutover_shadow_dropped_total", reason="no_control_answer") == 1


async def test_a_mirrored_answer_below_the_threshold_is_kept_by_nobody(rig: Rig) -> None:
    """The stand-in is sure of what is right and unsure of what is wrong."""
    rules = FallbackRules(deadline_seconds=2.0, confidence=0.9)
    route = rig.route(
        weight_basis_points=5000,
        fallback_rules=rules,
        labels=LabelSampling(probability={"all": 1.0}, mirrored=True),
    )
    async with rig.all(route):
        rig.candidate.behaviour.field_accuracy = {"damage": 0.6, "usable": 1.0}
        for number in range(30):
            await rig.ask(number, f"house-{number}")
        mine = sum(assigned_to_candidate(route, f"house-{number}") for number in range(30))
        await until(lambda: len(rig.assessments.records) == 30)
        await until(lambda: len(rig.assessments.shadows) == 30 - mine)
        kept = {key for key, one in rig.assessments.shadows.items() if one["kept"]}
        assert kept == {
            key for key, one in rig.assessments.shadows.items() if one["candidate"]["confidence"] >= 0.9
        }
        assert 0 < len(kept) < 30 - mine
        deferred = await rig.value("cutover_shadow_pairs_total", agreement="deferred")
        assert deferred == 30 - mine - len(kept)
        answers = [
            one["candidate"]
            for one in (*rig.assessments.records.values(), *rig.assessments.shadows.values())
            if "candidate" in one
        ]
        assert len(answers) == 30
        for name in ("none", "0", "0.3", "0.95", "0.999"):
            counted = await rig.value("cutover_confidence_total", bin=name, version="v2")
            assert counted == sum(confidence_bin(one["confidence"]) == name for one in answers)


async def test_series_of_a_new_route_begin_at_zero(rig: Rig) -> None:
    async with rig.all(rig.route()):
        for name in CONFIDENCE_BINS:
            assert await rig.value("cutover_confidence_total", bin=name, version="v2") == 0
        for agreement in AGREEMENTS:
            assert await rig.value("cutover_shadow_pairs_total", agreement=agreement) == 0
