"""A training on two nodes' pods on the real node: they meet by name, one is asked to leave, one is torn away, and it ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from demo import story
from demo.stack import Stack

pytestmark = [pytest.mark.node, pytest.mark.timeout(1500)]

ROWS = 480
RUN = "two-nodes"
SELECTOR = f"cutover.dev/owner-name={RUN},cutover.dev/stage=train"
INDEX = "batch.kubernetes.io/job-completion-index"
INTERRUPTED = 75


def test_two_pods_train_together_and_losing_one_costs_no_attempt(stack: Stack) -> None:
    story.seed(stack, print, ROWS)
    manifest = stack.render(
        "trainingrun.yaml",
        LIMIT=str(ROWS),
        MIN_EXAMPLES=str(int(ROWS * 0.9)),
        EPOCHS="10",
        MIN_ACCURACY="0.1",
    )
    manifest = manifest.replace("name: damage-v1", f"name: {RUN}")
    stack.kube.apply(manifest.replace("compute: {gpus: 1,", "compute: {gpus: 1, nodes: 2, maxAttempts: 1,"))
    used: dict[str, str] = {}

    # Asked to leave: both save at one step and say so.
    first = _training(stack, 1, used)
    stack.kube.run("delete", "pod", name_of(first[1]), "--wait=false")
    left = stack.kube.wait("the other pod's end", partial(_ended, stack, first[0]), 120)
    assert left == INTERRUPTED

    # Torn away, and with it the meeting place: the other notices by itself.
    second = _training(stack, 2, used)
    stack.kube.run("delete", "pod", name_of(second[0]), "--force", "--grace-period=0")
    left = stack.kube.wait("the other pod's end", partial(_ended, stack, second[1]), 150)
    assert left == INTERRUPTED
    # A running pod is counted by the half minute; this one may not have had its first.
    del used[second[0]["metadata"]["uid"]]

    _training(stack, 3, used)
    status = story.follow_training(stack, print, RUN, 900)["status"]
    train = next(stage for stage in status["stages"] if stage["name"] == "train")
    assert (train["attempt"], train.get("failures", 0), train["state"]) == (3, 0, "Done")
    seconds = {pod["uid"]: pod["gpuSeconds"] for pod in status["pods"]}
    assert {uid for uid in used if seconds.get(uid, 0) > 0} == set(used), "a pod is not on the account"
    assert float(status["gpuHours"]) == pytest.approx(sum(seconds.values()) / 3600, abs=0.01)

    job = stack.kube.get("job", train["job"])
    assert job is not None
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["status"]["succeeded"]) == (
        "Indexed",
        2,
        2,
    )
    (service,) = stack.kube.items("services", f"cutover.dev/owner-name={RUN}")
    assert service["spec"]["clusterIP"] == "None"
    stack.kube.run("delete", "trainingrun", RUN, "--timeout=60s")
    stack.kube.wait(
        "the Service's end", lambda: not stack.kube.items("services", f"cutover.dev/owner-name={RUN}"), 60
    )


def test_a_claim_for_one_node_stops_the_run_before_its_first_job(stack: Stack) -> None:
    claim = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: for-one-node}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
"""
    stack.kube.apply(claim)
    manifest = stack.render(
        "trainingrun.yaml", LIMIT="100", MIN_EXAMPLES="10", EPOCHS="1", MIN_ACCURACY="0.1"
    )
    for before, after in (
        ("name: damage-v1", "name: not-shared"),
        ("gpus: 1,", "gpus: 1, nodes: 2,"),
        ("claim: {name: artifacts}", "claim: {name: for-one-node}"),
    ):
        assert before in manifest
        manifest = manifest.replace(before, after)
    stack.kube.apply(manifest)

    def stalled() -> str | None:
        run = stack.kube.get("trainingrun", "not-shared") or {}
        conditions = {c["type"]: c for c in (run.get("status") or {}).get("conditions", [])}
        found = conditions.get("Stalled", {})
        return found["message"] if found.get("reason") == "ClaimNotShared" else None

    message = stack.kube.wait("Stalled=True", stalled, 60)
    for word in ("spec.output.claim.name", "'for-one-node'", "ReadWriteOnce", "ReadWriteMany"):
        assert word in message
    assert stack.kube.items("jobs", "cutover.dev/owner-name=not-shared") == []
    stack.kube.run("delete", "trainingrun", "not-shared", "--timeout=60s")
    stack.kube.run("delete", "pvc", "for-one-node", "--timeout=60s")


def _training(stack: Stack, attempt: int, used: dict[str, str]) -> list[dict[str, Any]]:
    """The attempt's pods by index, once steps are taken; their uids go on the account of `used`."""

    def at_work() -> list[dict[str, Any]] | None:
        pods = stack.kube.items("pods", f"{SELECTOR},cutover.dev/attempt={attempt}")
        by_index = {int(pod["metadata"]["labels"][INDEX]): pod for pod in pods}
        if set(by_index) != {0, 1} or any(pod["status"].get("phase") != "Running" for pod in pods):
            return None
        log = stack.kube.run("logs", name_of(by_index[0]))
        # Not before there is something to lose.
        return [by_index[0], by_index[1]] if '"progress"' in log else None

    pods = stack.kube.wait(f"steps of attempt {attempt}", at_work, 600)
    used.update({pod["metadata"]["uid"]: name_of(pod) for pod in pods})
    return pods


def _ended(stack: Stack, pod: dict[str, Any]) -> int | None:
    """Exit code of the pod; also where the Job has deleted it meanwhile, which its own word outlives."""
    found = stack.kube.get("pod", name_of(pod))
    if found is not None:
        state = found["status"]["containerStatuses"][0]["state"]
        return int(state["terminated"]["exitCode"]) if "terminated" in state else None
    run = stack.kube.get("trainingrun", RUN) or {}
    train = next(stage for stage in run["status"]["stages"] if stage["name"] == "train")
    return INTERRUPTED if train.get("failures", 0) == 0 and train["state"] != "Failed" else -1


def name_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])
