"""What the totals of a rollout say about money and about who answered. Pure: a ledger's totals in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cutover_operator.evidence.ledger import Totals
from cutover_operator.rollout.counts import answered

SAVING_GOAL = 0.5
"""Share of the hosted model's cost per assessment that shall be saved."""
DEPENDENCY_GOAL = 0.5
"""Greatest share of the answers that the hosted model shall still give."""


@dataclass(frozen=True, slots=True)
class Bill:
    """Counted cost in USD of both arms; a request that fell back costs both calls, on the arm that was chosen."""

    candidate_answers: float
    control_answers: float
    candidate_usd: float
    control_usd: float

    @property
    def candidate_each(self) -> float | None:
        return self.candidate_usd / self.candidate_answers if self.candidate_answers else None

    @property
    def control_each(self) -> float | None:
        return self.control_usd / self.control_answers if self.control_answers else None

    @property
    def saved_usd(self) -> float | None:
        """What the candidate's answers would have cost from the control, less what they did cost."""
        if self.control_each is None or not self.candidate_answers:
            return None
        return self.candidate_answers * self.control_each - self.candidate_usd

    @property
    def saved_share(self) -> float | None:
        """Saved per assessment of the candidate, as a share of the control's price; None when that is nothing."""
        if self.candidate_each is None or not self.control_each:
            return None
        return 1.0 - self.candidate_each / self.control_each

    @property
    def saved_share_of_all(self) -> float | None:
        """Saved of what all assessments of both arms would have cost from the control."""
        if self.saved_usd is None or not self.control_each:
            return None
        return self.saved_usd / (self.control_each * (self.candidate_answers + self.control_answers))


@dataclass(frozen=True, slots=True)
class Dependency:
    """Who gave the answers. A request counts once, for the model whose answer the caller got."""

    answers: float
    by_control: float
    deferred: float
    """Candidate answers of low confidence given up for the fallback's."""
    rescued: float
    """Failed candidate answers for which the fallback answered."""
    unanswered: float
    """Failed candidate answers nobody made good."""
    reasons: Mapping[str, float]
    """Fallbacks of the candidate by reason."""

    @property
    def hosted(self) -> float:
        return self.by_control + self.deferred + self.rescued

    @property
    def hosted_share(self) -> float | None:
        return self.hosted / self.answers if self.answers else None

    @property
    def kept_share(self) -> float | None:
        """Share of the requests given to the candidate that it answered itself."""
        given = self.answers - self.by_control
        return (given - self.deferred - self.rescued - self.unanswered) / given if given else None


def bill(totals: Totals) -> Bill:
    return Bill(
        answered(totals, "candidate"),
        answered(totals, "control"),
        totals.get("cost/candidate", 0.0),
        totals.get("cost/control", 0.0),
    )


def dependency(totals: Totals) -> Dependency:
    prefix = "fallbacks/candidate/"
    reasons = {key.removeprefix(prefix): n for key, n in totals.items() if key.startswith(prefix) and n > 0}
    errors = totals.get("requests/candidate/error", 0.0)
    rescued = min(errors, sum(n for reason, n in reasons.items() if reason != "confidence"))
    control = answered(totals, "control")
    return Dependency(
        answers=answered(totals, "candidate") + control,
        by_control=control,
        deferred=totals.get("requests/candidate/deferred", 0.0),
        rescued=rescued,
        unanswered=errors - rescued,
        reasons=reasons,
    )


def is_hosted(arm: Mapping[str, Any] | None) -> bool:
    """Whether an arm as it stands in the route is paid per token or request: a model of somebody else."""
    return str(((arm or {}).get("price") or {}).get("kind", "tokens")) == "tokens"
