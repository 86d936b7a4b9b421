"""A training on several nodes as the operator sees it: its objects, its ends, its claims, and its story on a clock."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cutover.api.trainingrun import TrainingRun, TrainingRunSpec
from cutover.contract import PORT_NODES, ExitCode
from cutover.stages import StageResult
from cutover.task import Task
from cutover_operator.plan import Delete
from cutover_operator.port import JOBS, PODS, SERVICES
from cutover_operator.training.decide import decide
from cutover_operator.training.observed import JobSeen, PodSeen, job_seen, pod_seen
from cutover_operator.training.outcome import judge
from cutover_operator.training.resources import Attempt, Built, build, job_name
from cutover_operator.training.settle import LINGER_SECONDS
from cutover_operator.training.sharing import not_shared, service_name
from cutover_operator.training.world import Site, World
from fakes.training_town import (
    CRASHED,
    DONE,
    INTERRUPTED,
    NAMESPACE,
    RUN,
    SPEC,
    START,
    TASK,
    Ending,
    Town,
    bad_input,
)

READ_TASK = Task.model_validate(yaml.safe_load(TASK))
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
DNS_LIMIT = 63
MOST_NODES = 16
NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", fullmatch=True)


def built(
    stage: Any = "train", number: int = 1, name: str = "run", left: float = 7200.0, **compute: Any
) -> Built:
    spec = TrainingRunSpec.model_validate({**SPEC, "compute": {"gpus": 2, "nodes": 3, **compute}})
    return build(Attempt("ns", name, "u" * 36, spec, READ_TASK, stage, number, "trainer:1", left))


def spec_of(**more: Any) -> TrainingRunSpec:
    return TrainingRunSpec.model_validate({**SPEC, "compute": {"gpus": 1, "nodes": 2}, **more})


def test_the_job_has_a_pod_for_every_node_and_ends_with_any_of_them() -> None:
    job = built().job["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 3, 3)
    assert (job["backoffLimit"], job["podReplacementPolicy"]) == (0, "Failed")
    # One pod alone cannot take a lost one's place: all meet anew in the next attempt.
    assert "backoffLimitPerIndex" not in job
    assert {rule["action"] for rule in job["podFailurePolicy"]["rules"]} == {"FailJob"}
    assert "ttlSecondsAfterFinished" not in job
    assert job_seen(built().job | {"metadata": built().job["metadata"] | {"uid": "u"}}).pods == 3


def test_the_pods_are_as_restricted_and_as_tolerant_as_one() -> None:
    several, one = (built(nodes=nodes).job["spec"]["template"]["spec"] for nodes in (3, 1))
    for field in (
        "securityContext",
        "tolerations",
        "nodeSelector",
        "restartPolicy",
        "automountServiceAccountToken",
    ):
        assert several[field] == one[field]
    assert several["containers"][0]["securityContext"] == one["containers"][0]["securityContext"]
    assert several["containers"][0]["resources"] == one["containers"][0]["resources"]
    assert "suspend" not in built().job["spec"]
    queued = built(queueName="gpus").job
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_the_time_that_is_left_is_shared_by_all_pods() -> None:
    assert built().job["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 7200 / (2 * 3) + 300
    assert built(nodes=1).job["spec"]["template"]["spec"]["activeDeadlineSeconds"] == 7200 / 2 + 300


def test_the_pods_find_the_first_by_a_service_without_an_address() -> None:
    one = built(name="damage.v1")
    assert one.service is not None
    service, pod = one.service["spec"], one.job["spec"]["template"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert "cutover.dev/attempt" not in {**service["selector"], **one.service["metadata"]["labels"]}
    assert one.service["metadata"]["ownerReferences"][0]["uid"] == "u" * 36
    name = one.service["metadata"]["name"]
    assert pod["spec"]["subdomain"] == name
    environment = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
    assert environment["CUTOVER_LEADER"] == f"{one.name}-0.{name}:{PORT_NODES}"


def test_attempts_share_a_service_and_have_hosts_of_their_own() -> None:
    first, second = built(number=1), built(number=2)
    assert first.service == second.service
    assert first.name != second.name
    assert built(nodes=2).name != built(nodes=3).name


@pytest.mark.parametrize("stage", ["prepare", "evaluate", "register"])
def test_the_other_stages_have_one_pod(stage: str) -> None:
    one = built(stage)
    assert (one.service, one.job["spec"]["completions"]) == (None, 1)
    assert "completionMode" not in one.job["spec"]
    assert "subdomain" not in one.job["spec"]["template"]["spec"]


@given(NAMES, st.integers(1, 10**6), st.uuids())
def test_hosts_and_service_are_single_dns_labels(run: str, number: int, uid: Any) -> None:
    job = job_name(run, "train", number, "0123abcd", indexed=True)
    service = service_name(run, str(uid))
    for name in (f"{job}-{MOST_NODES - 1}", service):
        assert LABEL.fullmatch(name), name
        assert len(name) <= DNS_LIMIT
    assert service[0].isalpha()


# ------------------------------------------------------------------ how an attempt ended
JOB = JobSeen("run-train-1", "uid", "train", 1, active=False, pods=3)
WORDS = StageResult(stage="train", outcome="done", message="30 steps")


def pod(index: int, code: int | None, **more: Any) -> PodSeen:
    return PodSeen(
        f"p{index}", f"u{index}", JOB.name, "train", "u" * 36, True, exit_code=code, index=index, **more
    )


@pytest.mark.parametrize(
    ("ends", "kind", "reason"),
    [
        # One node was taken away: its pod says so or is gone, the others leave as interrupted.
        ([{"code": 137, "disrupted": True}, {"code": 75}, {"code": 75}], "interrupted", None),
        ([{"code": 75}, {"code": 75}], "interrupted", "Interrupted"),
        ([], "interrupted", "PodGone"),
        # The last ones are still deleted by the Job when the first has ended.
        (
            [{"code": 75}, {"code": 137, "delete_by": START}, {"code": 1, "delete_by": START}],
            "interrupted",
            None,
        ),
        # What one has done wrong counts, although the others were only interrupted by it.
        ([{"code": 75}, {"code": 137, "killed_for": "OOMKilled"}, {"code": 75}], "failed", "OutOfMemory"),
        ([{"code": 1}, {"code": 1}, {"code": 1}], "failed", "StageFailed"),
        ([{"code": 75}, {"code": None, "reason": "Evicted", "disrupted": True}], "failed", "Evicted"),
        ([{"code": 75, "reason": "Evicted", "disrupted": True}, {"code": 75}], "failed", "Evicted"),
        ([{"code": 65}, {"code": 1}, {"code": 75}], "badInput", "BadInput"),
        # One that was done before another was lost is not to blame, and the next attempt answers at once.
        ([{"code": 0}, {"code": 137, "disrupted": True}], "interrupted", "PodDisrupted"),
        ([{"code": 0}, {"code": 0}], "interrupted", "PodGone"),
    ],
)
def test_how_a_set_of_pods_ended(ends: list[dict[str, Any]], kind: str, reason: str | None) -> None:
    codes = [end["code"] for end in ends if end["code"]]
    for order in (ends, ends[::-1]):
        pods = [pod(index, **end) for index, end in enumerate(order)]
        # The Job tells the exit code of the pod that it saw first, whichever that was.
        for text in ("", *(f"Container trainer failed with exit code {code}" for code in codes)):
            outcome = judge("train", replace(JOB, message=text), pods)
            assert outcome.kind == kind
            assert reason in (None, outcome.reason)


def test_done_is_done_whichever_pod_is_left_to_say_it() -> None:
    job = JobSeen("run-train-1", "uid", "train", 1, active=False, succeeded=True, pods=3)
    assert judge("train", job, [pod(0, 0, result=WORDS)]).kind == "done"
    assert judge("train", job, [pod(1, 0), pod(2, 0, result=WORDS)]).message == "30 steps"
    assert judge("train", job, [pod(0, 0), pod(1, 0)]).reason == "NoResult"
    assert judge("train", job, []).reason == "ResultGone"


def test_a_pods_place_is_read_from_its_label() -> None:
    meta = {"name": "p", "uid": "u", "labels": {"batch.kubernetes.io/job-completion-index": "7"}}
    assert pod_seen({"metadata": meta}).index == 7
    assert pod_seen({"metadata": {"name": "p", "uid": "u"}}).index == 0


def world_of(job: JobSeen, *pods: PodSeen) -> World:
    """In the first attempt of the training."""
    stages = [
        {"name": "prepare", "state": "Done"},
        {"name": "train", "state": "Running", "attempt": 1, "job": job.name},
    ]
    parent: Any = {
        "apiVersion": "cutover.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": RUN, "namespace": NAMESPACE, "uid": "u" * 36, "generation": 1},
        "spec": SPEC | {"compute": {"gpus": 1, "nodes": 2}},
        "status": {"observedGeneration": 1, "stage": "train", "stages": stages},
    }
    site = Site(("http://assessments:8080",), "trainer:1")
    return World(parent, TrainingRun.from_object(parent), READ_TASK, site, (job,), pods)


FAILING = JobSeen("run-train-1", "uid", "train", 1, active=True, pods=2, failing=True, message="exit code 75")


def test_a_node_without_power_does_not_hold_the_next_attempt_for_ever() -> None:
    """Its pod cannot end, so its Job never counts as failed; the pods of the others have said why they left."""
    job, left, asked = FAILING, pod(0, 75), START + timedelta(seconds=60)
    dark = replace(pod(1, None), over=False, running=True, delete_by=asked)
    world = world_of(job, left, dark)
    early = decide(world, asked + timedelta(seconds=LINGER_SECONDS - 1))
    assert early.status is not None
    assert (early.status["reason"], early.status["stages"][1]["state"]) == ("StageEnding", "Running")
    late = decide(world, asked + timedelta(seconds=LINGER_SECONDS))
    assert late.status is not None
    assert (late.status["stages"][1]["state"], late.status["stages"][1].get("failures", 0)) == ("Waiting", 0)
    assert [action.name for action in late.after if isinstance(action, Delete)] == [job.name]


@pytest.mark.parametrize("pods", [(pod(0, 1), pod(1, 1)), (pod(0, 65),), ()])
def test_a_job_that_is_about_to_count_as_failed_is_not_deleted_with_its_logs(
    pods: tuple[PodSeen, ...],
) -> None:
    """Its controller says FailureTarget first, and Failed a moment later, when the pods have ended."""
    plan = decide(world_of(FAILING, *pods), START)
    assert plan.after == ()
    assert plan.status is not None
    assert (plan.status["reason"], plan.status["stages"][1]["state"]) == ("StageEnding", "Running")
    plan = decide(world_of(replace(FAILING, active=False), *pods), START)
    assert plan.after == ()
    assert plan.status is not None
    assert plan.status["stages"][1]["state"] == ("Failed" if len(pods) == 1 else "Waiting")


# ------------------------------------------------------------------ claims
@pytest.mark.parametrize(
    "modes", [("ReadWriteOnce",), ("ReadWriteOncePod",), ("ReadWriteOnce", "ReadOnlyMany")]
)
def test_a_claim_for_one_node_is_refused_with_field_value_and_remedy(modes: tuple[str, ...]) -> None:
    text = not_shared(spec_of(), {"artifacts": modes, "models": ("ReadOnlyMany",)})
    for word in (
        "spec.output.claim.name",
        "'artifacts'",
        modes[0],
        "ReadWriteMany",
        "compute.nodes is 2",
        "s3://",
    ):
        assert word in text


def test_the_base_model_may_be_read_only() -> None:
    text = not_shared(spec_of(), {"artifacts": ("ReadWriteMany",), "models": ("ReadWriteOnce",)})
    assert "spec.baseModel.uri" in text
    assert not_shared(spec_of(), {"artifacts": ("ReadWriteMany",), "models": ("ReadOnlyMany",)}) == ""


def test_object_stores_claims_to_come_and_a_single_node_pass() -> None:
    bucket = spec_of(output={"uri": "s3://b/x"}, baseModel={"uri": "hf://org/name"})
    assert not_shared(bucket, {"artifacts": ("ReadWriteOnce",)}) == ""
    assert not_shared(spec_of(), {}) == ""
    assert not_shared(spec_of(compute={"nodes": 1}), {"artifacts": ("ReadWriteOnce",)}) == ""


# ------------------------------------------------------------------ on a clock
async def opened(*train: Ending | tuple[Ending, ...], mode: str = "ReadWriteMany", **compute: Any) -> Town:
    town = Town(spec={"compute": {**SPEC["compute"], "nodes": 2, **compute}}, behave={"train": list(train)})
    await town.open()
    for name in ("artifacts", "models"):
        town.kube.force(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"accessModes": [mode]},
            }
        )
    return town


async def test_two_nodes_train_and_one_pod_does_the_rest() -> None:
    town = await opened(Ending(seconds=1800))
    await town.until(lambda: town.over, step=30)
    assert town.condition("Succeeded") == ("True", "Succeeded")
    assert town.jobs() == ["prepare-1", "train-1", "evaluate-1", "register-1"]
    # Half an hour on two cards, and a minute of evaluation.
    assert sorted(use["gpuSeconds"] for use in town.status["pods"]) == [60.0, 1800.0, 1800.0]
    (service,) = town.kube.all(SERVICES)
    assert service["metadata"]["name"].startswith(f"nodes-{RUN}-")


async def test_the_status_says_how_many_pods_are_awaited() -> None:
    waits = Ending(trouble=("ContainerCreating", "its volume is mounted"))
    town = await opened((Ending(seconds=600), waits))
    await town.until(lambda: town.status.get("stage") == "train" and len(town.kube.all(PODS)) == 3)
    await town.run_pass()
    assert town.status["reason"] == "ContainerCreating"
    town.behave["train"] = [Ending(seconds=600)]
    await town.until(lambda: town.status["reason"] == "StageRunning", seconds=60)
    message = next(one["message"] for one in town.status["conditions"] if one["type"] == "Reconciling")
    assert "on 2 nodes" in message


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_lost_node_costs_no_attempt_and_all_its_seconds(lost: int) -> None:
    gone, left = (
        Ending(seconds=300, lost=True),
        Ending(seconds=330, code=int(ExitCode.INTERRUPTED), message=""),
    )
    town = await opened((gone, left) if lost == 0 else (left, gone), DONE, maxAttempts=1)
    await town.until(lambda: town.over, step=10)
    assert town.condition("Succeeded") == ("True", "Succeeded")
    assert town.jobs() == ["prepare-1", "train-1", "train-2", "evaluate-1", "register-1"]
    assert town.stage("train").get("failures", 0) == 0
    # The attempt of the lost node, two pods of the next one, and the evaluation.
    assert len(town.status["pods"]) == 5


async def test_an_agreed_stop_costs_no_attempt() -> None:
    town = await opened((INTERRUPTED, INTERRUPTED), DONE, maxAttempts=1)
    await town.until(lambda: town.over, step=10)
    assert town.condition("Succeeded") == ("True", "Succeeded")
    assert town.stage("train")["attempt"] == 2


async def test_a_node_that_fails_uses_an_attempt_up() -> None:
    town = await opened((INTERRUPTED, CRASHED), maxAttempts=1)
    await town.until(lambda: town.over, step=10)
    assert town.stage("train")["state"] == "Failed"
    assert "compute.maxAttempts 1" in town.stage("train")["message"]


async def test_a_refusal_by_any_node_ends_the_run() -> None:
    refused = bad_input("train", "NoTargets", "fineTune.lora.targets: no layer")
    town = await opened((Ending(code=75, message=""), refused))
    await town.until(lambda: town.over, step=10)
    assert "fineTune.lora.targets" in town.stage("train")["message"]
    assert town.jobs() == ["prepare-1", "train-1"]


async def test_a_claim_for_one_node_stops_the_run_before_its_first_job() -> None:
    town = await opened(DONE, mode="ReadWriteOnce")
    await town.run_pass()
    assert town.condition("Stalled") == ("True", "ClaimNotShared")
    assert town.kube.all(JOBS) == []
    claim: Any = {"spec": {"accessModes": ["ReadWriteMany"]}}
    for name in ("artifacts", "models"):
        meta = {"name": name, "namespace": NAMESPACE}
        town.kube.force({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, **claim})
    await town.until(lambda: town.over, step=30)
    assert town.condition("Succeeded") == ("True", "Succeeded")


async def test_the_job_of_a_committed_attempt_is_made_again_with_its_service() -> None:
    town = await opened(DONE)
    await town.until(lambda: town.status.get("stage") == "train" and "train-1" in town.jobs())
    name = town.stage("train")["job"]
    town.kube.vanish(JOBS, NAMESPACE, name)
    for one in town.kube.each(PODS):
        if one["metadata"]["labels"]["batch.kubernetes.io/job-name"] == name:
            town.kube.vanish(PODS, NAMESPACE, one["metadata"]["name"])
    (service,) = town.kube.all(SERVICES)
    town.kube.vanish(SERVICES, NAMESPACE, service["metadata"]["name"])
    await town.run_pass()
    assert town.stage("train")["job"] == name
    assert len(town.kube.all(SERVICES)) == 1
