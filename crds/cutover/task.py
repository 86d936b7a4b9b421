"""The task as data: prompt, answer schema, classes; and how an answer is read and scored.

Pure: text in, values out. Building damage is one task document among others; nothing here knows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from cutover.contract import FIELD_OVERALL


class Task(BaseModel):
    """A task document, `task.yaml`."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    system_prompt: Annotated[str, Field(max_length=8192)]
    user_prompt: Annotated[str, Field(max_length=8192)]
    answer_schema: dict[str, Any]
    """JSON Schema (2020-12) of the answer: an object."""
    scored_fields: Annotated[list[str], Field(min_length=1, max_length=16)]
    """Top-level answer fields compared with human labels, each an enum; the first one decides (confidence, strata)."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=4096)] = 256

    @model_validator(mode="after")
    def _scored_fields_are_enums(self) -> Task:
        properties = self.answer_schema.get("properties", {})
        for field in self.scored_fields:
            if not isinstance(properties.get(field, {}).get("enum"), list):
                raise ValueError(f"scoredFields: {field!r} must be a property of answerSchema with an enum")
        return self

    @property
    def decisive_field(self) -> str:
        return self.scored_fields[0]

    def classes(self, field: str) -> list[str]:
        """Allowed values of a scored field, in the schema's order."""
        return [str(value) for value in self.answer_schema["properties"][field]["enum"]]

    def to_wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An answer that is not a JSON object; `reason` is fit for a log line and holds no answer text."""

    reason: str


def read_answer(text: str) -> dict[str, Any] | Unreadable:
    """The JSON object in a model's text. A surrounding Markdown fence is tolerated, other prose is not."""
    body = text.strip()
    if body.startswith("```"):
        body = body.split("\n", 1)[1] if "\n" in body else ""
        body = body.rsplit("```", 1)[0].strip()
    try:
        value = json.loads(body)
    except json.JSONDecodeError as error:
        return Unreadable(f"not JSON: {error.msg} at character {error.pos}")
    except RecursionError:
        return Unreadable("not JSON: nested too deeply")
    except ValueError:
        return Unreadable("not JSON: a number with too many digits")
    if not isinstance(value, dict):
        return Unreadable(f"a JSON {type(value).__name__}, not an object")
    return value


def score(task: Task, answer: Mapping[str, Any] | None, truth: Mapping[str, Any]) -> dict[str, bool]:
    """Which scored fields are right, for those the label names; `overall` when the label names them all.

    No answer is wrong in every field.
    """
    labelled = [field for field in task.scored_fields if field in truth]
    right = {field: answer is not None and answer.get(field) == truth[field] for field in labelled}
    if len(labelled) == len(task.scored_fields):
        right[FIELD_OVERALL] = all(right.values())
    return right
