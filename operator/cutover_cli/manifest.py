"""Reads a ModelRollout from a manifest, as `kubectl apply -f` would get it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cutover.api.base import API_VERSION
from cutover.api.modelrollout import ModelRollout, ModelRolloutSpec
from cutover.contract import FIELD_OVERALL
from cutover.task import Task
from cutover_cli import invalid
from cutover_cli.admission import refusal
from cutover_cli.errors import Refused
from cutover_operator.rollout.gates import mistakes


class ManifestError(Refused):
    """The manifest cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    uid: str
    """Empty unless the manifest was read back from a cluster."""
    spec: ModelRolloutSpec


def read_manifest(path: str, name: str = "") -> Manifest:
    """The one ModelRollout in a file (`-` is standard input), or the one called `name`. Raises ManifestError."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        documents = _unpacked(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ManifestError(f"{path}: {_place(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"not a text in UTF-8: {error}"
        raise ManifestError(f"{path}: {why}") from None
    found = [d for d in documents if d.get("kind") == ModelRollout.kind_name]
    named = [d for d in found if not name or _meta(d).get("name") == name]
    if len(named) != 1:
        listed = ", ".join(str(_meta(d).get("name")) for d in found) or "none"
        remedy = "; choose one with --name" if len(found) > 1 else ""
        raise ManifestError(
            f"{path}: wanted one ModelRollout{f' called {name}' if name else ''}; it has {listed}{remedy}"
        )
    meta, version = _meta(named[0]), named[0].get("apiVersion", API_VERSION)
    if version != API_VERSION:
        raise ManifestError(f"{path}: apiVersion is {version}; this version reads {API_VERSION}")
    called, wire = meta.get("name") or "rollout", named[0].get("spec") or {}
    if not isinstance(called, str):
        raise ManifestError(f"{path}: metadata.name is {called!r}, not a text; put it in quotes")
    try:
        spec = ModelRolloutSpec.model_validate(wire)
    except ValidationError as error:
        raise ManifestError(f"{path}: {invalid.told(error, wire)}") from None
    wrong = mistakes(spec, task_of(spec))
    if wrong is not None:
        raise ManifestError(f"{path}: {wrong[0]}: {wrong[1]}")
    refused = refusal(spec)
    if refused is not None:
        raise ManifestError(f"{path}: {refused}")
    return Manifest(called, str(meta.get("uid") or ""), spec)


def ignored(spec: ModelRolloutSpec) -> list[str]:
    """What people have set to stop a rollout where it stands says nothing about one that is only thought through."""
    said = [f"spec.{name}" for name in ("freeze", "hold") if getattr(spec, name)]
    return [f"{' and '.join(said)} {'are' if said[1:] else 'is'} set and ignored here"] if said else []


def task_of(spec: ModelRolloutSpec) -> Task:
    """A task that scores every field the gates name: the manifest does not say which task its gateway serves."""
    fields = sorted({g.field for g in spec.gates if g.field and g.field != FIELD_OVERALL})[:16] or ["answer"]
    schema = {"type": "object", "properties": {field: {"enum": ["-"]} for field in fields}}
    return Task.model_validate(
        {"name": "any", "systemPrompt": "", "userPrompt": "", "answerSchema": schema, "scoredFields": fields}
    )


def _unpacked(documents: Iterable[Any]) -> list[dict[str, Any]]:
    """The objects in a file; those of a List as well, as `kubectl get -o yaml` writes them."""
    found: list[dict[str, Any]] = []
    for document in documents:
        if not isinstance(document, dict):
            continue
        items = document.get("items")
        if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
            found += _unpacked(items)
        else:
            found.append(document)
    return found


def _place(error: yaml.YAMLError) -> str:
    """What is wrong with the YAML, and in which line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return f"not YAML: {problem}"
    return f"not YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _meta(document: dict[str, Any]) -> dict[str, Any]:
    meta = document.get("metadata")
    return meta if isinstance(meta, dict) else {}
