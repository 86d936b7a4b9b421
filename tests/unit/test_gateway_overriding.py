"""Where requests go that an arm must not see: whatever the route, that arm is not among those that may be asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cutover.contract import ROLLOUT_NONE
from cutover.records import ArmName
from cutover.route import Arm, FallbackRules, LabelSampling, Route, mirrored, mirrored_for_label
from cutover_server.gateway.overriding import has_fetching_arm, past_fetching_arms
from cutover_server.gateway.settlement import alternatives
from fakes.gateway_rig import TASK


def arm(name: str, fetches: bool) -> Arm:
    return Arm(name=name, version=name, base_url=f"http://{name}/v1", model=name, fetches_from_text=fetches)


def arms(name: str) -> st.SearchStrategy[Arm]:
    return st.booleans().map(lambda fetches: arm(name, fetches))


@st.composite
def routes(draw: st.DrawFn) -> Route:
    control = draw(arms("control"))
    return Route(
        generation=1,
        rollout="0123456789abc",
        task=TASK,
        control=control,
        candidate=draw(st.none() | arms("candidate")),
        fallback=draw(st.none() | st.just(control) | arms("fallback")),
        promoted=draw(st.booleans()),
        fallback_rules=FallbackRules(reverse=draw(st.booleans())),
        shadow_basis_points=10_000,
        labels=LabelSampling(probability={"all": 1.0}, mirrored=True),
    )


CHOSEN = st.sampled_from(["control", "candidate"])


def first_of(route: Route, chosen: ArmName) -> Arm | None:
    return route.candidate if chosen == "candidate" else route.control


@given(route=routes(), chosen=CHOSEN, fixed=st.booleans())
def test_no_arm_that_fetches_is_asked_and_nothing_counts(route: Route, chosen: ArmName, fixed: bool) -> None:
    found = past_fetching_arms(route, chosen, fixed)
    assigned = first_of(route, chosen)
    stays = assigned is not None and not assigned.fetches_from_text
    others = [one for one in (route.control, route.fallback) if one and not one.fetches_from_text]
    assert (found is not None) == (stays or (not fixed and bool(others)))
    if found is None:
        return
    apart, to = found
    first = first_of(apart, to)
    assert first is not None
    asked = [first, *alternatives(apart, to)]
    assert not any(one.fetches_from_text for one in asked)
    assert first == (assigned if stays else others[0])
    assert to == chosen or to == "control"
    assert apart.rollout == ROLLOUT_NONE
    assert not mirrored(apart, "house")
    assert not mirrored_for_label(apart, "house", "id")
    # Whoever else might have been asked still may.
    kept = {one.name for one in alternatives(route, chosen) if not one.fetches_from_text} - {first.name}
    assert kept <= {one.name for one in asked}


@given(route=routes())
def test_a_text_is_looked_at_only_where_an_arm_fetches(route: Route) -> None:
    fetching = {one.name for one in (route.control, route.candidate, route.fallback) if one} - {
        one.name
        for one in (route.control, route.candidate, route.fallback)
        if one and not one.fetches_from_text
    }
    assert has_fetching_arm(route) == bool(fetching)
