"""The field-by-field page of the docs, made from the models so that it cannot go stale.

    python -m cutover.api.reference [--check] docs/resources.md

The page's hand-written parts stay: only what stands between the markers is made anew.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cutover.api.modelrollout import ModelRolloutSpec, ModelRolloutStatus
from cutover.api.trainingrun import TrainingRunSpec, TrainingRunStatus

SECTIONS: dict[str, type[BaseModel]] = {
    "trainingrun-spec": TrainingRunSpec,
    "trainingrun-status": TrainingRunStatus,
    "modelrollout-spec": ModelRolloutSpec,
    "modelrollout-status": ModelRolloutStatus,
}


def _strip(annotation: Any) -> Any:
    """The type without Annotated and without None."""
    while hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        kept = [_strip(part) for part in get_args(annotation) if part is not type(None)]
        return kept[0] if len(kept) == 1 else Union[tuple(kept)]  # noqa: UP007 - built at run time
    return annotation


def _inner_model(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model behind a field, and how the path goes on: '.' for an object, '[].' for a list of them, '.<name>.' for a map."""
    plain = _strip(annotation)
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        return plain, "."
    if get_origin(plain) in (list, tuple):
        inner = _strip(get_args(plain)[0])
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner, "[]."
    if get_origin(plain) is dict:
        inner = _strip(get_args(plain)[1])
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner, ".<name>."
    return None, ""


def _type_text(annotation: Any) -> str:
    plain = _strip(annotation)
    origin = get_origin(plain)
    if origin is Literal:
        return " \\| ".join(str(value) for value in get_args(plain))
    if origin in (Union, types.UnionType):
        return " \\| ".join(_type_text(part) for part in get_args(plain))
    if origin in (list, tuple):
        return f"list of {_type_text(get_args(plain)[0])}"
    if origin is dict:
        return f"map to {_type_text(get_args(plain)[1])}"
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(plain, "object" if isinstance(plain, type) else str(plain))


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, (list, tuple)):
        return "`" + ", ".join(str(value) for value in default) + "`" if default else ""
    if isinstance(default, (dict, str)) and not default:
        return ""
    return f"`{default}`"


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(path, type, default, meaning) of every field, objects before their parts."""
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        inner, link = _inner_model(field.annotation)
        meaning = " ".join((field.description or (inner.__doc__ if inner else "") or "").split())
        yield path, _type_text(field.annotation), _default_text(field), meaning.replace("|", "\\|")
        if inner is not None:
            yield from rows(inner, path + link)


def table(model: type[BaseModel]) -> str:
    """A Markdown table of a model."""
    lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{path}` | {kind} | {default} | {meaning} |" for path, kind, default, meaning in rows(model)
    ]
    return "\n".join(lines)


def render(page: str) -> str:
    """The page with every marked part made anew. Raises ValueError when a marker is missing."""
    for section, model in SECTIONS.items():
        start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
        if start not in page or end not in page:
            raise ValueError(f"marker {start} or {end} is missing")
        head, rest = page.split(start, 1)
        page = f"{head}{start}\n{table(model)}\n{end}{rest.split(end, 1)[1]}"
    return page


def main(arguments: list[str]) -> int:
    """Write the page, or with --check say whether it is current."""
    check = "--check" in arguments
    path = Path(next(argument for argument in arguments if not argument.startswith("--")))
    page = path.read_text()
    made = render(page)
    if check:
        return 0 if made == page else 1
    path.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
