"""What stands in the way of a rollout beside its gates: people's orders, parts that are not well, an operator that does
not look, metrics that are away. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cutover.api.base import Condition, to_seconds
from cutover.api.modelrollout import ModelRolloutStatus
from cutover_cli.layout import age, is_trouble
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.rollout.draft import RUNNING, TOO_LARGE
from cutover_operator.rollout.settle import CHECKPOINT_SECONDS
from cutover_operator.rollout.wording import span

Object = Mapping[str, Any]
CHECKPOINTS_MISSED = 3


@dataclass(frozen=True, slots=True)
class Away:
    """Metrics that cannot be read: since when, and what the spec wants then."""

    since: datetime
    acts_at: datetime
    action: str

    def lines(self, now: datetime) -> list[str]:
        """When the spec's action is due, and what that means for the next decision."""
        since = (
            f"Metrics away since {moment(self.since, now)} (for {span((now - self.since).total_seconds())})"
        )
        due = f"{self.action} {when(self.acts_at, now)} (spec.analysis.onUnavailable)"
        if self.action == "rollback":
            return [f"{since}: {due}, unless they come back before."]
        return [
            f"{since}: {due}.",
            "When the next decision comes cannot be told: nothing is decided until the metrics are back.",
        ]


def away(spec: Object, status: ModelRolloutStatus) -> Away | None:
    """None while metrics are read."""
    if not status.unavailable_since:
        return None
    since = datetime.fromisoformat(status.unavailable_since)
    wanted = (spec.get("analysis") or {}).get("onUnavailable") or {}
    after = timedelta(seconds=seconds(wanted.get("after", "1h")))
    return Away(since, since + after, str(wanted.get("action", "hold")))


def orders(spec: Object) -> list[str]:
    """What people have set."""
    texts = []
    if spec.get("freeze"):
        texts.append("spec.freeze is set: no advance until it is cleared; rollbacks still happen")
    if spec.get("hold"):
        texts.append("spec.hold is set: it stays at this step until a person clears it")
    return texts


def conditions(spec: Object, status: ModelRolloutStatus) -> list[str]:
    """Conditions that are the way nobody wants them."""
    return [
        f"{one.type} is {one.status} ({one.reason}){': ' + one.message if one.message else ''}"
        for one in status.conditions
        # Ready repeats the reason that is said already.
        if is_trouble(one) and one.type != "Ready" and not (one.type == "Held" and spec.get("hold"))
    ]


def unseen(obj: Object, status: ModelRolloutStatus) -> list[str]:
    """What has been ordered of the operator and not been carried out."""
    spec, meta = obj.get("spec") or {}, obj["metadata"]
    texts = []
    request = spec.get("request") or {}
    if request and request.get("id") != status.handled_request:
        texts.append(
            f"request {request.get('id')} ({request.get('action')}) has not been seen by the operator yet"
        )
    return [*texts, *outdated(meta, status)]


def outdated(meta: Object, status: ModelRolloutStatus) -> list[str]:
    """Why the status is not about the object as it is now."""
    texts = []
    generation = int(meta.get("generation") or 0)
    if generation > status.observed_generation:
        texts.append(
            f"metadata.generation is {generation}, the operator has acted on {status.observed_generation}: what follows is "
            "about the spec before the last change; if that lasts, see whether the operator runs"
        )
    if meta.get("deletionTimestamp"):
        texts.append(f"it is being deleted (metadata.deletionTimestamp is {meta['deletionTimestamp']})")
    return texts


def stale(obj: Object, status: ModelRolloutStatus, ledger: Ledger | None, now: datetime) -> list[str]:
    """An operator that looks keeps a checkpoint every five minutes, as long as metrics are read."""
    if ledger is None or not ledger.written_at or obj["metadata"].get("deletionTimestamp"):
        return []
    known = {one.type: one for one in status.conditions}
    if status.phase not in RUNNING and status.finish != "Promoted":
        return []
    if not (_is(known.get("MetricsAvailable"), "True") and _may_be_kept(known)):
        return []
    spec = obj.get("spec") or {}
    pause = seconds((spec.get("analysis") or {}).get("interval", "30s"))
    old = now.timestamp() - ledger.written_at
    if old <= CHECKPOINTS_MISSED * CHECKPOINT_SECONDS + pause:
        return []
    return [
        f"the evidence was kept last {span(old)} ago, though that is due every {span(CHECKPOINT_SECONDS)}: see whether "
        "the operator runs"
    ]


def _may_be_kept(known: Mapping[str, Condition]) -> bool:
    """Lost or too large evidence, or a spec the operator cannot read, is said by its condition."""
    lost, stalled = known.get("EvidenceLost"), known.get("Stalled")
    too_large = lost is not None and lost.reason == TOO_LARGE
    return not (_is(lost, "True") or too_large or _is(stalled, "True"))


def _is(condition: Condition | None, value: str) -> bool:
    return condition is not None and condition.status == value


# ---------------------------------------------------------------- times
def seconds(duration: object) -> float:
    try:
        return to_seconds(str(duration))
    except ValueError:
        return 0.0


def moment(at: datetime, now: datetime) -> str:
    utc = at.astimezone(UTC)
    same_day = utc.date() == now.astimezone(UTC).date()
    return f"{utc:%H:%M} UTC" if same_day else f"{utc:%Y-%m-%d %H:%M} UTC"


def when(at: datetime, now: datetime) -> str:
    """`at 18:29 UTC (in 9m)`, or `since` for what is over."""
    left = (at - now).total_seconds()
    if left >= 1:
        return f"at {moment(at, now)} (in {span(left)})"
    return f"since {moment(at, now)}"


def blind(status: ModelRolloutStatus, now: datetime) -> str:
    """After a promotion: what metrics that are away mean. Empty while they are read."""
    if not status.unavailable_since:
        return ""
    since = datetime.fromisoformat(status.unavailable_since)
    ago = age(status.unavailable_since, now)
    return f"the rollback gates are blind since {moment(since, now)} (for {ago}): no metrics are read"
