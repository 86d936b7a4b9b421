"""What a manifest has wrong is said before anything is simulated or replayed, in the API server's words where it has some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cutover.api.modelrollout import ModelRollout, ModelRolloutSpec
from cutover.api.rules import RULES
from cutover_cli.admission import CHECKS, refusal
from cutover_cli.main import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = str(ROOT / "examples/building-damage/modelrollout.yaml")
QUICK = ("--rps", "0.2", "--runs", "12", "--tick", "4h")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: ModelRollout\nspec:\n  a: [\n", "not YAML: line 4, column 1: "),
        (
            "{gatewayRff: main, steps: 5}",
            "spec.gatewayRff: there is no such field; did you mean gatewayRef? (and 4 more",
        ),
        (
            "{gatewayRef: Main, candidate: {}, steps: [{weight: 5}], gates: [{metric: cost}]}",
            'spec.gatewayRef is "Main": ',
        ),
        (
            "{gatewayRef: m, candidate: {}, steps: [{weight: 150}], gates: [{metric: cost}]}",
            "spec.steps.0.weight is 150: ",
        ),
        (
            "{gatewayRef: m, candidate: {}, steps: [{weight: 5, minDuration: 1x}], gates: [{metric: cost}]}",
            'spec.steps.0.minDuration is "1x": not a duration; write for example 30s',
        ),
        (
            "{gatewayRef: m, candidate: {}, steps: [{weight: 5, minDurations: 1h}], gates: [{metric: cost}]}",
            "spec.steps.0.minDurations: there is no such field; did you mean minDuration?",
        ),
    ],
)
def test_a_mistake_in_a_manifest_is_named_with_its_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text(text if "kind" in text else f"kind: ModelRollout\nspec: {text}\n")
    assert main(["simulate", "-f", str(path), "--accuracy", "0.9"]) == 1
    assert said in capsys.readouterr().err


def test_a_list_is_unpacked_and_several_rollouts_are_told_apart_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = yaml.safe_load(Path(EXAMPLE).read_text())
    two = {**one, "metadata": {"name": "second"}}
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [one, two]}))
    words = ["simulate", "-f", str(path), "--accuracy", "0.97", *QUICK]
    assert main(words) == 1
    assert "it has building-damage, second; choose one with --name" in capsys.readouterr().err
    assert main([*words, "--name", "second"]) == 0
    assert capsys.readouterr().out.startswith("second: 12 runs")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"apiVersion": "cutover.dev/v9"},
            "apiVersion is cutover.dev/v9; this version reads cutover.dev/v1alpha1",
        ),
        ({"metadata": {"name": 7}}, "metadata.name is 7, not a text"),
    ],
)
def test_what_is_not_of_this_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(Path(EXAMPLE).read_text()), **change}))
    assert main(["simulate", "-f", str(path), "--accuracy", "0.9"]) == 1
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------- the API server's rules
def spec(**changes: Any) -> dict[str, Any]:
    base = {
        "gatewayRef": "main",
        "candidate": {"trainingRunRef": {"name": "damage"}},
        "steps": [{"shadow": 100}, {"weight": 50}, {"weight": 100}],
        "gates": [{"metric": "accuracy", "limit": 0.9}, {"metric": "errorRate", "limit": 0.05}],
    }
    return {**base, **changes}


def gates(*added: dict[str, Any]) -> dict[str, Any]:
    return {"gates": [{"metric": "accuracy", "limit": 0.9}, *added]}


def model(uri: str = "hf://org/model", engine: str = "vllm", **more: Any) -> dict[str, Any]:
    return {"candidate": {"model": {"uri": uri, "version": "v1", **more}}, "serving": {"engine": engine}}


URL = "https://models.example/v1"
CUSTOM = {"metric": "custom", "name": "appeals", "limit": 0.1, "bad": "bad_total", "total": "all_total"}
EXTERNAL = model(URL, "external")
REFUSED = [
    (model(engine="external"), "spec.candidate: serving.engine external needs candidate.model.uri"),
    (model(URL), "spec.candidate: candidate.model.uri is a URL"),
    (
        model(URL, "external", adapterUri="s3://a/b"),
        "spec.candidate: candidate.model.adapterUri cannot be added",
    ),
    ({**EXTERNAL, "serving": {"engine": "external", "replicas": 2}}, "spec.serving: serving.replicas, image"),
    (model(engine="tgi", family="blip2"), "spec.serving: serving.engine tgi serves"),
    ({"steps": [{"weight": 5}, {"shadow": 100}]}, "spec.steps: steps: shadow steps come before weight steps"),
    ({"steps": [{"weight": 50}, {"weight": 50}]}, "spec.steps: steps: weights must rise strictly"),
    (gates({"metric": "accuracy", "limit": 0.8}), "spec.gates: gates: names must be unique"),
    (
        {"steps": [{"weight": 5, "gates": ["latency"]}]},
        "spec.steps: steps[].gates must name gates of spec.gates",
    ),
    (
        {
            "analysis": {"labels": {"strata": "disagreement"}},
            "gates": [{"metric": "accuracy", "margin": 0.02}],
        },
        "spec.analysis.labels.strata: analysis.labels.strata disagreement draws labels for a limit only",
    ),
    (
        {"fallback": {"autoConfidence": True}, "gates": [{"metric": "errorRate", "limit": 0.05}]},
        "spec.fallback.autoConfidence: fallback.autoConfidence needs exactly one accuracy gate",
    ),
    (
        {"fallback": {"autoConfidence": True}, "analysis": {"labels": {"strata": "disagreement"}}},
        "spec.analysis.labels.strata: fallback.autoConfidence needs labels drawn alike",
    ),
    ({"candidate": {}}, "spec.candidate: candidate needs exactly one of"),
    ({"control": {}}, "spec.control: control needs exactly one of provider and promoted"),
    ({"steps": [{}]}, "spec.steps.0: a step needs exactly one of shadow and weight"),
    (
        {"steps": [{"weight": 5, "minDuration": "2h", "deadline": "1h"}]},
        "spec.steps.0.deadline: deadline of a step must not be before its minDuration",
    ),
    (
        {"steps": [{"weight": 5, "minDuration": "366d"}]},
        "spec.steps.0.minDuration is 366d: must be a duration from 1s",
    ),
    (gates({"metric": "cost"}), "spec.gates.1: a gate needs limit"),
    (
        gates({"metric": "satisfaction", "limit": 0.1, "margin": 0.5}),
        "spec.gates.1.limit: satisfaction is told by those",
    ),
    (
        gates({"metric": "cost", "limit": 1, "margin": 0.5}),
        "spec.gates.1.margin: margin compares with the control",
    ),
    (
        gates({"metric": "latency", "limit": 1.7}),
        "spec.gates.1.limit: limit of a latency gate must be an edge",
    ),
    (
        gates({"metric": "errorRate", "limit": 1}),
        "spec.gates.1.limit: limit of an accuracy, errorRate or custom gate",
    ),
    (gates({"metric": "cost", "limit": 0}), "spec.gates.1.limit: limit of a cost gate is in USD"),
    (gates({"metric": "cost", "limit": 1, "field": "x"}), "spec.gates.1.field: field names an answer field"),
    (gates({**CUSTOM, "name": None}), "spec.gates.1: a gate with metric custom needs name, bad and total"),
    (gates({**CUSTOM, "bad": "rate(bad_total[5m])"}), "spec.gates.1.bad: bad must be a counter by name"),
    (gates({**CUSTOM, "total": "a_total + b_total"}), "spec.gates.1.total: total must be a counter by name"),
    (
        {"fallback": {"autoConfidence": True, "confidence": 0.9}},
        "spec.fallback.autoConfidence: fallback.confidence is a number you choose",
    ),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_the_api_server_refuses_is_refused_in_its_words(changes: dict[str, Any], said: str) -> None:
    assert (refusal(ModelRolloutSpec.model_validate(spec(**changes))) or "").startswith(said)


def test_every_rule_of_the_api_server_has_its_example() -> None:
    for kind, checks in CHECKS.items():
        rules = [rule for rule in RULES[kind] if "oldSelf" not in rule.expression]
        assert len(rules) == len(checks)
        for rule in rules:
            assert any(rule.message.startswith(said.split(": ", 1)[1]) for _, said in REFUSED), rule.message


def test_what_the_api_server_takes_is_taken() -> None:
    taken = [
        spec(),
        spec(**EXTERNAL),
        spec(**gates(CUSTOM)),
        spec(**gates({"metric": "satisfaction", "margin": 0.5})),
    ]
    for path in (ROOT / "examples").rglob("*.yaml"):
        documents = yaml.safe_load_all(path.read_text())
        taken += [
            d["spec"] for d in documents if isinstance(d, dict) and d.get("kind") == ModelRollout.kind_name
        ]
    assert len(taken) >= 6
    for wire in taken:
        assert refusal(ModelRolloutSpec.model_validate(wire)) is None


def test_a_refused_manifest_is_not_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load(Path(EXAMPLE).read_text())
    document["spec"]["steps"] = [{"weight": 50}, {"weight": 10}]
    path = tmp_path / "rollout.yaml"
    path.write_text(yaml.safe_dump(document))
    assert main(["simulate", "-f", str(path), "--accuracy", "0.9"]) == 1
    assert "weights must rise strictly from step to step" in capsys.readouterr().err
