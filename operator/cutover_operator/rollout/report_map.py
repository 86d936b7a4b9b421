"""The report's ConfigMap `<rollout>-report`: when it is due, how it is written and read. Pure.

Owned by its rollout like the evidence ledger, and swapped in by compare-and-swap, so that an object of the same name
that belongs to somebody else is never touched.
"""

from __future__ import annotations

from typing import Any

from cutover.api.modelrollout import ModelRolloutStatus
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.rollout.resources import Owner, owned_metadata

REPORT_KEY = "report.md"
OF = "cutover.dev/report-of"
"""Annotation: which end the report is about."""
COUNTED_AT = "cutover.dev/report-counted-at"
"""Annotation: Unix seconds of the checkpoint its numbers stand on."""
REFRESH_SECONDS = 3600.0
"""A promoted rollout is watched for ever; its report follows the checkpoints at most this often."""


def report_name(rollout: str) -> str:
    return f"{rollout[:246]}-report"


def end_of(status: ModelRolloutStatus) -> str:
    """Names the end a report is about; empty while there is none."""
    return f"{status.finish} {status.finished_at or ''}".strip() if status.finish else ""


def is_due(live: dict[str, Any] | None, uid: str, status: ModelRolloutStatus, ledger: Ledger | None) -> bool:
    """Whether the report has to be written (again): it is missing, about an earlier end, or an hour behind."""
    if not status.finish:
        return False
    if live is None:
        return True
    if not belongs_to(live, uid):
        return False
    if not is_about(live, status):
        return True
    counted = _counted_at(live)
    return (
        status.finish == "Promoted" and ledger is not None and ledger.written_at - counted >= REFRESH_SECONDS
    )


def is_about(live: dict[str, Any], status: ModelRolloutStatus) -> bool:
    """Whether a written report is about the present end."""
    annotations = live["metadata"].get("annotations") or {}
    return bool(status.finish) and annotations.get(OF) == end_of(status)


def belongs_to(live: dict[str, Any], uid: str) -> bool:
    owners = live["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid and owner.get("controller") for owner in owners)


def to_config_map(
    text: str, owner: Owner, status: ModelRolloutStatus, ledger: Ledger | None, live: dict[str, Any] | None
) -> dict[str, Any]:
    """The object to swap in: with the version that was read, or without one when there was none."""
    metadata = owned_metadata(owner, report_name(owner.name))
    counted = ledger.written_at if ledger is not None else 0.0
    metadata["annotations"] = {OF: end_of(status), COUNTED_AT: f"{counted:.3f}"}
    if live is not None:
        metadata["resourceVersion"] = live["metadata"]["resourceVersion"]
        metadata["uid"] = live["metadata"]["uid"]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {REPORT_KEY: text}}


def text_of(live: dict[str, Any] | None) -> str:
    return str(((live or {}).get("data") or {}).get(REPORT_KEY, ""))


def _counted_at(live: dict[str, Any]) -> float:
    try:
        return float((live["metadata"].get("annotations") or {}).get(COUNTED_AT, 0.0))
    except ValueError:
        return 0.0
