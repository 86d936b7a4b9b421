"""The candidate's pods: commands, model files, security, and what is said when they do not come up."""

from __future__ import annotations

from typing import Any

import pytest

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.rollout.candidate import Refusal, ServedModel, candidate_arm, served_model, short_name
from cutover_operator.rollout.resources import Images, Owner, contains, deployment, released, service
from cutover_server.inference.settings import ProveSettings, read_settings
from fakes.rollout_town import rollout_spec

IMAGES = Images("engine:1", "vllm:1", "tgi:1")
OWNER = Owner("cut", "claims", "uid-1")


def spec_of(**changes: Any) -> ModelRolloutSpec:
    return ModelRolloutSpec.model_validate(rollout_spec(**changes))


def model_of(spec: ModelRolloutSpec, run: dict[str, Any] | None = None) -> ServedModel:
    found = served_model(spec, run)
    assert isinstance(found, ServedModel), found
    return found


def pod_of(serving: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    spec = spec_of(serving=serving, candidate={"model": {"version": "v/1", **model}})
    made = deployment(spec, model_of(spec), OWNER, IMAGES)
    pod: dict[str, Any] = made["spec"]["template"]["spec"]
    return pod


def test_the_built_in_engine_reads_claims_where_they_are_mounted() -> None:
    pod = pod_of(
        {"engine": "builtin"}, {"uri": "claim://models/base", "adapterUri": "claim://runs/a/adapter"}
    )
    engine = pod["containers"][0]
    assert engine["image"] == "engine:1"
    assert engine["command"] == ["cutover-engine"]
    text = " ".join(engine["args"])
    assert "--base /models/models/base" in text
    assert "--adapter /models/runs/a/adapter" in text
    assert "--served-name v-1 --family llava --port 8000" in text
    claims = {
        v["persistentVolumeClaim"]["claimName"]: v for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    assert set(claims) == {"models", "runs"}
    assert all(v["persistentVolumeClaim"]["readOnly"] for v in claims.values())
    assert all(m["readOnly"] for m in engine["volumeMounts"] if m["mountPath"].startswith("/models/"))


def test_remote_files_are_fetched_once_into_the_cache() -> None:
    serving = {"engine": "vllm", "modelCache": {"claim": "cache"}}
    pod = pod_of(serving, {"uri": "s3://b/base", "adapterUri": "gs://b/adapter"})
    fetches = [c["command"] for c in pod["initContainers"]]
    assert [c[:3] for c in fetches] == [
        ["cutover-engine", "fetch", "s3://b/base"],
        ["cutover-engine", "fetch", "gs://b/adapter"],
    ]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}} in pod["volumes"]
    engine = pod["containers"][0]
    assert engine["command"] == ["vllm", "serve", fetches[0][3]]
    text = " ".join(engine["args"])
    assert f"--enable-lora --max-loras 1 --max-lora-rank 64 --lora-modules v-1={fetches[1][3]}" in text
    assert '--limit-mm-per-prompt {"image":1} --allowed-media-domains none.invalid' in text


