"""Requests that go where chance did not send them, and so are no evidence: counted for no rollout. Pure."""

from __future__ import annotations

from cutover.contract import ROLLOUT_NONE
from cutover.records import ArmName
from cutover.route import LabelSampling, Route


def outside_the_rollout(route: Route) -> Route:
    """The same arms; nothing of what is asked of them is mirrored, labelled or counted for the rollout."""
    return route.model_copy(
        update={"rollout": ROLLOUT_NONE, "shadow_basis_points": 0, "labels": LabelSampling()}
    )


def has_fetching_arm(route: Route) -> bool:
    """Whether an arm opens URLs that it finds in a text."""
    return any(arm.fetches_from_text for arm in (route.control, route.candidate, route.fallback) if arm)


def past_fetching_arms(route: Route, chosen: ArmName, fixed: bool = False) -> tuple[Route, ArmName] | None:
    """The route and the arm of a request whose text such an arm would fetch from; none when nobody may answer it.

    The arm it was assigned to answers if it fetches nothing, else the control, else the fallback in the control's place.
    The candidate answers only those that chance gave it: it may not be meant to answer anybody yet. `fixed` leaves no
    choice. Whoever answers, the request is outside the rollout: of the control alone such requests would be counted,
    and the arms would be compared by different ones.
    """
    control, candidate, fallback = route.control, route.candidate, route.fallback
    assigned = candidate if chosen == "candidate" else control
    if assigned is None or assigned.fetches_from_text:
        if fixed:
            return None
        chosen = "control"
        if control.fetches_from_text:
            if fallback is None or fallback.fetches_from_text:
                return None
            control = fallback
    allowed = {
        "control": control,
        "candidate": None if candidate is None or candidate.fetches_from_text else candidate,
        "fallback": None if fallback is None or fallback.fetches_from_text else fallback,
    }
    return outside_the_rollout(route).model_copy(update=allowed), chosen
