"""The ledger's ConfigMap: which name, how it is written and read. Pure."""

from __future__ import annotations

from typing import Any

from cutover_operator.evidence.ledger import LEDGER_KEY, Ledger, LedgerError
from cutover_operator.rollout.resources import Owner, owned_metadata

SIZE_LIMIT_BYTES = 900_000


def ledger_name(rollout: str) -> str:
    return f"{rollout[:240]}-evidence"


def to_config_map(ledger: Ledger, owner: Owner, current: dict[str, Any] | None) -> dict[str, Any]:
    """The object to swap in: with the version that was read, or without one when there was none."""
    metadata = owned_metadata(owner, ledger_name(owner.name))
    if current is not None:
        metadata["resourceVersion"] = current["metadata"]["resourceVersion"]
        if "uid" in current["metadata"]:
            metadata["uid"] = current["metadata"]["uid"]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {LEDGER_KEY: ledger.to_json()},
    }


def from_config_map(config_map: dict[str, Any] | None, uid: str) -> Ledger | None:
    """The stored ledger; None when there is none or it belongs to an earlier object of this name.

    Raises LedgerError when it cannot be read.
    """
    if config_map is None:
        return None
    text = (config_map.get("data") or {}).get(LEDGER_KEY)
    if not isinstance(text, str):
        raise LedgerError(f"no key {LEDGER_KEY}")
    ledger = Ledger.from_json(text)
    return ledger if ledger.uid == uid else None
