"""What a spec that cannot be read has wrong, in a sentence: the field, the value, what would be right. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cutover.api.modelrollout import ModelRolloutSpec

VALUE_LENGTH = 60
DURATION = "not a duration; write for example 30s, 10m, 1h30m or 7d"
EXPLAIN = "kubectl explain modelrollout"


def told(error: ValidationError, value: Any) -> str:
    """The first mistake and how many more there are. A misspelt name comes first: it is why another one is missing."""
    errors = error.errors(include_url=False, include_input=False)
    first = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    loc = first["loc"]
    path = ".".join(["spec", *(str(part) for part in loc)])
    if first["type"] == "extra_forbidden":
        said = f"{path}: there is no such field{_meant(loc)}"
    elif first["type"] == "missing":
        said = f"{path}: the field is required; {EXPLAIN}.{_without_numbers(path)} says what belongs there"
    else:
        said = (
            f"{path} is {_shown(value, loc)}: {DURATION if 'ms|s|m|h|d|w' in first['msg'] else first['msg']}"
        )
    more = len(errors) - 1
    return f"{said} (and {more} more {'mistake' if more == 1 else 'mistakes'})" if more else said


def _meant(loc: tuple[int | str, ...]) -> str:
    known = _fields(loc[:-1])
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(known)}" if known else ""


def _fields(loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields at a place of the spec."""
    schema = ModelRolloutSpec.model_json_schema(by_alias=True)
    node: Mapping[str, Any] = schema
    for part in loc:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        for choice in node.get("anyOf", []):
            if choice.get("type") != "null":
                node = choice
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return sorted(node.get("properties", {}))


def _without_numbers(path: str) -> str:
    return ".".join(part for part in path.split(".") if not part.isdigit())


def _shown(value: Any, loc: tuple[int | str, ...]) -> str:
    """The value at a place, as it stands in the manifest."""
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            break
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]}…"
