"""The operator's client against a real API server: what compare-and-swap, apply and delete promise is what happens."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from cluster.api import Api, ApiError
from cluster.controlplane import ControlPlane
from cutover_operator import access
from cutover_operator.kube import KubeClient
from cutover_operator.lease import Lease
from cutover_operator.loop import Loop
from cutover_operator.plan import Key, Notice, Plan, SetFinalizer
from cutover_operator.port import (
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    LEASES,
    MODEL_ROLLOUTS,
    SERVICES,
    TRAINING_RUNS,
    Conflict,
    Invalid,
    KubeError,
)
from cutover_operator.rollout.reconciler import RolloutReconciler
from cutover_operator.training.reconciler import TrainingReconciler
from fakes.kube import FakeKube
from fakes.rollout_town import rollout_spec
from fakes.search_town import searching
from fakes.training_town import KEY, NAMESPACE, RUN, SETTINGS, SPEC, START, TASK

pytestmark = [pytest.mark.api, pytest.mark.timeout(300)]

CRDS = Path(__file__).resolve().parents[2] / "crds"
NOW = "2026-11-24T19:00:00Z"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("plane")) as running:
        asyncio.run(install(running))
        yield running


async def install(running: ControlPlane) -> None:
    api = Api(running.kubeconfig)
    for file in sorted(CRDS.glob("*.yaml")):
        api.call(
            "POST", "apis/apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(file.read_text())
        )
    api.call("POST", "api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    async with client(running) as kube:
        for _ in range(200):
            try:
                await kube.list(TRAINING_RUNS, None)
                return
            except KubeError:
                await asyncio.sleep(0.1)
    raise AssertionError("the custom resources are not served")


def client(plane: ControlPlane) -> KubeClient:
    os.environ["KUBECONFIG"] = str(plane.kubeconfig)
    return KubeClient(access.access(access.credentials()))


@pytest.fixture
async def kube(plane: ControlPlane) -> AsyncIterator[KubeClient]:
    async with client(plane) as one:
        yield one


def run_object(name: str) -> Object:
    return {
        "apiVersion": TRAINING_RUNS.api_version,
        "kind": TRAINING_RUNS.kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": copy.deepcopy(SPEC),
    }


def note(name: str, **data: str) -> Object:
    meta = {"name": name, "namespace": NAMESPACE, "labels": {"kind": "note"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


async def test_a_stale_status_is_refused_and_the_same_one_changes_nothing(kube: KubeClient) -> None:
    made = await kube.create(run_object("swap"))
    condition = {
        "type": "Stalled",
        "status": "True",
        "reason": "Because",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-11-22T08:00:00Z",
    }
    wanted = {**_identity(made), "status": {"stage": "train", "conditions": [condition]}}
    first = await kube.apply_status(wanted)
    with pytest.raises(Conflict):
        await kube.apply_status(wanted)
    again = await kube.apply_status({**_identity(first), "status": wanted["status"]})
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    dropped = await kube.apply_status({**_identity(again), "status": {"stage": "train", "conditions": []}})
    assert not dropped["status"].get("conditions")
    with pytest.raises(Invalid):
        await kube.apply_status({**_identity(dropped), "status": {"stage": "x" * 100}})
    with pytest.raises(KubeError, match="404"):
        await kube.apply_status({**_identity(dropped, name="nobody"), "status": {}})


async def test_what_is_not_applied_again_goes_away_in_both_servers_alike(kube: KubeClient) -> None:
    fake = FakeKube()
    ends = []
    for server in (kube, fake):
        await server.apply(note("mine", a="1", b="2"))
        kept = await server.apply(note("mine", b="3"))
        again = await server.apply(note("mine", b="3"))
        assert again["metadata"]["resourceVersion"] == kept["metadata"]["resourceVersion"]
        ends.append(again["data"])
        with pytest.raises(Conflict):
            await server.create(note("mine"))
        with pytest.raises(Conflict):
            await server.replace({**note("mine"), "metadata": {**again["metadata"], "resourceVersion": "1"}})
        with pytest.raises(Conflict):
            await server.delete(CONFIG_MAPS, NAMESPACE, "mine", uid="11111111-0000-4000-8000-000000000000")
        await server.delete(CONFIG_MAPS, NAMESPACE, "mine", uid=again["metadata"]["uid"])
        await server.delete(CONFIG_MAPS, NAMESPACE, "mine")
        assert await server.get(CONFIG_MAPS, NAMESPACE, "mine") is None
    assert ends == [{"b": "3"}, {"b": "3"}]


async def test_long_lists_come_whole(kube: KubeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutover_operator.kube.PAGE", 7)
    monkeypatch.setattr("cutover_operator.kube.NAMES_PAGE", 7)
    for number in range(20):
        await kube.apply(note(f"page-{number}"))
    found = await kube.list(CONFIG_MAPS, NAMESPACE, "kind=note")
    assert len({one["metadata"]["name"] for one in found}) == 20
    assert {one["kind"] for one in found} == {"ConfigMap"}
    names = {name async for _, name in kube.names(CONFIG_MAPS, NAMESPACE)}
    assert names >= {f"page-{number}" for number in range(20)}


async def test_one_of_five_takes_the_lease_and_the_next_after_a_release(kube: KubeClient) -> None:
    leases = [Lease(kube, NAMESPACE, "race", f"replica-{n}", retry_seconds=0.05) for n in range(5)]
    tasks = [asyncio.create_task(lease.acquire()) for lease in leases]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.3)
    held = [lease for lease in leases if lease.held]
    assert len(held) == 1
    await held[0].release()
    deadline = asyncio.get_running_loop().time() + 10
    while not any(lease.held for lease in leases if lease is not held[0]):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    record = await kube.get(LEASES, NAMESPACE, "race")
    assert record is not None
    assert record["spec"]["leaseTransitions"] == 1


async def test_a_finalizer_is_put_on_and_taken_off_and_never_revives(kube: KubeClient) -> None:
    made = await kube.create(run_object("finalizer"))

    class Plain:
        resource = TRAINING_RUNS

        def __init__(self) -> None:
            self.plan = Plan()
            self.parent: Object = made

        async def gather(self, key: object, now: object) -> Any:
            return self

        def decide(self, world: object, now: object) -> Plan:
            return self.plan

    plain = Plain()
    loop = Loop(kube, [plain], lambda: START)
    key = type(KEY)(TRAINING_RUNS, NAMESPACE, "finalizer")
    plain.plan = Plan(before=(SetFinalizer(True),), status={"stage": "x"}, notices=(Notice("Said", "hello"),))
    await loop.run_pass(key)
    live = await kube.get(TRAINING_RUNS, NAMESPACE, "finalizer")
    assert live is not None
    assert live["metadata"]["finalizers"] == ["cutover.dev/route"]
    assert live["status"]["stage"] == "x"
    await kube.delete(TRAINING_RUNS, NAMESPACE, "finalizer")
    plain.parent = await kube.get(TRAINING_RUNS, NAMESPACE, "finalizer") or {}
    plain.plan = Plan(after=(SetFinalizer(False),))
    await loop.run_pass(key)
    assert await kube.get(TRAINING_RUNS, NAMESPACE, "finalizer") is None
    plain.plan = Plan(after=(SetFinalizer(True),))
    plain.parent["metadata"]["finalizers"] = []
    with pytest.raises(KubeError):
        await loop.run_pass(key)
    assert await kube.get(TRAINING_RUNS, NAMESPACE, "finalizer") is None


async def test_events_said_twice_are_counted_not_doubled(kube: KubeClient) -> None:
    made = await kube.create(run_object("eventful"))
    from cutover_operator import events

    for _ in range(3):
        await events.record(kube, made, Notice("StageStarted", "train", about="train-1"), START)
    found = [one for one in await kube.list(EVENTS, NAMESPACE) if one["involvedObject"]["name"] == "eventful"]
    assert [one["count"] for one in found] == [3]


async def test_a_real_api_server_accepts_every_stage_and_a_settled_run_is_left_alone(
    kube: KubeClient,
) -> None:
    """The Jobs as built are admitted, read back alike, and a second pass over the same state writes nothing."""
    task = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "task", "namespace": NAMESPACE}}
    await kube.apply({**task, "data": {"task.yaml": TASK}})
    made = run_object(RUN)
    made["spec"]["compute"] |= {
        "memory": "64Gi",
        "cpu": "8",
        "tolerations": [{"key": "x", "operator": "Exists"}],
    }
    await kube.create(made)
    loop = Loop(kube, [TrainingReconciler(kube, SETTINGS)], lambda: START)
    await loop.run_pass(KEY)
    jobs = await kube.list(JOBS, NAMESPACE)
    assert [job["metadata"]["labels"]["cutover.dev/stage"] for job in jobs] == ["prepare"]
    first = await kube.get(TRAINING_RUNS, NAMESPACE, RUN)
    await loop.run_pass(KEY)
    second = await kube.get(TRAINING_RUNS, NAMESPACE, RUN)
    assert first is not None
    assert second is not None
    # The first pass said that the stage starts, the second that its pod is awaited; a third changes nothing.
    await loop.run_pass(KEY)
    third = await kube.get(TRAINING_RUNS, NAMESPACE, RUN)
    assert third == second
    assert third["status"]["conditions"][0]["type"] == "DataReady"
    # A change of what artifacts are made from is refused from now on.
    changed = copy.deepcopy(third)
    changed["spec"]["dataset"]["limit"] = 15000
    with pytest.raises(Invalid, match="cannot change once the run has started"):
        await kube.replace(changed)
    await kube.delete(TRAINING_RUNS, NAMESPACE, RUN)


async def test_a_real_api_server_takes_the_trials_of_a_search(kube: KubeClient) -> None:
    """Made once, suspended and woken by apply, left alone otherwise; what they train for never changes."""
    task = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "task", "namespace": NAMESPACE}}
    await kube.apply({**task, "data": {"task.yaml": TASK}})
    made = run_object("wide-search")
    made["spec"] |= searching(trials=3)
    parent = await kube.create(made)
    prepared = {"name": "prepare", "state": "Done", "attempt": 1}
    await kube.apply_status({**_identity(parent), "status": {"stage": "tune", "stages": [prepared]}})
    loop = Loop(kube, [TrainingReconciler(kube, SETTINGS)], lambda: START)
    key = Key(TRAINING_RUNS, NAMESPACE, "wide-search")

    async def trial() -> Object:
        mine = "cutover.dev/owner-name=wide-search"
        (one,) = await kube.list(TRAINING_RUNS, NAMESPACE, mine)
        return one

    async def suspend(wanted: bool) -> None:
        run = await kube.get(TRAINING_RUNS, NAMESPACE, "wide-search")
        assert run is not None
        run["spec"]["suspend"] = wanted
        await kube.replace(run)

    await loop.run_pass(key)
    child = await trial()
    assert child["spec"]["trial"]["epochs"] == 3
    mine = Key(TRAINING_RUNS, NAMESPACE, child["metadata"]["name"])
    await loop.run_pass(mine)
    jobs = [job["metadata"]["labels"] for job in await kube.list(JOBS, NAMESPACE)]
    assert [job["cutover.dev/stage"] for job in jobs if job["cutover.dev/owner-name"] == mine.name] == [
        "train"
    ]

    started = await trial()
    await loop.run_pass(key)
    await loop.run_pass(key)
    assert await trial() == started
    await suspend(True)
    await loop.run_pass(key)
    assert (await trial())["spec"]["suspend"] is True
    await suspend(False)
    await loop.run_pass(key)
    woken = await trial()
    assert woken["spec"] == started["spec"]
    assert woken["metadata"]["labels"] == started["metadata"]["labels"]
    await kube.delete(TRAINING_RUNS, NAMESPACE, mine.name)
    await kube.delete(TRAINING_RUNS, NAMESPACE, "wide-search")


async def test_a_real_api_server_takes_a_training_on_sixteen_nodes_under_the_longest_name(
    kube: KubeClient,
) -> None:
    """Hosts and Service are single DNS labels of 63 characters at most."""
    name = "damage-of-buildings-".ljust(52, "x")
    await about_to_train(kube, name, SPEC | {"compute": {"gpus": 8, "nodes": 16}})
    await Loop(kube, [TrainingReconciler(kube, SETTINGS)], lambda: START).run_pass(
        Key(TRAINING_RUNS, NAMESPACE, name)
    )
    mine = f"cutover.dev/owner-name={name}"
    (job,) = await kube.list(JOBS, NAMESPACE, mine)
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 16)
    (service,) = await kube.list(SERVICES, NAMESPACE, mine)
    assert service["spec"]["clusterIP"] == "None"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    await kube.delete(JOBS, NAMESPACE, job["metadata"]["name"])
    await kube.delete(TRAINING_RUNS, NAMESPACE, name)


async def test_a_claim_for_one_node_is_noticed(kube: KubeClient) -> None:
    claim: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "for-one-node", "namespace": NAMESPACE},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    await kube.create(claim)
    wide = {"compute": {"gpus": 1, "nodes": 2}, "output": {"claim": {"name": "for-one-node"}}}
    await about_to_train(kube, "not-shared", SPEC | wide)
    await Loop(kube, [TrainingReconciler(kube, SETTINGS)], lambda: START).run_pass(
        Key(TRAINING_RUNS, NAMESPACE, "not-shared")
    )
    stalled = await kube.get(TRAINING_RUNS, NAMESPACE, "not-shared")
    assert stalled is not None
    assert stalled["status"]["reason"] == "ClaimNotShared"
    await kube.delete(TRAINING_RUNS, NAMESPACE, "not-shared")


async def test_a_real_api_server_takes_the_job_that_tells_mlflow_and_its_end_is_seen(
    plane: ControlPlane, kube: KubeClient
) -> None:
    """Made once from the committed status, found again by name, and its end said in the condition."""
    mlflow = {
        "url": "http://mlflow:5000",
        "modelName": "damage",
        "version": "7",
        "secretRef": {"name": "mlflow"},
    }
    candidate = {"model": {"uri": "http://vlm:8000/v1", "version": "v7", "mlflow": mlflow}}
    spec = rollout_spec(candidate=candidate, serving={"engine": "external"})
    name = "damage-of-buildings-".ljust(52, "x")
    meta = {"name": name, "namespace": NAMESPACE}
    made = await kube.create(
        {"apiVersion": MODEL_ROLLOUTS.api_version, "kind": "ModelRollout", "metadata": meta, "spec": spec}
    )
    promoted = {"phase": "Promoted", "finish": "Promoted", "finishedAt": "2026-11-24T19:00:00.000Z"}
    await kube.apply_status({**_identity(made), "status": {**promoted, "candidateVersion": "v7"}})
    settings = replace(SETTINGS, allowed_urls=("http://mlflow:5000",))
    key = Key(MODEL_ROLLOUTS, NAMESPACE, name)
    mine = f"cutover.dev/owner-name={name}"
    async with aiohttp.ClientSession() as session:
        loop = Loop(kube, [RolloutReconciler(kube, settings, session)], lambda: START)
        for _ in range(3):
            await loop.run_pass(key)
        (job,) = await kube.list(JOBS, NAMESPACE, mine)
        admitted_where_only_restricted_pods_are(Api(plane.kubeconfig), job["spec"]["template"])
        registry = (await status_of(kube, key))["registry"]
        assert (registry["state"], registry["job"]) == ("Running", job["metadata"]["name"])
        conditions = [
            {"type": one, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": NOW}
            for one in ("SuccessCriteriaMet", "Complete")
        ]
        done = {"startTime": NOW, "completionTime": NOW, "succeeded": 1, "conditions": conditions}
        path = f"apis/batch/v1/namespaces/{NAMESPACE}/jobs/{job['metadata']['name']}/status"
        Api(plane.kubeconfig).call("PATCH", path, {"status": done}, "application/merge-patch+json")
        await loop.run_pass(key)
        settled = await status_of(kube, key)
        await loop.run_pass(key)
        assert await status_of(kube, key) == settled
    (said,) = (one for one in settled["conditions"] if one["type"] == "RegistryUpdated")
    assert (said["status"], said["reason"]) == ("True", "Told")
    assert settled["finish"] == "Promoted"
    assert len(await kube.list(JOBS, NAMESPACE, mine)) == 1


def admitted_where_only_restricted_pods_are(api: Api, template: Object) -> None:
    """Judged by the API server itself."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.call("POST", "api/v1/namespaces", {"metadata": {"name": "restricted", "labels": labels}})
    api.call("POST", "api/v1/namespaces/restricted/serviceaccounts", {"metadata": {"name": "default"}})
    pod = {"metadata": {"name": "pod", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    path = "api/v1/namespaces/restricted/pods?dryRun=All"
    assert api.call("POST", path, pod)["metadata"]["name"] == "pod"
    del template["spec"]["containers"][0]["securityContext"]
    with pytest.raises(ApiError, match="violates PodSecurity"):
        api.call("POST", path, pod)


async def status_of(kube: KubeClient, key: Key) -> Object:
    found = await kube.get(key.resource, key.namespace, key.name)
    assert found is not None
    return dict(found["status"])


async def about_to_train(kube: KubeClient, name: str, spec: Object) -> None:
    task = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "task", "namespace": NAMESPACE}}
    await kube.apply({**task, "data": {"task.yaml": TASK}})
    parent = await kube.create(run_object(name) | {"spec": copy.deepcopy(spec)})
    prepared = {"name": "prepare", "state": "Done", "attempt": 1}
    await kube.apply_status({**_identity(parent), "status": {"stage": "train", "stages": [prepared]}})


def _identity(obj: Object, name: str | None = None) -> Object:
    meta = obj["metadata"]
    identity = {
        "name": name or meta["name"],
        "namespace": NAMESPACE,
        "resourceVersion": meta["resourceVersion"],
    }
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": identity}
