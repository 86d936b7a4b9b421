"""A CEL rule as the API server runs it (`x-kubernetes-validations`), and the pieces rules are built from.

Pure text. Rules use nothing newer than Kubernetes 1.30: no two-variable comprehensions, no bindings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["FieldValueInvalid", "FieldValueForbidden"]
"""The API server drops the message of FieldValueDuplicate."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`expression` must hold for `self`; `message` names the field and the remedy."""

    expression: str
    message: str
    field: str = ""
    """JSON path of the child to blame, for example `.limit`; empty blames `self`."""
    reason: Reason = "FieldValueInvalid"
    message_expression: str = ""
    """CEL that computes a better message; `message` stands in when it fails."""

    def to_wire(self) -> dict[str, str]:
        wire = {"rule": self.expression, "message": self.message}
        if self.message_expression:
            wire["messageExpression"] = self.message_expression
        if self.field:
            wire["fieldPath"] = self.field
        if self.reason != "FieldValueInvalid":
            wire["reason"] = self.reason
        return wire


def one_of(fields: tuple[str, ...], message: str) -> Rule:
    """Exactly one of the optional fields is there."""
    count = " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)
    return Rule(f"{count} == 1", message)


def seconds(duration: str) -> str:
    """CEL for the seconds in a duration string that already matches the pattern (CEL's own knows no days)."""
    units = (
        ("ms", "0.001"),
        ("s", "1.0"),
        ("m", "60.0"),
        ("h", "3600.0"),
        ("d", "86400.0"),
        ("w", "604800.0"),
    )
    value = "0.0"
    for unit, factor in reversed(units):
        value = f"p.endsWith('{unit}') ? double(p.replace('{unit}', '')) * {factor} : {value}"
    return f"{duration}.findAll('[0-9.]+[a-z]+').map(p, {value}).sum()"


def unchanged(path: str, message: str) -> Rule:
    """A transition rule: an optional field of `self` keeps its value, its absence included."""
    return Rule(
        f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || self.{path} == oldSelf.{path})",
        message,
        field=f".{path}",
        reason="FieldValueForbidden",
    )
