"""The vocabulary both kinds share: camelCase models that refuse unknown keys, conditions, durations, references.

Pure data. Nothing here reads a clock, a file or a cluster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from cutover.api.cel import Rule, seconds

GROUP = "cutover.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "cutover-operator"

_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d|w))+")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def to_seconds(duration: str) -> float:
    """Read a duration such as ``90s``, ``1h30m``, ``7d`` or ``2w`` as seconds.

    Raises ValueError naming the value when it is not one.
    """
    if not _DURATION.fullmatch(duration):
        raise ValueError(f"{duration!r} is not a duration; write for example 30s, 10m, 1h30m, 7d or 2w")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(duration))


class ApiModel(BaseModel):
    """A part of a custom resource: camelCase on the wire, unknown keys refused, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """The JSON object the API server stores: camelCase, no absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """A part of a status. Unknown keys are ignored, so that an older operator can read a newer one's status."""

    model_config = ConfigDict(extra="ignore")


Duration = Annotated[str, Field(max_length=32, pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d|w))+$")]


def between(least: str, most: str) -> FieldInfo:
    """Bounds of a Duration field, checked by the API server."""
    rule = Rule(
        f"[{seconds('self')}].all(t, t >= {to_seconds(least)} && t <= {to_seconds(most)})",
        f"must be a duration from {least} to {most}, for example 30s, 10m, 1h30m or 7d",
    )
    extra: Any = {"x-kubernetes-validations": [rule.to_wire()]}
    field: FieldInfo = Field(json_schema_extra=extra)
    return field


def _cut(limit: int) -> Callable[[Any], Any]:
    return lambda value: f"{value[: limit - 1]}…" if isinstance(value, str) and len(value) > limit else value


def _tame(value: Any) -> Any:
    """What JSON can not say (NaN) becomes nothing, what no schema should hold is clamped."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else min(max(value, -MEASURED_LIMIT), MEASURED_LIMIT)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


MEASURED_LIMIT = 1e12
COUNT_LIMIT = 2**53 - 1

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
ShortName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Uri = Annotated[str, Field(min_length=3, max_length=2048)]
Label = Annotated[str, Field(max_length=316)]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Quantity = Annotated[
    str,
    Field(
        max_length=32,
        pattern=r"^(([0-9]+(\.[0-9]*)?|\.[0-9]+)((Ki|Mi|Gi|Ti|Pi|Ei)|(m|k|M|G|T|P|E)|([eE][0-9]+))?)?$",
        json_schema_extra={"x-kubernetes-int-or-string": True, "minimum": 0, "maximum": COUNT_LIMIT},
    ),
    BeforeValidator(_as_text),
]
"""A resource quantity, 500m or 16Gi; a bare integer is read as well."""

# What the operator writes: a status is never refused because of a long sentence or a wild number.
Text = Annotated[str, Field(max_length=4096), BeforeValidator(_cut(4096))]
Count = Annotated[int, Field(ge=0, le=COUNT_LIMIT)]
Measured = Annotated[
    Annotated[float, Field(ge=-MEASURED_LIMIT, le=MEASURED_LIMIT)] | None, BeforeValidator(_tame)
]
Timestamp = Annotated[str, Field(max_length=40)]


class SecretKeyRef(ApiModel):
    """One key of a Secret in the same namespace."""

    name: Name
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "token"
    """Key in the Secret."""


class ClaimRef(ApiModel):
    """A folder on a PersistentVolumeClaim in the same namespace."""

    name: Name
    """Name of the PersistentVolumeClaim."""
    path: Annotated[str, Field(max_length=1024, pattern=r"^([^/].*)?$")] = ""
    """Path inside the claim, relative, without a leading slash."""


class TaskRef(ApiModel):
    """The task document (prompt, answer schema, classes) as a ConfigMap in the same namespace."""

    config_map: Name
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "task.yaml"
    """Key in the ConfigMap."""


class Toleration(ApiModel):
    """A toleration of the pods, as Kubernetes writes it."""

    key: Label | None = None
    """Taint key; none with operator Exists means every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the taint is compared."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; none means every effect."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31536000)] | None = None
    """How long a NoExecute taint is tolerated."""


NodeSelector = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)]
ResourceMap = Annotated[dict[str, Quantity], Field(max_length=16)]


class Resources(ApiModel):
    """Container resources as Kubernetes writes them."""

    requests: ResourceMap = Field(default_factory=dict)
    """What the scheduler reserves."""
    limits: ResourceMap = Field(default_factory=dict)
    """What the container may use at most; GPUs stand here, for example `nvidia.com/gpu: 1`."""


ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(StatusModel):
    """A standard condition; `lastTransitionTime` moves only when `status` does."""

    type: Annotated[str, Field(max_length=316)]
    status: ConditionStatus
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    message: Annotated[str, Field(max_length=32768), BeforeValidator(_cut(32768))] = ""
    observed_generation: Count = 0
    last_transition_time: Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
