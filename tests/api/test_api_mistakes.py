"""Mistakes a user makes in a manifest, each refused by a real API server with the field and the remedy in the answer;
and the manifests that are right, which come back as they were sent."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.api import Api, ApiError
from cluster.controlplane import ControlPlane
from cutover.api import crdgen
from cutover.api.base import API_VERSION
from cutover.api.modelrollout import Gate, ModelRollout
from cutover.api.trainingrun import TrainingRun

pytestmark = pytest.mark.api
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/building-damage"
CRDS = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with ControlPlane(tmp_path_factory.mktemp("plane")) as plane:
        client = Api(plane.kubeconfig)
        for kind in (TrainingRun, ModelRollout):
            client.call("POST", CRDS, yaml.safe_load((ROOT / f"crds/{kind.plural}.yaml").read_text()))
        for kind in (TrainingRun, ModelRollout):
            _until_served(client, kind.plural)
        yield client


def _until_served(client: Api, plural: str) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            client.get(f"apis/{API_VERSION}/{plural}")
            return
        except ApiError as error:
            if error.status != 404 or time.monotonic() > end:
                raise
            time.sleep(0.05)


def path_of(obj: Json, name: bool = False) -> str:
    plural = {"TrainingRun": "trainingruns", "ModelRollout": "modelrollouts"}[obj["kind"]]
    path = f"apis/{API_VERSION}/namespaces/default/{plural}"
    return f"{path}/{obj['metadata']['name']}" if name else path


def refusal(client: Api, method: str, obj: Json, name: bool = False) -> str:
    """The API server's sentence when it refuses, else nothing."""
    try:
        client.call(method, f"{path_of(obj, name)}?dryRun=All&fieldValidation=Strict", obj)
    except ApiError as error:
        if error.status not in (400, 422):
            raise
        return str(error).replace('\\"', '"').replace("\\u003e", ">")
    return ""


def example(file: str, kind: str) -> Json:
    documents = yaml.safe_load_all((EXAMPLES / file).read_text())
    return next(document for document in documents if document["kind"] == kind)


REMOVE = object()


def changed(obj: Json, changes: Json) -> Json:
    """A copy with the values at dotted paths set or removed; a number is a position in a list."""
    obj = copy.deepcopy(obj)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        inner: Any = obj
        for part in parents:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part]
        if value is REMOVE:
            del inner[last]
        else:
            inner[last] = value
    return obj


@dataclass(frozen=True)
class Mistake:
    what: str
    changes: Json
    answer: tuple[str, ...]
    """Parts of the refusal: the field and the remedy."""


def wrong(what: str, changes: Json, *answer: str) -> Any:
    return pytest.param(Mistake(what, changes, answer), id=what)


CUSTOM = {
    "metric": "custom",
    "name": "appeals",
    "bad": 'claims_total{result=~"appealed|void"}',
    "total": "claims_total",
    "limit": 0.1,
}
S3 = "s3://bucket/rows.jsonl"
RATES = {"min": 2e-5, "max": 5e-4, "log": True}
TRIAL = {"number": 1, "rung": 0, "epochs": 1, "data": "ns-run-1", "folder": "t01-r0-1"}


def search(trials: int = 4, **space: Any) -> Json:
    return {"spec.tuning": {"trials": trials, "space": space}}


