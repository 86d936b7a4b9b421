"""The record of a rollout beside its status: the evidence ledger and the written report, from their ConfigMaps."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import ValidationError

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_cli import invalid
from cutover_cli.kubectl import CONFIG_MAPS, Kubectl, KubectlError
from cutover_cli.rollout_view import status_of
from cutover_operator.evidence.ledger import Ledger, LedgerError
from cutover_operator.evidence.ledger_map import from_config_map, ledger_name
from cutover_operator.rollout import report_map
from cutover_operator.rollout.report import write_report

Object = dict[str, Any]


def evidence_of(kubectl: Kubectl, obj: Object) -> tuple[Ledger | None, str]:
    """The ledger as of its last checkpoint, or none with the reason; no reason when there is nothing to read yet."""
    meta, name = obj["metadata"], ledger_name(obj["metadata"]["name"])
    try:
        found = kubectl.find(CONFIG_MAPS, name, meta.get("namespace"))
        ledger = from_config_map(found, str(meta.get("uid", "")))
    except KubectlError as error:
        return None, f"ConfigMap {name} may not be read: {error}"
    except LedgerError as error:
        return None, f"ConfigMap {name} holds no ledger: {error}"
    wanted = status_of(obj).ledger is not None
    return ledger, f"ConfigMap {name} is gone" if ledger is None and wanted else ""


def written_report(kubectl: Kubectl, obj: Object) -> str:
    """What the operator wrote about the present end; empty when it has not, or when it may not be read."""
    meta, status = obj["metadata"], status_of(obj)
    if status.finish is None:
        return ""
    try:
        found = kubectl.find(CONFIG_MAPS, report_map.report_name(meta["name"]), meta.get("namespace"))
    except KubectlError:
        return ""
    if found is None or not report_map.belongs_to(found, str(meta.get("uid", ""))):
        return ""
    return report_map.text_of(found) if report_map.is_about(found, status) else ""


def fresh_report(obj: Object, ledger: Ledger | None, now: datetime) -> str:
    """The report as the operator would write it now. Raises KubectlError when the spec is of another version."""
    meta = obj["metadata"]
    wire = obj.get("spec") or {}
    try:
        spec = ModelRolloutSpec.model_validate(wire)
    except ValidationError as error:
        raise KubectlError(
            f"the spec of {meta['name']} is not one this version knows: {invalid.told(error, wire)}; if the operator reads "
            "it, update kubectl-cutover"
        ) from None
    as_of = datetime.fromtimestamp(ledger.written_at, now.tzinfo) if ledger and ledger.written_at else now
    return write_report(meta["name"], meta.get("namespace", ""), spec, status_of(obj), ledger, as_of)
