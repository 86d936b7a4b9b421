"""What every other test on the node counts on: GPUs, volumes, names, tokens, and a second start that does nothing."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import images
from cluster.clusters import Cluster, up
from cluster.kubectl import Kubectl

pytestmark = pytest.mark.node

A100 = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return up()


@pytest.fixture(scope="module")
def probe(cluster: Cluster) -> str:
    return images.ensure(["probe"])["probe"]


@pytest.fixture
def kubectl(cluster: Cluster) -> Iterator[Kubectl]:
    name = f"cluster-{uuid.uuid4().hex[:8]}"
    commands = Kubectl(cluster.kubeconfig, name)
    commands.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    )
    yield commands
    commands("delete", "namespace", name, "--wait=false")


def pod(image: str, code: str, **more: Any) -> dict[str, Any]:
    """A pod's template which runs some Python under the strictest pod security."""
    container = {
        "name": "main",
        "image": image,
        "command": ["python", "-c", code],
        "resources": more.pop("resources", {}),
        "volumeMounts": more.pop("mounts", []),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    return {"containers": [container], "restartPolicy": "Never", "securityContext": security, **more}


def job(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": name}}, "spec": spec}},
    }


def ended(found: dict[str, Any]) -> bool:
    return bool(found["status"].get("succeeded") or found["status"].get("failed"))


def output(kubectl: Kubectl, name: str, spec: dict[str, Any]) -> str:
    """What a Job with this pod printed, once it has succeeded."""
    kubectl.apply(job(name, spec))
    found = kubectl.wait(f"job/{name}", ended, 60)
    text = kubectl("logs", f"job/{name}")
    assert found["status"].get("succeeded") == 1, text
    return text.strip()


def gpus(count: int) -> dict[str, Any]:
    return {"limits": {"nvidia.com/gpu": str(count)}}


def test_a_job_gets_the_gpu_it_asks_for(kubectl: Kubectl, probe: str) -> None:
    spec = pod(probe, "print('trained')", resources=gpus(1), nodeSelector=A100)
    assert output(kubectl, "train", spec) == "trained"


def test_too_many_gpus_leave_a_pod_pending_with_the_reason(kubectl: Kubectl, probe: str) -> None:
    kubectl.apply(job("greedy", pod(probe, "print()", resources=gpus(99), nodeSelector=A100)))

    def refused(pods: dict[str, Any]) -> bool:
        conditions = [c for found in pods["items"] for c in found["status"].get("conditions", ())]
        return any(c.get("reason") == "Unschedulable" for c in conditions)

    found = kubectl.wait("pods", refused, 20)["items"][0]
    assert found["status"]["phase"] == "Pending"
    assert "Insufficient nvidia.com/gpu" in found["status"]["conditions"][0]["message"]


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteMany"])
def test_a_claim_is_bound_and_written_without_root(kubectl: Kubectl, probe: str, mode: str) -> None:
    claim = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim}
    )
    bound = kubectl.wait("pvc/data", lambda found: found["status"].get("phase") == "Bound", 20)
    volumes = {
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        "mounts": [{"name": "data", "mountPath": "/data"}],
    }
    output(kubectl, "write", pod(probe, "open('/data/note', 'w').write('kept')", **volumes))
    volumes["mounts"] = [{"name": "data", "mountPath": "/data"}]
    assert output(kubectl, "read", pod(probe, "print(open('/data/note').read())", **volumes)) == "kept"

    kubectl("delete", "job", "--all", "--wait=true")
    kubectl("delete", "pvc", "data", "--wait=true")
    name = bound["spec"]["volumeName"]
    deadline = time.monotonic() + 20
    while kubectl("get", "pv", name, "--ignore-not-found"):
        assert time.monotonic() < deadline, "the volume outlives its claim"
        time.sleep(0.2)


def test_a_service_is_found_by_its_name(kubectl: Kubectl, probe: str) -> None:
    server = pod(probe, "import http.server as s; s.test(s.SimpleHTTPRequestHandler, port=8000)")
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service},
        job("web", server),
    )
    client = """
import time, urllib.request
for attempt in range(60):
    try:
        print(urllib.request.urlopen('http://web/', timeout=2).status); break
    except OSError as error:
        print(error)
        time.sleep(0.2)
"""
    assert output(kubectl, "client", pod(probe, client)).endswith("200")


def test_a_pod_talks_to_the_api_server_with_its_token(kubectl: Kubectl, probe: str) -> None:
    client = """
import json, ssl, urllib.request
where = '/var/run/secrets/kubernetes.io/serviceaccount/'
token = open(where + 'token').read()
request = urllib.request.Request(
    'https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews', method='POST',
    data=json.dumps({'apiVersion': 'authentication.k8s.io/v1', 'kind': 'SelfSubjectReview'}).encode(),
    headers={'Authorization': 'Bearer ' + token, 'Content-Type': 'application/json'})
context = ssl.create_default_context(cafile=where + 'ca.crt')
print(json.load(urllib.request.urlopen(request, context=context))['status']['userInfo']['username'])
"""
    name = f"system:serviceaccount:{kubectl.namespace}:default"
    assert output(kubectl, "who", pod(probe, client)) == name


def test_restricted_namespaces_refuse_root(kubectl: Kubectl, probe: str) -> None:
    spec = pod(probe, "print()")
    spec["securityContext"] = {}
    with pytest.raises(RuntimeError, match="violates PodSecurity"):
        kubectl.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": spec},
        )


def test_a_second_start_changes_nothing_and_is_quick(cluster: Cluster) -> None:
    begin = time.monotonic()
    assert up() == cluster
    assert time.monotonic() - begin < 2