TRAINING_MISTAKES = [
    wrong("no source", {"spec.dataset.source": {}}, "spec.dataset.source", "exactly one of http, uri and claim"),
    wrong("two sources", {"spec.dataset.source.uri": S3}, "spec.dataset.source", "exactly one of http, uri and claim"),
    wrong("source is a local file", {"spec.dataset.source": {"uri": "file:///rows"}}, "source.uri", "(s3|gs)://"),
    wrong("source url without scheme", {"spec.dataset.source.http.url": "export:8080/rows"}, "http.url", "https?://"),
    wrong("no output", {"spec.output": {}}, "spec.output", "exactly one of claim and uri"),
    wrong("two outputs", {"spec.output.uri": "s3://b/r"}, "spec.output", "exactly one of claim and uri"),
    wrong("no task", {"spec.task": REMOVE}, "spec.task", "Required value"),
    wrong("no base model", {"spec.baseModel": REMOVE}, "spec.baseModel", "Required value"),
    wrong("base model without scheme", {"spec.baseModel.uri": "llava-7b"}, "baseModel.uri", "(hf|s3|gs|claim)://"),
    wrong("unknown family", {"spec.baseModel.family": "llama"}, "baseModel.family", '"llava", "llava_next", "blip2"'),
    wrong("claim path leaves the claim", {"spec.output.claim.path": "a/../../b"}, "output.claim.path", "without .."),
    wrong("claim path is absolute", {"spec.output.claim.path": "/runs"}, "output.claim.path", "should match"),
    wrong("split above 1", {"spec.dataset.split": {"train": 0.9, "validation": 0.1, "test": 0.1}}, "add up to 1"),
    wrong("split below 1", {"spec.dataset.split": {"train": 0.5}}, "dataset.split", "add up to 1"),
    wrong(
        "no test part",
        {"spec.dataset.split": {"train": 0.9, "validation": 0.1, "test": 0}},
        "dataset.split",
        "test must be above 0",
    ),
    wrong("split in percent", {"spec.dataset.split.train": 80}, "split.train", "less than or equal to 1"),
    wrong("limit below what is needed", {"spec.dataset.limit": 500}, "quality.minExamples", "raise limit"),
    wrong("learning rate of another age", {"spec.fineTune.learningRate": 0.5}, "learningRate", "less than or equal to"),
    wrong("learning rate as text", {"spec.fineTune.learningRate": "2e-4"}, "learningRate", "must be of type number"),
    wrong("learning rate zero", {"spec.fineTune.learningRate": 0}, "learningRate", "for example 0.0002"),
    wrong("no epoch", {"spec.fineTune.epochs": 0}, "fineTune.epochs", "greater than or equal to 1"),
    wrong("rank too large", {"spec.fineTune.lora.rank": 4096}, "lora.rank", "less than or equal to 512"),
    wrong("dropout of everything", {"spec.fineTune.lora.dropout": 1}, "lora.dropout", "less than 1"),
    wrong("precision unknown", {"spec.fineTune.precision": "int8"}, "fineTune.precision", '"bf16"'),
    wrong("quantization unknown", {"spec.fineTune.quantization": "int4"}, "fineTune.quantization", '"nf4"'),
    wrong("kernels without a card", {"spec.fineTune.kernels": "liger", "spec.compute.gpus": 0}, "fineTune.kernels", "compute.gpus above 0"),
    wrong("kernels for BLIP-2", {"spec.fineTune.kernels": "liger", "spec.baseModel.family": "blip2"}, "fineTune.kernels", "set kernels to torch"),
    wrong("optimizer unknown", {"spec.fineTune.optimizer": "sgd"}, "fineTune.optimizer", '"adamw"'),
    wrong("budget zero", {"spec.compute.gpuHourBudget": 0}, "gpuHourBudget", "greater than 0"),
    wrong("gpu product with a space", {"spec.compute.gpuProduct": "A100 80GB"}, "gpuProduct", "should match"),
    wrong("memory without unit sense", {"spec.compute.memory": "64 gigs"}, "compute.memory", "should match"),
    wrong("memory as a fraction", {"spec.compute.memory": 1.5}, "compute.memory", "integer"),
    wrong("recall without class", {"spec.evaluation.gates": [{"metric": "recall", "min": 0.9}]}, "needs class"),
    wrong("class without recall", {"spec.evaluation.gates": [{"class": "mould", "min": 0.9}]}, "no other metric"),
    wrong("gate in percent", {"spec.evaluation.gates": [{"min": 90}]}, "gates[0].min", "less than or equal to 1"),
    wrong(
        "macro-F1 of everything",
        {"spec.evaluation.gates": [{"metric": "macroF1", "field": "overall", "min": 0.8}]},
        "gates[0].field",
        "name a scored field",
    ),
    wrong("previous is a file", {"spec.evaluation.previousAdapter": "/old/adapter"}, "previousAdapter", "(s3|gs|claim)://"),
    wrong("previous outside", {"spec.evaluation.previousAdapter": "claim://a/../adapter"}, "previousAdapter", "without .."),
    wrong("mlflow is no url", {"spec.registry.mlflow": {"url": "mlflow:5000", "modelName": "m"}}, "mlflow.url"),
    wrong("typing error in a field", {"spec.fineTune.learning_rate": 1e-4}, "unknown field", "spec.fineTune.learning_rate"),
    wrong("name too long", {"metadata.name": "a" * 53}, "metadata.name", "52"),
    wrong("name with a dot", {"metadata.name": "damage.v1"}, "metadata.name", "should match"),
    wrong(
        "two synthetic sources",
        {"spec.dataset.synthetic": {"uri": S3, "claim": {"name": "made"}}},
        "spec.dataset.synthetic",
        "from uri or from claim",
    ),
    wrong("synthetic mostly", {"spec.dataset.synthetic": {"maxShare": 0.6}}, "synthetic.maxShare", "less than or equal to 0.5"),
    wrong("synthetic by http", {"spec.dataset.synthetic": {"uri": "https://x/rows"}}, "synthetic.uri", "(s3|gs)://"),
    wrong("search of nothing", {"spec.tuning": {"trials": 4}}, "spec.tuning.space", "name at least one of learningRate"),
    wrong("search of what is no setting", search(warmup={"values": [1, 2]}), "tuning.space", "unknown setting", "batchSize"),
    wrong("search over epochs", search(epochs={"values": [1, 2]}), "tuning.space", "epochs are what trials are stopped by"),
    wrong("range the wrong way round", search(**{"lora.rank": {"min": 32, "max": 8}}), "min must be below max"),
    wrong("range without an end", search(learningRate={"min": 1e-5}), "needs either values", "or min and max"),
    wrong("values and a range", search(batchSize={"values": [8], "min": 1, "max": 9}), "needs either values"),
    wrong("logarithm of nothing", search(**{"lora.dropout": {"min": 0, "max": 0.1, "log": True}}), "needs min above 0"),
    wrong("logarithm of values", search(learningRate={"values": [1e-4], "log": True}), "log belongs to min and max"),
    wrong("learning rate searched too far", search(learningRate={"min": 1e-4, "max": 1}), "learningRate must stay within"),
    wrong("a value out of bounds", search(**{"lora.rank": {"values": [8, 1024]}}), "lora.rank must stay within 1 and 512"),
    wrong("half a row at a time", search(batchSize={"values": [4, 8.5]}), "batchSize takes whole numbers"),
    wrong("more trials than settings", search(9, batchSize={"values": [4, 8]}, **{"lora.rank": {"min": 8, "max": 9}}),
          "tuning.trials", "lower it or widen the space"),
    wrong("more trials than anybody pays", search(65, learningRate=RATES), "tuning.trials", "less than or equal to 64"),
    wrong("unknown scheduler", {**search(learningRate=RATES), "spec.tuning.scheduler": "pbt"}, "scheduler", '"asha", "none"'),
    wrong("search without a validation part", search(learningRate=RATES) | {"spec.dataset.split": {"train": 0.9, "validation": 0, "test": 0.1}},
          "spec.tuning", "dataset.split.validation above 0"),
    wrong("a trial that searches", search(learningRate=RATES) | {"spec.trial": TRIAL}, "spec.trial", "remove it"),
    wrong("a trial out of its folder", {"spec.trial": {**TRIAL, "folder": "../../other"}}, "trial.folder", "should match"),
    wrong("more nodes than there are hosts for", {"spec.compute.nodes": 17}, "spec.compute.nodes", "less than or equal to 16"),
    wrong("queue with a capital", {"spec.compute.queueName": "GPU"}, "spec.compute.queueName", "should match"),
]  # fmt: skip

