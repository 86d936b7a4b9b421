"""Two operator processes on a real API server: the leader is killed in mid-run, the other one carries the run to its end.

The test plays the Job controller and the kubelet, which a bare control plane does not have.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from cluster.api import Api
from cluster.controlplane import ControlPlane
from cutover_operator import access
from cutover_operator.kube import KubeClient
from cutover_operator.port import CONFIG_MAPS, JOBS, LEASES, TRAINING_RUNS, KubeError
from fakes.free_ports import free_port
from fakes.training_town import NAMESPACE, RUN, SPEC, TASK, result

pytestmark = [pytest.mark.api, pytest.mark.timeout(300)]

CRDS = Path(__file__).resolve().parents[2] / "crds"
NOW = "2026-11-22T08:00:00Z"
Object = dict[str, Any]


class Replica:
    def __init__(self, name: str, kubeconfig: Path, logs: Path, namespaces: str = "") -> None:
        self.name = name
        self.port = free_port()
        self.log = logs / f"{name}.log"
        self.environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": name,
            "POD_NAMESPACE": NAMESPACE,
            "CUTOVER_OPS_PORT": str(self.port),
            "CUTOVER_TRAINER_IMAGE": "trainer:1",
            "CUTOVER_ALLOWED_URLS": "http://assessments:8080",
            "CUTOVER_WATCH_NAMESPACES": namespaces,
        }
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cutover_operator.main"],
            env=self.environment,
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
        )

    async def metric(self, session: aiohttp.ClientSession, name: str) -> float | None:
        try:
            async with session.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
                lines = (await answer.text()).splitlines()
        except aiohttp.ClientError:
            return None
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), None)

    async def leads(self, session: aiohttp.ClientSession) -> bool:
        return await self.metric(session, "cutover_operator_leader") == 1.0


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path / "plane") as running:
        yield running


async def test_killing_the_leader_loses_and_doubles_nothing(plane: ControlPlane, tmp_path: Path) -> None:
    os.environ["KUBECONFIG"] = str(plane.kubeconfig)
    replicas: list[Replica] = []
    async with KubeClient(access.access(access.credentials())) as kube, aiohttp.ClientSession() as session:
        try:
            # The operator waits for its kinds: they come after it.
            api = Api(plane.kubeconfig)
            api.call("POST", "api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
            api.call(
                "POST", f"api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}}
            )
            replicas.append(Replica("one", plane.kubeconfig, tmp_path))
            await install(kube, api)
            await waited(lambda: leading(session, replicas), 30)
            # The second one has a Role instead of a ClusterRole.
            replicas.append(Replica("two", plane.kubeconfig, tmp_path, namespaces=NAMESPACE))
            await story(kube, api, session, replicas, plane)
        except BaseException:
            for replica in replicas:
                print(replica.name, replica.log.read_text()[-6000:])
            raise
        finally:
            for replica in replicas:
                replica.process.kill()
                replica.process.wait()


async def story(
    kube: KubeClient, api: Api, session: aiohttp.ClientSession, replicas: list[Replica], plane: ControlPlane
) -> None:
    meta = {"name": "task", "namespace": NAMESPACE}
    await kube.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"task.yaml": TASK}}
    )
    await kube.create(
        {
            "apiVersion": TRAINING_RUNS.api_version,
            "kind": TRAINING_RUNS.kind,
            "metadata": {"name": RUN, "namespace": NAMESPACE},
            "spec": SPEC,
        }
    )
    await play(kube, api, "prepare", 1)
    await job(kube, "train", 1)
    leader = await waited(lambda: leading(session, replicas), 30)
    (other,) = (replica for replica in replicas if replica is not leader)

    async def standby_ready() -> bool:
        try:
            async with session.get(f"http://127.0.0.1:{other.port}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False  # its port opens when Python has read its imports

    await waited(standby_ready, 60)
    leader.process.send_signal(signal.SIGKILL)
    leader.process.wait()
    killed_at = time.monotonic()
    await play(kube, api, "train", 1)
    await job(kube, "evaluate", 1, seconds=45)
    takeover = time.monotonic() - killed_at
    print(f"next step {takeover:.1f} s after the leader was killed")
    assert takeover < 30

    # The API server restarts. The operator may end over it; then it is started again, as a kubelet would.
    plane.kill_apiserver()
    await asyncio.sleep(3)
    await asyncio.to_thread(plane.start_apiserver)
    print(
        f"the operator {'ended' if other.process.poll() is not None else 'lived on'} while the API server was away"
    )

    async def back() -> bool:
        if other.process.poll() is not None:
            other.start()
        return await other.leads(session)

    await waited(back, 40)

    async def jobs_watched() -> bool:
        served = await asyncio.to_thread(api.get, "metrics")
        watches = (one for one in served.splitlines() if one.startswith("apiserver_longrunning_requests{"))
        return any(
            'verb="WATCH"' in one and 'resource="jobs"' in one and float(one.split()[-1]) > 0
            for one in watches
        )

    await waited(jobs_watched, 40)

    # A watch event is enough: far faster than any timer.
    await play(kube, api, "evaluate", 1)
    ended_at = time.monotonic()
    await job(kube, "register", 1)
    print(f"next step {time.monotonic() - ended_at:.2f} s after a Job ended")
    assert time.monotonic() - ended_at < 5
    await play(kube, api, "register", 1)
    status = await waited(lambda: succeeded(kube), 30)
    assert status["modelText"] == "building-damage/3"
    names = sorted(one["metadata"]["labels"]["cutover.dev/stage"] for one in await kube.list(JOBS, NAMESPACE))
    assert names == ["evaluate", "prepare", "register", "train"]

    # Settled means silent.
    before = await kube.get(TRAINING_RUNS, NAMESPACE, RUN)
    await asyncio.sleep(6)
    assert before == await kube.get(TRAINING_RUNS, NAMESPACE, RUN)

    asked_at = time.monotonic()
    other.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(other.process.wait, 20) == 0
    print(f"clean end in {time.monotonic() - asked_at:.1f} s")
    record = await kube.get(LEASES, NAMESPACE, "cutover-operator")
    assert record is not None
    assert record["spec"]["holderIdentity"] == ""
    assert record["spec"]["leaseTransitions"] == 1


async def install(kube: KubeClient, api: Api) -> None:
    for file in sorted(CRDS.glob("*.yaml")):
        api.call(
            "POST", "apis/apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(file.read_text())
        )

    async def served() -> bool | None:
        try:
            await kube.list(TRAINING_RUNS, None)
        except KubeError:
            return None
        return True

    await waited(served, 30)


async def leading(session: aiohttp.ClientSession, replicas: list[Replica]) -> Replica | None:
    found = [replica for replica in replicas if await replica.leads(session)]
    assert len(found) <= 1, "two leaders"
    return found[0] if found else None


async def succeeded(kube: KubeClient) -> Object | None:
    run = await kube.get(TRAINING_RUNS, NAMESPACE, RUN) or {}
    status: Object = run.get("status", {})
    done = any(c["type"] == "Succeeded" and c["status"] == "True" for c in status.get("conditions", []))
    return status if done else None


async def job(kube: KubeClient, stage: str, attempt: int, seconds: float = 30) -> Object:
    async def found() -> Object | None:
        selector = f"cutover.dev/stage={stage},cutover.dev/attempt={attempt}"
        jobs = await kube.list(JOBS, NAMESPACE, selector)
        assert len(jobs) <= 1
        return jobs[0] if jobs else None

    return await waited(found, seconds)


async def play(kube: KubeClient, api: Api, stage: str, attempt: int) -> None:
    """The Job's pod runs and says that the stage is done; the Job is complete."""
    made = await job(kube, stage, attempt)
    meta, template = made["metadata"], made["spec"]["template"]
    assert await kube.get(CONFIG_MAPS, NAMESPACE, meta["name"]) is not None
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": meta["name"]}
    pod = await kube.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{meta['name']}-pod", "namespace": NAMESPACE, "labels": labels},
            "spec": template["spec"],
        }
    )
    ended = {
        "exitCode": 0,
        "reason": "Completed",
        "message": result(stage),
        "startedAt": NOW,
        "finishedAt": NOW,
    }
    container = {"name": "trainer", "image": "i", "imageID": "", "restartCount": 0, "ready": False}
    status = {
        "phase": "Succeeded",
        "startTime": NOW,
        "containerStatuses": [container | {"state": {"terminated": ended}}],
    }
    put_status(api, f"api/v1/namespaces/{NAMESPACE}/pods", pod, status)
    conditions = [
        {"type": type_, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": NOW}
        for type_ in ("SuccessCriteriaMet", "Complete")
    ]
    done = {"startTime": NOW, "completionTime": NOW, "succeeded": 1, "conditions": conditions}
    put_status(api, f"apis/batch/v1/namespaces/{NAMESPACE}/jobs", made, done)


def put_status(api: Api, path: str, obj: Object, status: Object) -> None:
    where = f"{path}/{obj['metadata']['name']}/status"
    api.call("PATCH", where, {"status": status}, "application/merge-patch+json")


async def waited(found: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = await found()
        if answer:
            return answer
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")
