"""The chart on a real API server: installed, upgraded, removed; its pods admitted; its accounts allowed what they need."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import tools
from cluster.api import Api, ApiError
from cluster.controlplane import ControlPlane

pytestmark = pytest.mark.chart
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/cutover"
SPACE = "cutover-test"
RBAC = "apis/authorization.k8s.io/v1/subjectaccessreviews"
CRDS = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LEASE = "cutover-operator"
Json = dict[str, Any]


class Release:
    """Cutover as helm put it there, nothing running."""

    def __init__(self, kubeconfig: Path, values: Path) -> None:
        self.api = Api(kubeconfig)
        self._kubeconfig, self._values = kubeconfig, values
        self.notes = ""

    def helm(self, *words: str) -> str:
        command = [str(tools.helm()), *words, f"--kubeconfig={self._kubeconfig}", f"--namespace={SPACE}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, *words: str) -> str:
        return self.helm("upgrade", "--install", "cutover", str(CHART), f"--values={self._values}", *words)

    def can(
        self, account: str, verb: str, resource: str, name: str = "", space: str = SPACE, group: str = ""
    ) -> bool:
        resource, _, subresource = resource.partition("/")
        attributes = {
            "namespace": space,
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": subresource,
            "name": name,
        }
        user = f"system:serviceaccount:{SPACE}:{account}"
        spec = {"user": user, "groups": ["system:serviceaccounts"], "resourceAttributes": attributes}
        answer = self.api.call("POST", RBAC, {"spec": spec})
        return bool(answer["status"]["allowed"])


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    document = yaml.safe_load((CHART / "ci/full-values.yaml").read_text())
    del document["auth"], document["crds"]
    values.write_text(yaml.safe_dump(document))
    with ControlPlane(tmp_path_factory.mktemp("plane")) as plane:
        api = Api(plane.kubeconfig)
        for name in (SPACE, "cutover-other"):
            labels = {"pod-security.kubernetes.io/enforce": "restricted"}
            api.call("POST", "api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        release = Release(plane.kubeconfig, values)
        release.notes = release.install()
        yield release


def secret(api: Api) -> Json:
    data: Json = api.get(f"api/v1/namespaces/{SPACE}/secrets/cutover-auth")["data"]
    return data


def test_notes_say_where_to_go(release: Release) -> None:
    assert "http://assess.cutover-test:8080/v1" in release.notes
    assert "cutover-auth" in release.notes


def test_an_upgrade_keeps_the_tokens(release: Release) -> None:
    before = secret(release.api)
    assert len(set(before.values())) == 3
    release.install("--set=operator.replicas=1")
    assert secret(release.api) == before
    deployment = release.api.get(f"apis/apps/v1/namespaces/{SPACE}/deployments/cutover-operator")
    assert deployment["spec"]["replicas"] == 1


def test_pods_are_admitted_where_only_restricted_ones_are(release: Release) -> None:
    """Judged by the API server itself; a pod without the security context is the counter-proof."""
    path = f"api/v1/namespaces/{SPACE}/pods?dryRun=All"
    kinds = (
        ("deployments", "cutover-operator"),
        ("deployments", "cutover-assessments"),
        ("statefulsets", "assess"),
    )
    for plural, name in kinds:
        template = release.api.get(f"apis/apps/v1/namespaces/{SPACE}/{plural}/{name}")["spec"]["template"]
        if plural == "statefulsets":
            template["spec"]["volumes"].append({"name": "spool", "emptyDir": {}})
        pod = {"metadata": {"name": name, "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
        assert release.api.call("POST", path, pod)["metadata"]["name"] == name
    del pod["spec"]["containers"][0]["securityContext"]
    with pytest.raises(ApiError, match="violates PodSecurity"):
        release.api.call("POST", path, pod)


def test_the_operator_may_do_its_work(release: Release) -> None:
    may = [
        ("list", "trainingruns", "cutover.dev"),
        ("patch", "modelrollouts", "cutover.dev"),
        ("patch", "modelrollouts/status", "cutover.dev"),
        ("update", "modelrollouts/finalizers", "cutover.dev"),
        ("create", "trainingruns", "cutover.dev"),
        ("patch", "trainingruns", "cutover.dev"),
        ("create", "jobs", "batch"),
        ("delete", "deployments", "apps"),
        ("update", "configmaps", ""),
        *((verb, "services", "") for verb in ("get", "create", "patch", "delete")),
        ("get", "persistentvolumeclaims", ""),
        ("get", "pods/log", ""),
        ("create", "events", ""),
        ("get", "events", ""),
    ]
    for space in (SPACE, "cutover-other"):
        for verb, resource, group in may:
            assert release.can("cutover-operator", verb, resource, group=group, space=space), (
                verb,
                resource,
                space,
            )
    for verb, name in (("create", ""), ("get", LEASE), ("update", LEASE)):
        assert release.can("cutover-operator", verb, "leases", name=name, group="coordination.k8s.io")
    assert not release.can("cutover-operator", "update", "leases", name="other", group="coordination.k8s.io")


def test_the_operator_may_not_do_more(release: Release) -> None:
    may_not = [
        ("get", "secrets", "", SPACE),
        ("list", "secrets", "", SPACE),
        ("create", "pods/exec", "", SPACE),
        ("create", "pods", "", SPACE),
        ("list", "persistentvolumeclaims", "", SPACE),
        ("create", "persistentvolumeclaims", "", SPACE),
        ("update", "modelrollouts", "cutover.dev", SPACE),
        ("update", "trainingruns", "cutover.dev", SPACE),
        ("delete", "trainingruns", "cutover.dev", SPACE),
        ("create", "roles", "rbac.authorization.k8s.io", SPACE),
        ("list", "configmaps", "", "default"),
        ("deletecollection", "configmaps", "", SPACE),
        ("list", "services", "", SPACE),
        ("watch", "services", "", SPACE),
        ("update", "services", "", SPACE),
        ("create", "leases", "coordination.k8s.io", "cutover-other"),
    ]
    for verb, resource, group, space in may_not:
        assert not release.can("cutover-operator", verb, resource, group=group, space=space), (
            verb,
            resource,
            space,
        )


def test_a_gateway_may_follow_its_own_route_and_nothing_else(release: Release) -> None:
    for verb in ("get", "list", "watch"):
        assert release.can("assess-gateway", verb, "configmaps", name="assess-route")
        assert not release.can("assess-gateway", verb, "configmaps", name="second-route")
        assert not release.can("assess-gateway", verb, "configmaps")
    assert not release.can("assess-gateway", "update", "configmaps", name="assess-route")
    assert not release.can("assess-gateway", "get", "secrets", name="provider-keys")
    assert not release.can("cutover-assessments", "get", "configmaps", name="assess-route")


def test_users_get_the_kinds_with_the_clusters_own_roles(release: Release) -> None:
    roles = "apis/rbac.authorization.k8s.io/v1/clusterroles"
    for part, verbs in (
        ("view", {"get", "list", "watch"}),
        ("edit", {"create", "update", "patch", "delete"}),
    ):
        role = release.api.get(f"{roles}/cutover-{SPACE}-{part}")
        assert role["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{part}"] == "true"
        assert verbs <= set(role["rules"][0]["verbs"])


def test_removal_keeps_what_people_made(release: Release) -> None:
    """The last of this module: uninstalls. CRDs with every object in them, and the records' claim, stay."""
    release.install("--set=assessments.database.existingSecret=", "--set=assessments.replicas=1")
    release.helm("uninstall", "cutover")
    assert len(release.api.get(CRDS)["items"]) == 2
    claims = release.api.get(f"api/v1/namespaces/{SPACE}/persistentvolumeclaims")["items"]
    assert [claim["metadata"]["name"] for claim in claims] == ["cutover-assessments"]
    assert release.api.get(f"apis/apps/v1/namespaces/{SPACE}/deployments")["items"] == []
    assert release.api.get(f"apis/rbac.authorization.k8s.io/v1/namespaces/{SPACE}/roles")["items"] == []
    # And the next installation takes them over again.
    release.install()
