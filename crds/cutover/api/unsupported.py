"""What the API already names and this version does not do yet: refused, never silently ignored.

One line each. Lifting one is deleting its line and running `make crds`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutover.api.base import ApiModel
from cutover.api.cel import Rule
from cutover.api.trainingrun import Compute


@dataclass(frozen=True, slots=True)
class Unsupported:
    model: type[ApiModel]
    field: str
    """camelCase name of the field in `model`."""
    unused: str
    """CEL over `self`: the field is not used."""
    what: str
    """How the user knows it."""
    remedy: str = "remove it"

    def rule(self) -> Rule:
        return Rule(
            self.unused,
            f"{self.what} is not supported by this version; {self.remedy}",
            field=f".{self.field}",
            reason="FieldValueForbidden",
        )


UNSUPPORTED: tuple[Unsupported, ...] = (
    Unsupported(Compute, "nodes", "self.nodes == 1", "spec.compute.nodes above 1", "set 1 or remove it"),
)