def test_beside_vllm_the_adapter_is_proven_before_the_pod_is_ready() -> None:
    serving: dict[str, Any] = {"engine": "vllm", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    model = {"uri": "claim://models/base", "adapterUri": "claim://runs/a/adapter"}
    engine, proof = pod_of(serving, model)["containers"]
    assert proof["image"] == "engine:1"
    assert proof["command"] == ["cutover-engine", "prove"]
    assert " ".join(proof["args"]) == (
        "--origin http://127.0.0.1:8000 --adapter /models/runs/a/adapter --served-name v-1 --base-name base --port 8001"
    )
    assert proof["volumeMounts"] == engine["volumeMounts"]
    assert proof["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "proof"}
    assert "nvidia.com/gpu" not in str(proof["resources"])
    assert read_settings([*proof["command"][1:], *proof["args"]], {}) == ProveSettings(
        "http://127.0.0.1:8000", "/models/runs/a/adapter", "v-1"
    )


@pytest.mark.parametrize(
    ("serving", "model"),
    [
        (
            {"engine": "vllm", "args": ["--allow-unproven", "--max-num-seqs", "8"]},
            {"adapterUri": "claim://r/a"},
        ),
        ({"engine": "vllm"}, {}),
        ({"engine": "builtin"}, {"adapterUri": "claim://r/a"}),
    ],
)
def test_nothing_is_proven_where_there_is_nothing_to_prove_or_somebody_forbade_it(
    serving: dict[str, Any], model: dict[str, Any]
) -> None:
    [engine] = pod_of(serving, {"uri": "claim://models/base", **model})["containers"]
    if serving["engine"] == "vllm":
        assert "--allow-unproven" not in engine["args"]
        assert engine["args"][-2:] == serving.get("args", ["--shutdown-timeout", "30"])[-2:]


def test_hub_models_go_by_id_and_revision() -> None:
    vllm = pod_of({"engine": "vllm"}, {"uri": "hf://org/name", "revision": "abc"})["containers"][0]
    assert vllm["command"][-1] == "org/name"
    assert "--revision abc" in " ".join(vllm["args"])
    assert "--served-model-name v-1" in " ".join(vllm["args"])
    tgi = pod_of(
        {"engine": "tgi"}, {"uri": "hf://org/name", "family": "llava_next", "adapterUri": "claim://r/a"}
    )
    engine = tgi["containers"][0]
    assert "--model-id org/name" in " ".join(engine["args"])
    assert {"name": "LORA_ADAPTERS", "value": "v-1=/models/r/a"} in engine["env"]


@pytest.mark.parametrize("engine", ["builtin", "vllm"])
def test_pods_meet_the_restricted_standard(engine: str) -> None:
    pod = pod_of({"engine": engine}, {"uri": "s3://b/base"})
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod["containers"], *pod["initContainers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_probes_wait_as_long_as_the_start_may_take() -> None:
    pod = pod_of({"engine": "builtin", "startDeadline": "10m", "args": ["--x"]}, {"uri": "claim://m/b"})
    engine = pod["containers"][0]
    assert engine["startupProbe"]["failureThreshold"] * engine["startupProbe"]["periodSeconds"] == 600
    assert engine["args"][-1] == "--x"


def test_what_the_spec_says_reaches_the_pod() -> None:
    serving = {
        "engine": "builtin",
        "replicas": 3,
        "image": "own:2",
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    }
    spec = spec_of(serving=serving)
    made = deployment(spec, model_of(spec), OWNER, IMAGES)
    pod = made["spec"]["template"]["spec"]
    assert made["spec"]["replicas"] == 3
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert pod["containers"][0]["image"] == "own:2"
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert pod["tolerations"][0]["operator"] == "Exists"
    assert service(OWNER)["spec"]["selector"] == made["spec"]["selector"]["matchLabels"]
    live = made | {"status": {"replicas": 3}}
    assert released(live) == {
        **made,
        "metadata": {k: made["metadata"][k] for k in ("name", "namespace", "labels")},
    }


def test_credentials_and_the_service_account_reach_the_candidate() -> None:
    spec = spec_of(serving={"serviceAccountName": "models"})
    images = Images("engine:1", "vllm:1", "tgi:1", ("registry",))
    pod = deployment(spec, model_of(spec), OWNER, images)["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "models"
    assert pod["automountServiceAccountToken"] is False
    assert pod["imagePullSecrets"] == [{"name": "registry"}]


def test_defaults_of_the_api_server_are_no_difference() -> None:
    spec = spec_of()
    wanted = deployment(spec, model_of(spec), OWNER, IMAGES)
    live = {**wanted, "status": {}, "metadata": {**wanted["metadata"], "annotations": {"x": "y"}}}
    assert contains(live, wanted)
    assert not contains({**live, "spec": {**wanted["spec"], "replicas": 0}}, wanted)
    assert not contains(None, wanted)
    assert not contains({"a": [1, 2]}, {"a": [1]})


# ---------------------------------------------------------------- which model
def run_of(*, succeeded: str = "True", **status: Any) -> dict[str, Any]:
    model = {
        "name": "damage",
        "version": "3",
        "baseUri": "claim://m/b",
        "adapterUri": "claim://r/a",
        "family": "llava",
    }
    return {
        "metadata": {"name": "t"},
        "status": {
            "model": model,
            "stage": "train",
            "progressText": "40 %",
            "conditions": [
                {
                    "type": "Succeeded",
                    "status": succeeded,
                    "reason": "X",
                    "lastTransitionTime": "2030-01-01T00:00:00Z",
                }
            ],
            **status,
        },
    }


FROM_RUN = {"trainingRunRef": {"name": "t"}}


def test_a_training_run_that_succeeded_names_the_model() -> None:
    model = model_of(spec_of(candidate=FROM_RUN), run_of())
    assert (model.version, model.base_uri, model.adapter_uri) == ("damage-3", "claim://m/b", "claim://r/a")


@pytest.mark.parametrize(
    ("changes", "run", "reason", "words"),
    [
        ({"candidate": FROM_RUN}, None, "TrainingRunNotFound", "no TrainingRun t"),
        ({"candidate": FROM_RUN}, run_of(succeeded="Unknown"), "TrainingRunNotReady", "train, 40 %"),
        (
            {"candidate": FROM_RUN},
            run_of(
                succeeded="False",
                conditions=[
                    {
                        "type": "Stalled",
                        "status": "True",
                        "reason": "TooFewExamples",
                        "message": "12 of 10000",
                        "lastTransitionTime": "2030-01-01T00:00:00Z",
                    }
                ],
            ),
            "TrainingRunFailed",
            "12 of 10000",
        ),
        ({"candidate": FROM_RUN, "serving": {"engine": "external"}}, run_of(), "EngineMismatch", "vllm"),
        (
            {"candidate": FROM_RUN, "serving": {"engine": "tgi"}},
            run_of(),
            "UnsupportedFamily",
            "use vllm or builtin",
        ),
        (
            {"candidate": {"model": {"uri": "http://x/v1", "version": "1"}}},
            None,
            "EngineMismatch",
            "external",
        ),
        ({"candidate": {}}, None, "CandidateUnclear", "exactly one"),
    ],
)
def test_what_cannot_be_served_is_said_with_the_remedy(
    changes: dict[str, Any], run: dict[str, Any] | None, reason: str, words: str
) -> None:
    found = served_model(spec_of(**changes), run)
    assert isinstance(found, Refusal)
    assert found.reason == reason
    assert words in found.message


def test_an_external_endpoint_is_asked_where_it_is() -> None:
    spec = spec_of(
        serving={"engine": "external", "price": {"usdPerGpuHour": 3.6}},
        candidate={"model": {"uri": "http://slow/v1", "version": "v1", "servedName": "m"}},
    )
    arm = candidate_arm(spec, model_of(spec), "cut", "claims")
    assert (arm.base_url, arm.model, arm.version) == ("http://slow/v1", "m", "v1")
    assert arm.price.usd_per_busy_second == pytest.approx(0.001)
    assert arm.fetches_from_text, "it may be TGI"


@pytest.mark.parametrize(("engine", "fetches"), [("tgi", True), ("vllm", False), ("builtin", False)])
def test_the_gateway_is_told_which_engine_opens_urls_in_texts(engine: str, fetches: bool) -> None:
    model = {"uri": "hf://org/name", "version": "v1", "family": "llava_next"}
    spec = spec_of(serving={"engine": engine}, candidate={"model": model})
    assert candidate_arm(spec, model_of(spec), "cut", "claims").fetches_from_text is fetches


def test_names_fit_a_service_and_stay_apart() -> None:
    long = "a" * 80
    assert short_name("cut", "candidate") == "cut-candidate"
    assert len(short_name(long, "candidate")) <= 63
    assert short_name(long, "candidate") != short_name(long + "b", "candidate")
    assert "." not in short_name("my.rollout", "candidate")
    assert short_name("my.rollout", "candidate") != short_name("my-rollout", "candidate")