LATENCY_GATE = "spec.gates.1.limit"
MODEL = {"uri": "hf://llava-hf/llava-1.5-7b-hf", "version": "v1"}
MLFLOW = {
    "url": "http://mlflow:5000",
    "modelName": "building-damage",
    "version": "3",
    "secretRef": {"name": "mlflow"},
}
ENDPOINT = {"uri": "http://engine:8000/v1", "version": "v1"}
ROLLOUT_MISTAKES = [
    wrong("no candidate", {"spec.candidate": {}}, "spec.candidate", "exactly one of trainingRunRef and model"),
    wrong("two candidates", {"spec.candidate.model": MODEL}, "spec.candidate", "exactly one of trainingRunRef and model"),
    wrong("no gateway", {"spec.gatewayRef": REMOVE}, "spec.gatewayRef", "Required value"),
    wrong("no step", {"spec.steps": []}, "spec.steps", "at least 1"),
    wrong("no gate", {"spec.gates": []}, "spec.gates", "at least 1"),
    wrong("step of nothing", {"spec.steps.0": {"minDuration": "1h"}}, "spec.steps[0]", "exactly one of shadow and weight"),
    wrong("step of both", {"spec.steps.0.weight": 5}, "spec.steps[0]", "exactly one of shadow and weight"),
    wrong("weights fall", {"spec.steps.2.weight": 20}, "spec.steps", "rise strictly"),
    wrong("weights stay", {"spec.steps.2.weight": 50}, "spec.steps", "rise strictly"),
    wrong("weight above 100", {"spec.steps.2.weight": 101}, "steps[2].weight", "less than or equal to 100"),
    wrong("weight as a share", {"spec.steps.1.weight": 0.5}, "steps[1].weight", "must be of type integer"),
    wrong("shadow after weight", {"spec.steps.2": {"shadow": 100}}, "spec.steps", "shadow steps come before"),
    wrong("duration in words", {"spec.steps.0.minDuration": "one week"}, "steps[0].minDuration", "should match"),
    wrong("duration without unit", {"spec.steps.0.minDuration": "60"}, "steps[0].minDuration", "should match"),
    wrong("duration as a number", {"spec.steps.0.minDuration": 60}, "steps[0].minDuration", "must be of type string"),
    wrong("duration too short", {"spec.steps.0.minDuration": "10ms"}, "steps[0].minDuration", "from 1s to 365d"),
    wrong("duration too long", {"spec.steps.0.minDuration": "60w"}, "steps[0].minDuration", "from 1s to 365d"),
    wrong("interval too short", {"spec.analysis.interval": "0.5s"}, "analysis.interval", "from 1s to 1h"),
    wrong("deadline before its time", {"spec.steps.0.deadline": "23h59m"}, "steps[0].deadline", "raise deadline"),
    wrong("step with a gate unknown", {"spec.steps.0.gates": ["speed"]}, "spec.steps", "steps[].gates", "accuracy-damagetype"),
    wrong("step with a gate twice", {"spec.steps.0.gates": ["latency", "latency"]}, "steps[0].gates[1]", "Duplicate value"),
    wrong("gate twice", {"spec.gates.2": {"metric": "latency", "limit": 1}}, "spec.gates", "unique", "give name"),
    wrong("gate name twice", {"spec.gates.2.name": "latency"}, "spec.gates", "unique", "give name"),
    wrong("gate without limit", {"spec.gates.1": {"metric": "latency"}}, "spec.gates[1]", "a gate needs limit"),
    wrong("accuracy of nothing", {"spec.gates.0": {"metric": "accuracy"}}, "spec.gates[0]", "a gate needs limit"),
    wrong("latency by margin alone", {"spec.gates.1": {"metric": "latency", "margin": 0.5}}, "a gate needs limit"),
    wrong("margin of cost", {"spec.gates.1": {"metric": "cost", "limit": 0.01, "margin": 0.5}}, "gates[1].margin", "remove it"),
    wrong("margin in percent", {"spec.gates.0.margin": 2}, "gates[0].margin", "less than or equal to 1"),
    wrong("satisfaction by limit", {"spec.gates.1": {"metric": "satisfaction", "limit": 0.8}}, "gates[1].limit", "set margin"),
    wrong("metric unknown", {"spec.gates.0.metric": "f1"}, "gates[0].metric", '"accuracy", "latency"'),
    wrong("latency between edges", {LATENCY_GATE: 2.5}, "spec.gates[1].limit", "nearest: 2 or 3 seconds", "0.05, 0.1"),
    wrong("latency in milliseconds", {LATENCY_GATE: 800}, "spec.gates[1].limit", "nearest: 60 seconds"),
    wrong("latency below every edge", {LATENCY_GATE: 0.01}, "spec.gates[1].limit", "nearest: 0.05 seconds"),
    wrong("accuracy in percent", {"spec.gates.0.limit": 90}, "spec.gates[0].limit", "write 0.9 for 90 %"),
    wrong("accuracy of certainty", {"spec.gates.0.limit": 1}, "spec.gates[0].limit", "between 0 and 1"),
    wrong("error rate zero", {"spec.gates.2.limit": 0}, "spec.gates[2].limit", "between 0 and 1"),
    wrong("overall twice", {"spec.gates.1": {"metric": "accuracy", "limit": 0.8}, "spec.gates.2": {"metric": "accuracy", "field": "overall", "limit": 0.8}}, "unique"),
    wrong("error rate in percent", {"spec.gates.2.limit": 5}, "spec.gates[2].limit", "between 0 and 1"),
    wrong("cost zero", {"spec.gates.1": {"metric": "cost", "limit": 0}}, "spec.gates[1].limit", "above 0"),
    wrong("field of a latency gate", {"spec.gates.1.field": "damageType"}, "spec.gates[1].field", "accuracy only"),
    wrong("counters of a built-in gate", {"spec.gates.1.bad": "x"}, "spec.gates[1]", "must not have bad or total"),
    wrong("custom gate without counters", {"spec.gates.1": {"metric": "custom", "limit": 0.1}}, "needs name, bad and total"),
    wrong("custom with a rate", {"spec.gates.1": {**CUSTOM, "bad": "rate(claims_total[5m])"}}, "gates[1].bad", "no functions"),
    wrong("custom with a range", {"spec.gates.1": {**CUSTOM, "total": "claims_total[5m]"}}, "gates[1].total", "no functions"),
    wrong("custom without quotes", {"spec.gates.1": {**CUSTOM, "bad": "claims_total{result=bad}"}}, "gates[1].bad", "appealed"),
    wrong("custom without a name", {"spec.gates.1": {**CUSTOM, "total": '{job="claims"}'}}, "gates[1].total", "counter by name"),
    wrong("custom in percent", {"spec.gates.1": {**CUSTOM, "limit": 10}}, "gates[1].limit", "between 0 and 1"),
    wrong("strata and a margin", {"spec.analysis.labels.strata": "disagreement", "spec.gates.0.margin": 0.02}, "labels.strata", "no margin"),
    wrong("second labels in percent", {"spec.analysis.labels.doubleShare": 5}, "labels.doubleShare", "less than or equal to 1"),
    wrong("label pool unknown", {"spec.analysis.labels.pool": "all"}, "labels.pool", '"served", "mirrored"'),
    wrong("control of nothing", {"spec.control": {}}, "spec.control", "leave control out"),
    wrong("control of both", {"spec.control": {"promoted": True, "provider": "gpt-4"}}, "spec.control", "exactly one"),
    wrong("risk of a coin", {"spec.analysis.risk": 0.9}, "analysis.risk", "less than or equal to 0.5"),
    wrong("prometheus without scheme", {"spec.analysis.prometheus.url": "prometheus:9090"}, "prometheus.url", "https?://"),
    wrong("confidence in percent", {"spec.fallback.confidence": 80}, "fallback.confidence", "less than or equal to 1"),
    wrong("confidence twice", {"spec.fallback": {"confidence": 0.8, "autoConfidence": True}}, "remove one of them"),
    wrong("auto confidence for no limit", {"spec.fallback.autoConfidence": True, "spec.gates.0": {"metric": "accuracy", "margin": 0.02}}, "autoConfidence", "exactly one accuracy gate"),
    wrong("auto confidence by stratum", {"spec.fallback.autoConfidence": True, "spec.analysis.labels.strata": "disagreement"}, "drawn alike"),
    wrong("confidence as text", {"spec.fallback.confidence": "auto"}, "fallback.confidence", "must be of type number"),
    wrong("fallback on a whim", {"spec.fallback.when": ["mood"]}, "fallback.when[0]", '"error", "timeout"'),
    wrong("engine unknown", {"spec.serving.engine": "ollama"}, "serving.engine", '"vllm", "tgi"'),
    wrong("tgi with llava", {"spec.candidate": {"model": MODEL}, "spec.serving.engine": "tgi"}, "serving", "llava_next only", "choose engine"),
    wrong("external without an endpoint", {"spec.serving.engine": "external"}, "spec.candidate", "http:// or https://"),
    wrong("external with weights", {"spec.candidate": {"model": MODEL}, "spec.serving.engine": "external"}, "http:// or https://"),
    wrong("mlflow version by alias", {"spec.candidate": {"model": {**MODEL, "mlflow": {**MLFLOW, "version": "champion"}}}}, "mlflow.version", "should match"),
    wrong("mlflow without a model", {"spec.candidate": {"model": {**MODEL, "mlflow": {"url": "http://mlflow:5000", "version": "3"}}}}, "mlflow.modelName", "Required value"),
    wrong("endpoint with vllm", {"spec.candidate": {"model": ENDPOINT}}, "candidate.model.uri", "set the engine to external"),
    wrong(
        "endpoint with an adapter",
        {"spec.candidate": {"model": {**ENDPOINT, "adapterUri": "s3://b/a"}}, "spec.serving.engine": "external"},
        "adapterUri",
        "remove it",
    ),
    wrong(
        "endpoint with pods",
        {"spec.candidate": {"model": ENDPOINT}, "spec.serving": {"engine": "external", "replicas": 3}},
        "spec.serving",
        "remove them",
    ),
    wrong("no replica", {"spec.serving.replicas": 0}, "serving.replicas", "greater than or equal to 1"),
    wrong("request unknown", {"spec.request": {"id": "1", "action": "pause"}}, "request.action", '"promote", "abort"'),
    wrong("request without id", {"spec.request": {"action": "abort"}}, "request.id", "Required value"),
    wrong("typing error in a gate", {"spec.gates.0.threshold": 0.9}, "unknown field", "spec.gates[0].threshold"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", TRAINING_MISTAKES)
def test_a_mistake_in_a_training_run_is_refused_with_the_remedy(api: Api, mistake: Mistake) -> None:
    answer = refusal(api, "POST", changed(example("trainingrun.yaml", "TrainingRun"), mistake.changes))
    assert [part for part in mistake.answer if part not in answer] == [], answer or "it was accepted"


@pytest.mark.parametrize("mistake", ROLLOUT_MISTAKES)
def test_a_mistake_in_a_rollout_is_refused_with_the_remedy(api: Api, mistake: Mistake) -> None:
    answer = refusal(api, "POST", changed(example("modelrollout.yaml", "ModelRollout"), mistake.changes))
    assert [part for part in mistake.answer if part not in answer] == [], answer or "it was accepted"


RIGHT = [
    pytest.param("trainingrun.yaml", "TrainingRun", {}, id="minimal run"),
    pytest.param(
        "trainingrun.yaml",
        "TrainingRun",
        {
            "spec.dataset.synthetic": {"claim": {"name": "made"}, "upToPerClass": 900, "maxShare": 0.5},
            "spec.evaluation": {
                "previousAdapter": "claim://artifacts/default-old-0a1b2c3d/adapter",
                "gates": [
                    {"metric": "macroF1", "min": 0.85},
                    {"metric": "macroF1", "field": "severity", "min": 0.6},
                    {"metric": "recall", "class": "asbestos", "min": 0.95},
                ],
            },
        },
        id="synthetic rows, a predecessor and every gate",
    ),
    pytest.param("trainingrun.yaml", "TrainingRun", {"spec.dataset.synthetic": {}}, id="marked rows of the source"),
    pytest.param("production.yaml", "TrainingRun", {}, id="full run"),
    pytest.param("trainingrun.yaml", "TrainingRun", {"spec.compute": {"gpus": 0, "gpuProduct": "", "cpu": "500m"}}, id="cpu"),
    pytest.param("trainingrun.yaml", "TrainingRun", {"spec.dataset.source": {"claim": {"name": "c"}}}, id="claim"),
    pytest.param("trainingrun.yaml", "TrainingRun", search(learningRate=RATES), id="search"),
    pytest.param(
        "trainingrun.yaml",
        "TrainingRun",
        search(64, learningRate={"min": 0.000001, "max": 0.01}, batchSize={"values": [4, 8]},
               **{"lora.rank": {"min": 1, "max": 512, "log": True}, "lora.alpha": {"values": [1, 1024]},
                  "lora.dropout": {"min": 0, "max": 0.5}}),
        id="search of everything",
    ),
    pytest.param("trainingrun.yaml", "TrainingRun", search(4, batchSize={"min": 4, "max": 7}), id="search of all there is"),
    pytest.param("trainingrun.yaml", "TrainingRun", {"spec.trial": {**TRIAL, "resumeFrom": "t01-r0-0"}}, id="trial"),
    pytest.param("modelrollout.yaml", "ModelRollout", {}, id="minimal rollout"),
    pytest.param("production.yaml", "ModelRollout", {}, id="full rollout"),
    pytest.param("modelrollout-deferring.yaml", "ModelRollout", {}, id="rollout that defers"),
    pytest.param(
        "modelrollout.yaml",
        "ModelRollout",
        {"spec.candidate": {"model": {**ENDPOINT, "mlflow": MLFLOW}}, "spec.serving": {"engine": "external"}},
        id="external endpoint, known to MLflow",
    ),
    pytest.param(
        "modelrollout.yaml",
        "ModelRollout",
        {"spec.candidate": {"model": {**MODEL, "family": "llava_next"}}, "spec.serving.engine": "tgi"},
        id="tgi",
    ),
    pytest.param(
        "modelrollout.yaml",
        "ModelRollout",
        {"spec.fallback": {"confidence": 0.8}, "spec.steps.0.gates": ["accuracy-damagetype", "latency"],
         "spec.gates.0.margin": 0.02, "spec.gates.1.margin": 0.5, "spec.gates.2": CUSTOM,
         "spec.analysis.labels.pool": "served", "spec.steps.0.deadline": "1d", "spec.request": {"id": "now", "action": "skip"}},
        id="options",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("file", "kind", "changes"), RIGHT)
def test_what_is_right_comes_back_as_it_was_sent(api: Api, file: str, kind: str, changes: Json) -> None:
    """Created, defaulted and stored by the server, read by the models: the same as the models read from the file."""
    sent = changed(example(file, kind), changes)
    api.call("POST", f"{path_of(sent)}?fieldValidation=Strict", sent)
    try:
        stored = api.get(path_of(sent, name=True))
        model: type[TrainingRun] | type[ModelRollout] = TrainingRun if kind == "TrainingRun" else ModelRollout
        read = model.from_object(stored)
        assert read == model.from_object(sent)
        rewritten = {**stored, "spec": read.spec.to_wire()}
        api.call("PUT", f"{path_of(sent, name=True)}?fieldValidation=Strict", rewritten)
        assert model.from_object(api.get(path_of(sent, name=True))) == read
    finally:
        api.call("DELETE", path_of(sent, name=True))


def test_gate_names_are_the_same_in_the_models_and_on_the_server(api: Api) -> None:
    sent = changed(example("production.yaml", "ModelRollout"), {"spec.gates.0.field": "damage_Type"})
    names = [Gate.model_validate(gate).full_name for gate in sent["spec"]["gates"]]
    assert refusal(api, "POST", changed(sent, {"spec.steps.0.gates": names})) == ""


def test_kinds_have_short_names_and_a_category(api: Api) -> None:
    listed = {entry["name"]: entry for entry in api.get(f"apis/{API_VERSION}")["resources"]}
    for kind in (TrainingRun, ModelRollout):
        assert tuple(listed[kind.plural]["shortNames"]) == kind.short_names
        assert listed[kind.plural]["categories"] == ["cutover"]
        assert f"{kind.plural}/status" in listed


# ------------------------------------------------------------ what may change later
@pytest.fixture
def started(api: Api) -> Iterator[Json]:
    """A TrainingRun whose first stage runs."""
    obj = changed(example("trainingrun.yaml", "TrainingRun"), {"metadata.name": "started"})
    stored = api.call("POST", path_of(obj), obj)
    stored["status"] = {"stage": "train", "conditions": []}
    yield api.call("PUT", f"{path_of(obj, name=True)}/status", stored)
    api.call("DELETE", path_of(obj, name=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.task.configMap": "other"},
        {"spec.dataset.seed": 7},
        {"spec.dataset.quality.minExamples": 5},
        {"spec.baseModel.revision": "v2"},
        {"spec.fineTune.epochs": 9},
        {"spec.fineTune.lora.rank": 8},
        {"spec.output.claim.path": "elsewhere"},
        {"spec.tuning": {"space": {"learningRate": RATES}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_artifacts_are_made_from_is_fixed_once_a_run_has_started(
    api: Api, started: Json, changes: Json
) -> None:
    answer = refusal(api, "PUT", changed(started, changes), name=True)
    field = ".".join(next(iter(changes)).split(".")[:2])
    assert f"{field} cannot change once the run has started" in answer
    assert "create a new TrainingRun" in answer


def test_the_rest_of_a_started_run_may_change(api: Api, started: Json) -> None:
    changes = {
        "spec.suspend": True,
        "spec.compute.gpuHourBudget": 80,
        "spec.compute.nodeSelector": {"pool": "a100"},
        "spec.evaluation.compareWith": "none",
    }
    assert refusal(api, "PUT", changed(started, changes), name=True) == ""


def test_a_run_that_has_not_started_may_change(api: Api) -> None:
    obj = changed(example("trainingrun.yaml", "TrainingRun"), {"metadata.name": "waiting"})
    stored = api.call("POST", path_of(obj), obj)
    assert refusal(api, "PUT", changed(stored, {"spec.fineTune.epochs": 9}), name=True) == ""
    api.call("DELETE", path_of(obj, name=True))


def test_candidate_and_gateway_of_a_rollout_never_change(api: Api) -> None:
    obj = example("modelrollout.yaml", "ModelRollout")
    stored = api.call("POST", path_of(obj), obj)
    try:
        other = {"spec.candidate.trainingRunRef.name": "another"}
        assert "create a new ModelRollout" in refusal(api, "PUT", changed(stored, other), name=True)
        elsewhere = {"spec.gatewayRef": "another"}
        assert "spec.gatewayRef cannot change" in refusal(api, "PUT", changed(stored, elsewhere), name=True)
        allowed = {
            "spec.freeze": True,
            "spec.steps.1.weight": 40,
            "spec.request": {"id": "a", "action": "abort"},
        }
        assert refusal(api, "PUT", changed(stored, allowed), name=True) == ""
    finally:
        api.call("DELETE", path_of(obj, name=True))


def fullest(node: Json) -> Any:
    """A value with every field a schema knows, lists with one item, numbers at their upper bound."""
    if "properties" in node:
        return {name: fullest(child) for name, child in node["properties"].items()}
    if "enum" in node:
        return node["enum"][-1]
    match node["type"]:
        case "object":
            return {"overall": fullest(node["additionalProperties"])}
        case "array":
            return [fullest(node["items"])]
        case "string":
            return "2026-11-01T08:00:00Z" if node.get("format") == "date-time" else "Reason"
        case "boolean":
            return True
    return node["maximum"]


@pytest.mark.parametrize("kind", [TrainingRun, ModelRollout])
def test_every_field_of_a_status_is_stored(api: Api, kind: type[TrainingRun] | type[ModelRollout]) -> None:
    file = "trainingrun.yaml" if kind is TrainingRun else "modelrollout.yaml"
    obj = changed(example(file, kind.kind_name), {"metadata.name": "full"})
    stored = api.call("POST", path_of(obj), obj)
    try:
        stored["status"] = fullest(crdgen.schema(kind)["properties"]["status"])
        read = kind.from_object(stored)
        answer = api.call("PUT", f"{path_of(obj, name=True)}/status?fieldValidation=Strict", stored)
        assert answer["status"] == stored["status"]
        stored = {**answer, "status": read.status.to_wire()}
        answer = api.call("PUT", f"{path_of(obj, name=True)}/status?fieldValidation=Strict", stored)
        assert kind.from_object(answer) == read
    finally:
        api.call("DELETE", path_of(obj, name=True))


def test_a_status_has_an_end(api: Api) -> None:
    """The longest lists and sentences the operator may write are stored; one item more is not."""
    obj = changed(example("modelrollout.yaml", "ModelRollout"), {"metadata.name": "long"})
    stored = api.call("POST", path_of(obj), obj)
    try:
        gate = {"verdict": "pass", "message": "m" * 4096}
        step = {"name": "weight-10", "enteredAt": "2026-11-01T08:00:00Z", "message": "m" * 4096}
        stored["status"] = {
            "gates": [{**gate, "name": f"gate-{index}"} for index in range(32)],
            "steps": [{**step, "index": index} for index in range(64)],
        }
        answer = api.call("PUT", f"{path_of(obj, name=True)}/status", stored)
        assert len(ModelRollout.from_object(answer).status.steps) == 64
        answer["status"]["steps"].append({**step, "index": 64})
        with pytest.raises(ApiError, match=r"status\.steps.*64"):
            api.call("PUT", f"{path_of(obj, name=True)}/status", answer)
    finally:
        api.call("DELETE", path_of(obj, name=True))
