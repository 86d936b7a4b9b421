"""The objects of an attempt: names, placement, security and what the stage is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cutover.api.trainingrun import STAGES, TrainingRunSpec
from cutover.stages import StageConfig
from cutover.task import Task
from cutover_operator.training import progress
from cutover_operator.training.observed import job_seen, pod_seen
from cutover_operator.training.resources import Attempt, Built, build, job_name, needs
from cutover_operator.training.taints import SPOT_TOLERATIONS
from fakes.training_town import SPEC, TASK

READ_TASK = Task.model_validate(yaml.safe_load(TASK))


def built(
    stage: Any = "train", number: int = 1, left: float | None = 3600.0, name: str = "run", **spec: Any
) -> Built:
    read = TrainingRunSpec.model_validate({**SPEC, **spec})
    return build(Attempt("ns", name, "u" * 36, read, READ_TASK, stage, number, "trainer:1", left))


def pod_of(one: Built) -> dict[str, Any]:
    pod: dict[str, Any] = one.job["spec"]["template"]["spec"]
    return pod


def config_of(one: Built) -> StageConfig:
    return StageConfig.model_validate(yaml.safe_load(one.config_map["data"]["stage.yaml"]))


def test_a_gpu_stage_asks_for_the_card_and_tolerates_spot() -> None:
    pod = pod_of(built(compute={"gpus": 2, "memory": "64Gi", "cpu": "8", "nodeSelector": {"zone": "a"}}))
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "2"}
    assert container["resources"]["requests"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}
    assert pod["nodeSelector"] == {"zone": "a", "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert [*SPOT_TOLERATIONS, pod["tolerations"][-1]] == pod["tolerations"]
    assert pod["tolerations"][-1]["key"] == "nvidia.com/gpu"
    assert pod["activeDeadlineSeconds"] == 1800 + 300
    assert "CUTOVER_THREADS" not in {one["name"] for one in container["env"]}


def test_the_registrys_credentials_reach_the_pods() -> None:
    read = TrainingRunSpec.model_validate(SPEC)
    attempt = Attempt("ns", "run", "u" * 36, read, READ_TASK, "train", 1, "trainer:1", None, ("registry",))
    assert pod_of(build(attempt))["imagePullSecrets"] == [{"name": "registry"}]
    assert "imagePullSecrets" not in pod_of(built())


def test_several_gpus_train_and_one_evaluates() -> None:
    spec = {"compute": {"gpus": 4}}
    gpus = {
        stage: pod_of(built(stage, **spec))["containers"][0]["resources"]
        .get("limits", {})
        .get("nvidia.com/gpu")
        for stage in ("prepare", "train", "evaluate", "register")
    }
    assert gpus == {"prepare": None, "train": "4", "evaluate": "1", "register": None}


def test_a_job_of_a_queue_is_left_to_kueue() -> None:
    one = built(compute={"gpus": 1, "queueName": "gpus"})
    assert one.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert one.job["spec"]["suspend"] is True
    # Kueue admits Jobs, not pods: a label on the pod would make a second workload of it.
    assert "kueue.x-k8s.io/queue-name" not in one.job["spec"]["template"]["metadata"]["labels"]
    seen = job_seen({**one.job, "metadata": {**one.job["metadata"], "uid": "u"}})
    assert (seen.suspended, seen.queue, seen.active) == (True, "gpus", True)
    plain = built().job
    assert "suspend" not in plain["spec"]
    assert "kueue.x-k8s.io/queue-name" not in plain["metadata"]["labels"]


def test_prepare_and_register_take_no_gpu() -> None:
    for stage in ("prepare", "register"):
        pod = pod_of(built(stage, left=None))
        assert "nvidia.com/gpu" not in str(pod["containers"])
        assert "nodeSelector" not in pod
        assert "activeDeadlineSeconds" not in pod
    pod = pod_of(built("prepare", left=None))
    assert pod["initContainers"][0]["command"] == ["cutover-trainer", "export"]
    assert pod["containers"][0]["command"] == ["cutover-trainer", "prepare"]


def test_a_cpu_run_keeps_to_one_thread_and_any_node() -> None:
    pod = pod_of(built(compute={"gpus": 0, "spot": False}, left=None))
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    assert env["OMP_NUM_THREADS"] == env["CUTOVER_THREADS"] == "1"
    assert "nodeSelector" not in pod
    assert pod["tolerations"] == []


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate", "register"])
def test_every_pod_is_restricted(stage: str) -> None:
    pod = pod_of(built(stage))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 60
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounted = {one["mountPath"] for one in container["volumeMounts"]}
        assert {"/tmp", "/dev/shm", "/etc/cutover"} <= mounted
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def test_secrets_reach_only_the_stage_that_needs_them_and_only_as_files() -> None:
    spec = {
        "dataset": {
            "source": {"http": {"url": "http://a:80/x", "secretRef": {"name": "auth", "key": "admin"}}}
        },
        "registry": {"mlflow": {"url": "http://m:5000", "modelName": "m", "secretRef": {"name": "mlf"}}},
    }
    volumes = {stage: pod_of(built(stage, **spec))["volumes"] for stage in ("prepare", "train", "register")}
    assert {"auth"} == {one["secret"]["secretName"] for one in volumes["prepare"] if "secret" in one}
    assert not [one for one in volumes["train"] if "secret" in one]
    assert {"mlf"} == {one["secret"]["secretName"] for one in volumes["register"] if "secret" in one}
    config = config_of(built("prepare", **spec))
    assert config.source_token_file == "/var/run/cutover/secrets/source/token"
    assert config.mlflow_token_file == "/var/run/cutover/secrets/mlflow/token"
    assert config.allowed_origins == ("http://a:80",)


def test_synthetic_rows_of_a_claim_are_mounted_where_rows_are_read() -> None:
    dataset = {**SPEC["dataset"], "synthetic": {"claim": {"name": "made-up", "path": "walls"}}}
    for stage in STAGES:
        one = built(stage, dataset=dataset)
        containers = [*pod_of(one).get("initContainers", []), *pod_of(one)["containers"]]
        for container in containers:
            mounted = [mount for mount in container["volumeMounts"] if mount["name"] == "synthetic"]
            assert bool(mounted) == (stage == "prepare")
            assert all(mount["readOnly"] for mount in mounted)
        assert config_of(one).synthetic_path == "/synthetic/walls"
        spec = TrainingRunSpec.model_validate({**SPEC, "dataset": dataset})
        assert ("claim 'made-up'" in needs(spec, stage)) == (stage == "prepare")
    stored = {**SPEC["dataset"], "synthetic": {"uri": "s3://made-up/walls"}}
    assert config_of(built("prepare", dataset=stored)).synthetic_path is None


def test_an_earlier_adapter_is_mounted_where_it_is_compared_with() -> None:
    evaluation = {"previousAdapter": "claim://models-before/old/adapter"}
    for stage in STAGES:
        one = built(stage, evaluation=evaluation)
        mounts = pod_of(one)["containers"][0]["volumeMounts"]
        mounted = [mount for mount in mounts if mount["name"] == "previous"]
        assert bool(mounted) == (stage == "evaluate")
        assert all(mount["readOnly"] for mount in mounted)
        assert config_of(one).previous_adapter_path == "file:///previous/old/adapter"
        spec = TrainingRunSpec.model_validate({**SPEC, "evaluation": evaluation})
        assert ("claim 'models-before'" in needs(spec, stage)) == (stage == "evaluate")
    stored = built("evaluate", evaluation={"previousAdapter": "s3://models/old/adapter"})
    assert config_of(stored).previous_adapter_path == "s3://models/old/adapter"
    assert config_of(built("evaluate")).previous_adapter_path is None


def test_claims_and_object_stores_name_the_same_folder_for_pods_and_for_others() -> None:
    on_claim = built(output={"claim": {"name": "artifacts", "path": "team/a"}})
    config = config_of(on_claim)
    assert config.artifacts == "file:///artifacts/team/a/ns-run-uuuuuuuu"
    assert config.published_artifacts == "claim://artifacts/team/a/ns-run-uuuuuuuu"
    assert config.base_model_path == "/models/llava"
    mounts = {one["mountPath"]: one for one in pod_of(on_claim)["containers"][0]["volumeMounts"]}
    assert mounts["/models"]["readOnly"] is True
    assert "readOnly" not in mounts["/artifacts"]
    in_bucket = built(
        output={"uri": "s3://bucket/x/"},
        baseModel={"uri": "hf://llava-hf/llava-1.5-7b-hf"},
        compute={"gpus": 1, "serviceAccountName": "trainer"},
    )
    config = config_of(in_bucket)
    assert config.artifacts == config.published_artifacts == "s3://bucket/x/ns-run-uuuuuuuu"
    assert config.base_model_path == "hf://llava-hf/llava-1.5-7b-hf"
    assert pod_of(in_bucket)["serviceAccountName"] == "trainer"
    assert not [one for one in pod_of(in_bucket)["volumes"] if "persistentVolumeClaim" in one]
    from_claim = built("prepare", dataset={"source": {"claim": {"name": "rows", "path": "a/rows.jsonl"}}})
    assert config_of(from_claim).source_path == "/source/a/rows.jsonl"


def test_the_run_owns_what_is_made_and_one_pod_ends_a_job() -> None:
    one = built()
    for obj in (one.job, one.config_map):
        (reference,) = obj["metadata"]["ownerReferences"]
        assert (reference["uid"], reference["controller"]) == ("u" * 36, True)
        assert obj["metadata"]["name"] == one.name
    assert one.job["spec"]["backoffLimit"] == 0
    assert "ttlSecondsAfterFinished" not in one.job["spec"]
    assert {rule["action"] for rule in one.job["spec"]["podFailurePolicy"]["rules"]} == {"FailJob"}
    config = next(v for v in one.job["spec"]["template"]["spec"]["volumes"] if v["name"] == "config")
    assert config["configMap"]["name"] == one.name


def test_a_name_is_a_digest_of_all_that_is_in_it() -> None:
    assert built().name == built().name
    names = {
        built().name,
        built(number=2).name,
        built("evaluate").name,
        built(left=10.0).name,
        built(compute={"gpus": 4}).name,
        built(fineTune={"epochs": 5}).name,
    }
    assert len(names) == 6


@given(st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", fullmatch=True), st.integers(1, 10**6))
def test_names_stay_names(run: str, number: int) -> None:
    name = job_name(run, "evaluate", number, "0123abcd")
    assert len(name) <= 63
    assert name[0].isalnum()
    assert name.endswith(f"-evaluate-{number}-0123abcd")


def test_progress_is_the_last_line_of_this_stage() -> None:
    lines = [
        '{"event": "progress", "stage": "train", "step": 1, "steps": 10}',
        '{"event": "progress", "stage": "evaluate", "step": 9, "steps": 10}',
        '{"event": "progress", "stage": "train", "step": 5, "steps": 10, "loss": 0.5}',
        '{"event": "progress", "stage": "train", "step": "broken',
        "Traceback",
    ]
    found = progress.latest("\n".join(lines), "train")
    assert found is not None
    assert (found.step, found.loss, progress.text(found)) == (5, 0.5, "50%")
    assert progress.latest("nothing here", "train") is None
    assert progress.text(None) == ""


def test_a_pods_facts() -> None:
    message = json.dumps(
        {"stage": "export", "outcome": "badInput", "reason": "SourceRefused", "message": "401"}
    )
    pod = {
        "metadata": {"name": "p", "uid": "u", "labels": {"cutover.dev/stage": "prepare"}},
        "spec": {"containers": [{"name": "trainer"}]},
        "status": {
            "phase": "Failed",
            "startTime": "2026-11-22T08:00:00Z",
            "initContainerStatuses": [
                {
                    "name": "export",
                    "state": {
                        "terminated": {
                            "exitCode": 65,
                            "message": message,
                            "finishedAt": "2026-11-22T08:01:00Z",
                        }
                    },
                }
            ],
            "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}],
        },
    }
    seen = pod_seen(pod)
    assert seen.over
    assert seen.exit_code == 65
    assert seen.result is not None
    assert seen.result.reason == "SourceRefused"
    assert seen.trouble is None
    lost = pod_seen(
        {**pod, "status": {"phase": "Failed", "reason": "NodeLost", "startTime": "2026-11-22T08:00:00Z"}}
    )
    assert (lost.exit_code, lost.ended_at) == (None, lost.started_at)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.dictionaries(
            st.sampled_from(["status", "conditions", "state", "phase"]), inner, max_size=3
        ),
        max_leaves=8,
    )
)
def test_odd_termination_messages_are_no_result(message: Any) -> None:
    state = {"terminated": {"exitCode": 0, "message": message}}
    pod = {
        "metadata": {"name": "p", "uid": "u"},
        "status": {"phase": "Succeeded", "containerStatuses": [{"name": "trainer", "state": state}]},
    }
    assert pod_seen(pod).result is None


def test_a_job_that_ended_keeps_its_exit_code() -> None:
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "PodFailurePolicy",
        "message": "Container trainer for pod ns/x failed with exit code 65 matching FailJob rule at index 0",
    }
    seen = job_seen({"metadata": {"name": "j", "uid": "u"}, "status": {"conditions": [failed]}})
    assert (seen.active, seen.succeeded, seen.exit_code) == (False, False, 65)
    assert job_seen({"metadata": {"name": "j", "uid": "u"}}).active
