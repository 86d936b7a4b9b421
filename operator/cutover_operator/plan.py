"""What a decision asks for: frozen values, carried out in one order by the loop.

before (evidence checkpoint) -> status (compare-and-swap) -> after (children, route) -> events. Each is idempotent,
so a crash between any two changes nothing in the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cutover_operator.port import Object, Resource


@dataclass(frozen=True, slots=True)
class Key:
    """A parent object."""

    resource: Resource
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.resource.kind}/{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Apply:
    """Make an object so (server-side apply)."""

    obj: Object
    vital: bool = True
    """False: that the API server refuses it is said in an event, and no reason to fail the pass."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Create (no resourceVersion) or replace by compare-and-swap. A conflict drops the pass."""

    obj: Object


@dataclass(frozen=True, slots=True)
class Delete:
    resource: Resource
    namespace: str
    name: str
    uid: str | None = None


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Add or remove the operator's own finalizer on the parent."""

    present: bool


Action = Apply | Swap | Delete | SetFinalizer


@dataclass(frozen=True, slots=True)
class Notice:
    """An event; repeated ones are aggregated under a name made of uid, reason and `about`."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"
    about: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """`status` is whole, or None to leave it alone; `again_in_seconds` asks for another pass."""

    status: dict[str, Any] | None = None
    before: tuple[Action, ...] = ()
    after: tuple[Action, ...] = ()
    notices: tuple[Notice, ...] = ()
    again_in_seconds: float | None = None
    routine: bool = False
    """Figures and a checkpoint only: nothing follows from what is written, so seeing it again asks for no pass."""

    def leaves_alone(self, parent: Object) -> bool:
        """Nothing would be written for this parent as it was read."""
        same = self.status is None or self.status == parent.get("status")
        return same and not (self.before or self.after or self.notices)
