"""What the operator asks of Kubernetes: eight verbs, dicts in and out.

The port is where tests crash, delay and lie; nothing above it knows HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API server addresses it."""

    group: str
    version: str
    kind: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


TRAINING_RUNS = Resource("cutover.dev", "v1alpha1", "TrainingRun", "trainingruns")
MODEL_ROLLOUTS = Resource("cutover.dev", "v1alpha1", "ModelRollout", "modelrollouts")
JOBS = Resource("batch", "v1", "Job", "jobs")
DEPLOYMENTS = Resource("apps", "v1", "Deployment", "deployments")
PODS = Resource("", "v1", "Pod", "pods")
SERVICES = Resource("", "v1", "Service", "services")
CONFIG_MAPS = Resource("", "v1", "ConfigMap", "configmaps")
CLAIMS = Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
"""Read, never written."""
EVENTS = Resource("", "v1", "Event", "events")
LEASES = Resource("coordination.k8s.io", "v1", "Lease", "leases")

RESOURCES: dict[tuple[str, str], Resource] = {
    (r.api_version, r.kind): r
    for r in (
        TRAINING_RUNS,
        MODEL_ROLLOUTS,
        JOBS,
        DEPLOYMENTS,
        PODS,
        SERVICES,
        CONFIG_MAPS,
        CLAIMS,
        EVENTS,
        LEASES,
    )
}


def resource_of(obj: Object) -> Resource:
    """The resource of an object with `apiVersion` and `kind`. Raises KeyError for one the operator does not know."""
    return RESOURCES[(obj["apiVersion"], obj["kind"])]


class KubeError(Exception):
    """The API server refused or could not be reached; `status` is the HTTP status, 0 for no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Conflict(KubeError):
    """409: somebody wrote in between, or the precondition does not hold. The pass is dropped and done again."""


class Invalid(KubeError):
    """422 or 400: the object will never be accepted as it is."""


class Reader(Protocol):
    """What looking at the cluster takes."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None: ...

    async def list(
        self, resource: Resource, namespace: str | None, label_selector: str = ""
    ) -> list[Object]: ...


class Kube(Reader, Protocol):
    """Every method raises KubeError; a missing object is None, or no error for delete."""

    async def create(self, obj: Object) -> Object:
        """Conflict when it exists."""
        ...

    async def replace(self, obj: Object) -> Object:
        """Compare-and-swap by `metadata.resourceVersion`, which must be set; Conflict when stale."""
        ...

    async def apply(self, obj: Object) -> Object:
        """Server-side apply with the operator's one field manager, forced."""
        ...

    async def apply_status(self, obj: Object) -> Object:
        """Server-side apply of the whole status; `metadata.resourceVersion` must be set; Conflict when stale."""
        ...

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> None:
        """Background propagation; with a uid precondition when given (Conflict when it is another object)."""
        ...

    async def pod_log(self, namespace: str, pod: str, tail_lines: int) -> str: ...
