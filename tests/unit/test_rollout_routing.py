"""The route: who answers, from which generation on, and who may write it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutover.api.modelrollout import ModelRolloutSpec
from cutover.contract import ROLLOUT_NONE
from cutover.route import Arm, GatewayConfig, Route, assigned_to_candidate
from cutover_operator.rollout.routing import (
    PROBABILITIES,
    Position,
    config_map,
    current_control,
    first_control,
    holder_of,
    label_probabilities,
    label_probability,
    next_generation,
    read_route,
    render,
)
from fakes.rollout_town import CONFIG, rollout_spec

GATEWAY = GatewayConfig.model_validate(CONFIG)
GPT4 = GATEWAY.provider_arm("gpt-4")
OURS = Arm(name="cut", version="v1", base_url="http://cut/v1", model="v1")


def spec_of(**changes: Any) -> ModelRolloutSpec:
    return ModelRolloutSpec.model_validate(rollout_spec(**changes))


def position(**changes: Any) -> Position:
    settings: dict[str, Any] = {
        "rollout_key": "key",
        "rollout_name": "cut",
        "uid": "uid",
        "control": GPT4,
        "candidate": OURS,
        "weight_percent": 25,
    }
    return Position(**settings | changes)


def test_a_step_in_basis_points_with_the_uid_as_salt() -> None:
    route = render(spec_of(), GATEWAY, position(shadow_percent=7, label_probabilities={"all": 0.5}), 3)
    assert (route.weight_basis_points, route.shadow_basis_points, route.salt) == (2500, 700, "uid")
    assert (route.generation, route.rollout, route.rollout_name) == (3, "key", "cut")
    assert route.labels.probability == {"all": 0.5}
    assert route.labels.deadline_seconds == 60
    assert route.labels.mirrored
    served = spec_of(analysis={"labels": {"pool": "served"}})
    assert not render(served, GATEWAY, position(), 3).labels.mirrored
    assert route.fallback == GPT4
    assert not route.fallback_rules.reverse, "only a promoted candidate answers for a dead control"
    assert render(spec_of(), GATEWAY, position(promoted=True), 3).fallback_rules.reverse


@given(st.integers(0, 100), st.lists(st.text(min_size=1), min_size=1, max_size=50))
def test_every_request_has_exactly_one_arm_and_a_higher_weight_only_adds(
    weight: int, keys: list[str]
) -> None:
    low = render(spec_of(), GATEWAY, position(weight_percent=weight // 2), 1)
    high = render(spec_of(), GATEWAY, position(weight_percent=weight), 1)
    for key in keys:
        if assigned_to_candidate(low, key):
            assert assigned_to_candidate(high, key)
        assert weight not in (0, 100) or assigned_to_candidate(high, key) == (weight == 100)


def test_at_rest_there_is_no_candidate() -> None:
    route = render(spec_of(), GATEWAY, position(candidate=None, weight_percent=50), 9)
    assert (route.candidate, route.weight_basis_points, route.rollout, route.promoted) == (
        None,
        0,
        ROLLOUT_NONE,
        False,
    )
    assert route.control == GPT4


def test_whom_a_new_rollout_is_compared_with() -> None:
    promoted = render(spec_of(), GATEWAY, position(promoted=True, weight_percent=100), 1)
    half_tested = render(spec_of(), GATEWAY, position(), 1)
    on_top = render(
        spec_of(), GATEWAY, position(control=OURS, candidate=Arm(**OURS.model_dump() | {"name": "x"})), 1
    )
    assert first_control(spec_of(), GATEWAY, None) == GPT4
    assert first_control(spec_of(), GATEWAY, promoted) == OURS
    assert first_control(spec_of(), GATEWAY, half_tested) == GPT4, "never the half-tested one"
    assert first_control(spec_of(), GATEWAY, on_top) == OURS, "but the one promoted before it"
    named = spec_of(control={"provider": "backup"})
    assert first_control(named, GATEWAY, promoted).name == "backup"
    with pytest.raises(KeyError, match="backup"):
        first_control(spec_of(control={"provider": "absent"}), GATEWAY, None)


def test_a_provider_is_pinned_by_name_and_a_promoted_model_as_it_was() -> None:
    old = GPT4.model_copy(update={"base_url": "http://old/v1"})
    assert current_control(old, GATEWAY) == GPT4
    assert current_control(OURS, GATEWAY) == OURS


def test_the_generation_moves_with_the_content_only() -> None:
    first = render(spec_of(), GATEWAY, position(), 0)
    stored = first.model_copy(update={"generation": 4})
    other = render(spec_of(), GATEWAY, position(weight_percent=50), 0)
    assert next_generation(None, 0, first) == 1
    assert next_generation(stored, 4, first) == 4
    assert next_generation(stored, 4, other) == 5
    assert next_generation(stored, 5, other) == 5, "promised in status, seen by nobody yet"
    assert next_generation(stored, 5, first) == 5
    assert next_generation(stored, 5, other, seen=5) == 6, "a gateway reports it: it is known"
    assert next_generation(None, 5, other, seen=5) == 6
    assert next_generation(stored, 3, other) == 5, "somebody else wrote in between"


@given(
    st.floats(0.1, 10000),
    st.one_of(st.none(), st.floats(0, 1e5)),
    st.sampled_from([0.0, *PROBABILITIES]),
)
def test_label_probability_is_a_probability_and_settles(
    per_hour: float, rate: float | None, current: float
) -> None:
    found = label_probability(per_hour, rate, current)
    assert 0 < found <= 1
    assert label_probability(per_hour, rate, found) == found


def test_label_probability_follows_what_people_can_do() -> None:
    assert label_probability(60, None, 0) == 1.0
    assert label_probability(60, None, 0.1) == 0.1
    assert label_probability(3600, 10.0, 1.0) == 0.1
    assert label_probability(3600, 8.0, 0.1) == 0.1, "not changed for little"
    assert label_probability(1, 1e4, 1.0) == 0.001


def test_what_the_chart_put_on_the_config_map_stays() -> None:
    current = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "assessor-route",
            "namespace": "claims",
            "resourceVersion": "5",
            "labels": {"helm.sh/chart": "cutover"},
            "managedFields": [{}],
        },
        "data": {"note": "kept"},
    }
    route = render(spec_of(), GATEWAY, position(), 2)
    made = config_map(current, "claims", "assessor", route, ("cut", "uid"))
    assert made["metadata"]["resourceVersion"] == "5"
    assert made["metadata"]["labels"]["helm.sh/chart"] == "cutover"
    assert made["data"]["note"] == "kept"
    assert "managedFields" not in made["metadata"]
    assert holder_of(made) == ("cut", "uid")
    assert read_route(made) == route
    fresh = config_map(None, "claims", "assessor", route, ("cut", "uid"))
    assert fresh["metadata"]["name"] == "assessor-route"
    assert "resourceVersion" not in fresh["metadata"]


@pytest.mark.parametrize("text", ["", "{", '{"generation": 1}'])
def test_a_route_that_cannot_be_read_is_none(text: str) -> None:
    assert read_route({"data": {"route.json": text}}) is None
    assert read_route(None) is None
    assert isinstance(render(spec_of(), GATEWAY, position(), 1), Route)


@given(
    st.floats(0.1, 10000),
    st.one_of(st.none(), st.floats(0, 1e5)),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)
def test_strata_share_the_same_number_of_labels_and_settle(
    per_hour: float, rate: float | None, agree: float, disagree: float
) -> None:
    alike = label_probabilities(per_hour, rate, {}, None)
    found = label_probabilities(per_hour, rate, {}, (agree, disagree))
    assert found["all"] == alike["all"]
    assert 0 < found["agree"] <= found["disagree"] <= min(1.0, 4.01 * found["agree"])
    share = (disagree + 15) / (agree + disagree + 100)
    assert (1 - share) * found["agree"] + share * found["disagree"] <= 1.01 * found["all"]
    assert label_probabilities(per_hour, rate, found, (agree, disagree)) == found
    assert label_probabilities(per_hour, rate, found, (1.1 * agree, disagree)) == found, "not for little"
    assert label_probabilities(per_hour, rate, found, None) == alike


def test_two_labels_in_five_come_from_disagreements() -> None:
    found = label_probabilities(3600, 10.0, {"all": 0.1}, (800.0, 200.0))
    share = 0.2 * found["disagree"] / (0.8 * found["agree"] + 0.2 * found["disagree"])
    assert share == pytest.approx(0.4, abs=0.02)
    rare = label_probabilities(3600, 10.0, {"all": 0.1}, (99_000.0, 1000.0))
    assert rare["disagree"] / rare["agree"] == pytest.approx(4.0, abs=0.01), "never more uneven than that"
