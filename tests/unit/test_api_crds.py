"""The CRDs are what the models say: generated, bounded, structural, with the defaults the models have."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutover.api import crdgen
from cutover.api.base import to_seconds
from cutover.api.modelrollout import ENGINE_FAMILIES, Control, Engine, Gate, GateStatus, ModelRollout
from cutover.api.rules import RULES
from cutover.api.trainingrun import Family, Progress, TrainingRun

ROOT = Path(__file__).resolve().parents[2]
KINDS = (TrainingRun, ModelRollout)
Node = dict[str, Any]


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """This schema node and every one below it, with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from walk(node[key], f"{path}[]")


@cache
def schema(kind: crdgen.Kind) -> Node:
    return crdgen.schema(kind)


def nodes(kind: crdgen.Kind) -> list[tuple[str, Node]]:
    properties = schema(kind)["properties"]
    return [pair for part in ("spec", "status") for pair in walk(properties[part], part)]


def test_committed_files_are_the_generated_ones() -> None:
    assert crdgen.main([str(ROOT / "crds"), "--check"]) == 0


def test_check_notices_a_changed_and_a_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "crds/trainingruns.yaml", tmp_path)
    (tmp_path / "trainingruns.yaml").open("a").write("#\n")
    assert crdgen.main([str(tmp_path), "--check"]) == 1
    assert "trainingruns.yaml, modelrollouts.yaml" in capsys.readouterr().err
    assert crdgen.main([str(tmp_path)]) == 0
    assert crdgen.main([str(tmp_path), "--check"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_list_map_number_and_string_is_bounded(kind: crdgen.Kind) -> None:
    unbounded = []
    for path, node in nodes(kind):
        needed: tuple[str, ...] = ()
        if node.get("x-kubernetes-int-or-string"):
            needed = ("minimum", "maximum", "maxLength")
        elif node["type"] == "string" and "enum" not in node:
            needed = ("maxLength",)
        elif node["type"] in ("integer", "number"):
            needed = ("minimum", "maximum")
        elif node["type"] == "array":
            needed = ("maxItems",)
        elif node["type"] == "object" and "properties" not in node:
            needed = ("maxProperties", "additionalProperties")
        unbounded += [f"{path}: {bound}" for bound in needed if bound not in node]
    assert unbounded == []


@pytest.mark.parametrize("kind", KINDS)
def test_schema_is_structural(kind: crdgen.Kind) -> None:
    refused = {"$ref", "$defs", "title", "const", "oneOf", "allOf", "uniqueItems", "nullable", "examples"}
    for path, node in nodes(kind):
        assert not refused & set(node), path
        assert ("type" in node) != ("x-kubernetes-int-or-string" in node), path
        assert not ("properties" in node and "additionalProperties" in node), path
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] in ("atomic", "set", "map"), path
            for key in node.get("x-kubernetes-list-map-keys", []):
                assert key in node["items"]["required"], f"{path}: a map key is not required"
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert node.get(bound, True) is True, path


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_spec_is_explained(kind: crdgen.Kind) -> None:
    silent = [
        path
        for path, node in nodes(kind)
        if path.startswith("spec") and not path.endswith("[]") and not node.get("description")
    ]
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_rules_speak(kind: crdgen.Kind) -> None:
    """Each rule has a message short enough to read and blames a field that exists."""
    for path, node in nodes(kind):
        for rule in node.get("x-kubernetes-validations", []):
            assert 20 < len(rule["message"]) <= 260, path
            assert "\n" not in rule["message"]
            inner = node
            for part in rule.get("fieldPath", "").split(".")[1:]:
                inner = inner["properties"][part]


def test_columns_read_fields_that_exist() -> None:
    for kind in KINDS:
        status = schema(kind)["properties"]["status"]["properties"]
        for name, type_, path in crdgen.COLUMNS[kind.kind_name]:
            if path.startswith(".status."):
                assert status[path.removeprefix(".status.")]["type"] == type_, name


def test_server_defaults_are_the_models_defaults() -> None:
    """What the server fills into a minimal object reads back as what the model fills in by itself."""
    for kind, spec in MINIMAL.items():
        filled = with_defaults(schema(kind)["properties"]["spec"], spec)
        assert kind.from_object({"spec": filled}) == kind.from_object({"spec": spec})
    spec = with_defaults(schema(ModelRollout)["properties"]["spec"], MINIMAL[ModelRollout])
    assert spec["control"] == {"promoted": True}
    assert spec["serving"]["engine"] == "vllm"
    assert spec["analysis"]["labels"]["deadline"] == "24h"
    spec = with_defaults(schema(TrainingRun)["properties"]["spec"], MINIMAL[TrainingRun])
    assert spec["fineTune"]["learningRate"] == 2e-4
    assert spec["dataset"]["quality"]["minExamples"] == 10_000
    assert spec["compute"]["gpuHourBudget"] == 50


def test_a_status_has_no_defaults() -> None:
    for kind in KINDS:
        assert not [path for path, node in nodes(kind) if path.startswith("status") and "default" in node]


MINIMAL: dict[crdgen.Kind, Node] = {
    kind: yaml.safe_load((ROOT / "examples/building-damage" / file).read_text())["spec"]
    for kind, file in ((TrainingRun, "trainingrun.yaml"), (ModelRollout, "modelrollout.yaml"))
}


def with_defaults(node: Node, value: Any) -> Any:
    """Defaulting as the API server does it: top down, into the defaults as well."""
    if isinstance(value, dict) and "properties" in node:
        for name, child in node["properties"].items():
            if name not in value and "default" in child:
                value = {**value, name: child["default"]}
        return {name: with_defaults(node["properties"][name], item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_defaults(node["items"], item) for item in value]
    return value


# ------------------------------------------------------------ whatever the server admits, the models read
def values(node: Node) -> st.SearchStrategy[Any]:
    """Values a structural schema admits."""
    if node.get("x-kubernetes-int-or-string"):
        return st.integers(0, 10**6) | st.sampled_from(["1", "500m", "16Gi", "1.5", "2e3"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    match node["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(node["minimum"], node["maximum"])
        case "number":
            return st.floats(
                node["minimum"],
                node["maximum"],
                exclude_min="exclusiveMinimum" in node,
                exclude_max="exclusiveMaximum" in node,
            )
        case "string":
            least, most = node.get("minLength", 0), node["maxLength"]
            if "pattern" not in node:
                return st.text(st.characters(codec="utf-8"), min_size=least, max_size=min(most, 20))
            return st.from_regex(re.compile(node["pattern"], re.ASCII), fullmatch=True).filter(
                lambda text: least <= len(text) <= most and "\n" not in text
            )
        case "array":
            return st.lists(
                values(node["items"]), min_size=node.get("minItems", 0), max_size=min(node["maxItems"], 3)
            )
    if "additionalProperties" in node:
        return st.dictionaries(
            st.text(max_size=8), values(node["additionalProperties"]), max_size=min(node["maxProperties"], 2)
        )
    required = set(node.get("required", []))
    fields = {name: values(child) for name, child in node["properties"].items()}
    return st.fixed_dictionaries(
        {name: value for name, value in fields.items() if name in required},
        optional={name: value for name, value in fields.items() if name not in required},
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_the_schema_admits_the_models_read_and_write_alike(
    kind: crdgen.Kind, data: st.DataObject
) -> None:
    properties = schema(kind)["properties"]
    obj = {part: data.draw(values(properties[part])) for part in ("spec", "status")}
    read = kind.from_object(obj)
    assert kind.from_object(read.to_wire()) == read


# ------------------------------------------------------------ the models' own promises
def test_durations_are_read_in_seconds() -> None:
    assert to_seconds("1h30m") == 5400
    assert to_seconds("1w") == 7 * 86400
    assert to_seconds("0.5s") == 0.5
    with pytest.raises(ValueError, match="7d or 2w"):
        to_seconds("5")


def test_a_status_is_never_refused_for_a_long_sentence_or_a_wild_number() -> None:
    gate = GateStatus(name="cost", verdict="fail", message="x" * 5000, log_e_fail=float("inf"))
    assert len(gate.message) == 4096
    assert gate.message.endswith("…")
    assert gate.log_e_fail == 1e12
    assert Progress(loss=float("nan")).loss is None


def test_gate_names() -> None:
    assert Gate(metric="accuracy", field="damageType", limit=0.9).full_name == "accuracy-damagetype"
    assert Gate(metric="accuracy", field="damage_Type", limit=0.9).full_name == "accuracy-damage-type"
    assert Gate(metric="accuracy", field="overall", limit=0.9).full_name == "accuracy"
    assert Gate(metric="errorRate", limit=0.05).full_name == "errorrate"
    assert Gate(metric="errorRate", name="errors", limit=0.05).full_name == "errors"


def test_control_defaults_to_the_promoted_model_only_when_nothing_is_said() -> None:
    assert ModelRollout.from_object({"spec": MINIMAL[ModelRollout]}).spec.control == Control(promoted=True)
    assert Control(provider="gpt-4").promoted is False


def test_tables_are_complete() -> None:
    assert set(ENGINE_FAMILIES) == set(get_args(Engine))
    assert {family for served in ENGINE_FAMILIES.values() for family in served} == set(get_args(Family))
    seen = "".join(str(schema(kind)) for kind in KINDS)
    for rules in RULES.values():
        for rule in rules:
            assert repr(rule.message)[1:-1] in seen, f"no kind uses: {rule.message}"


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_is_a_word_that_yaml_reads_as_a_boolean(kind: crdgen.Kind) -> None:
    """kubectl reads YAML 1.1: a bare key `on` or `n` reaches the API server as "true" or "false"."""
    names = {path.rsplit(".", 1)[-1].removesuffix("[]").lower() for path, _ in nodes(kind)}
    assert names.isdisjoint({"y", "n", "yes", "no", "on", "off", "true", "false"})
