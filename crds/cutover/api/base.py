"""The vocabulary both kinds share: camelCase models that refuse unknown keys, conditions, durations, references.

Pure data. Nothing here reads a clock, a file or a cluster.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "cutover.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "cutover-operator"

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+")
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


Duration = Annotated[
    str,
    Field(max_length=32, pattern=r"^(\d+(\.\d+)?(ms|s|m|h|d|w))+$", examples=["30s", "10m", "7d"]),
]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
ShortName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Uri = Annotated[str, Field(min_length=3, max_length=2048)]
Text = Annotated[str, Field(max_length=4096)]
Label = Annotated[str, Field(max_length=316)]


class SecretKeyRef(ApiModel):
    """One key of a Secret in the same namespace."""

    name: Name
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "token"


class ClaimRef(ApiModel):
    """A folder on a PersistentVolumeClaim in the same namespace."""

    name: Name
    path: Annotated[str, Field(max_length=1024, pattern=r"^[^/].*$|^$")] = ""
    """Path inside the claim, relative, without a leading slash."""


class TaskRef(ApiModel):
    """The task document (prompt, answer schema, classes) as a ConfigMap in the same namespace."""

    config_map: Name
    key: Annotated[str, Field(min_length=1, max_length=253)] = "task.yaml"


class Toleration(ApiModel):
    key: Label | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Annotated[str, Field(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0, le=31536000)] | None = None


NodeSelector = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)]
ResourceMap = Annotated[dict[str, Annotated[str, Field(max_length=32)]], Field(max_length=16)]


class Resources(ApiModel):
    """Container resources as Kubernetes writes them."""

    requests: ResourceMap = Field(default_factory=dict)
    limits: ResourceMap = Field(default_factory=dict)


ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(StatusModel):
    """A standard condition; `lastTransitionTime` moves only when `status` does."""

    type: Annotated[str, Field(max_length=316)]
    status: ConditionStatus
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    message: Annotated[str, Field(max_length=32768)] = ""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    last_transition_time: Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
