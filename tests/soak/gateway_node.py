"""The soak's town on the node: the chart as shipped, a live ModelRollout, and everything that Kubernetes can take away."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from cluster import clusters, outage
from cluster.api import Api
from cluster.paths import KUBECONFIG
from cutover.contract import ROUTE_KEY
from demo import stack as demo_stack
from demo import story
from demo.killing import kill_for_good, kill_hard
from demo.kubectl import Kubectl
from demo.stack import GATEWAY, Stack
from fakes.gateway_load import PAGE, Asked, RouteSeen
from fakes.gateway_rig import sample_sum
from soak.gateway_account import Row, Story
from soak.gateway_phases import QUICK_SECONDS

NAMESPACE = "cutover-gateway-soak"
SERVICES = {"control": "gpt-4", "candidate": "slow-model", "backup": "wrong-model"}
WEIGHTS = (10, 20, 30, 40, 50, 55, 60, 65, 70, 75, 80, 85, 90, 100)
SERVING: dict[str, Any] = {"accuracy": 0.96, "latency_mean_seconds": QUICK_SECONDS}
Say = Callable[[str], None]


class Node:
    """On a stack that is installed; `begin` brings the rollout and the load, `end` takes them away."""

    gateways: tuple[str, ...] = (f"{GATEWAY}-0", f"{GATEWAY}-1")

    def __init__(self, stack: Stack, say: Say, has_backup: bool) -> None:
        self.stack = stack
        self.has_backup = has_backup
        self._kube = stack.kube
        self._say = say
        self._api = Api(stack.kube.kubeconfig)
        self._prefix = ""
        self._orders = 0

    def begin(self) -> None:
        for service in SERVICES.values():
            story.behave(self.stack, service, **SERVING)
        self.stack.apply("load.yaml")
        steps = [{"weight": weight, "minDuration": "3h", "minRequests": 1} for weight in WEIGHTS]
        self.stack.apply(
            "soak-rollout.yaml",
            CANDIDATE=story.candidate_at(self.stack, SERVICES["candidate"], "soak-1"),
            STEPS=steps,
            FALLBACK="backup" if self.has_backup else "gpt-4",
        )
        self._kube.wait_ready("app=load", 120)
        self._kube.wait("the rollout's first weight", lambda: self._weight() > 0, 120)
        self._prefix = self.state()["prefix"]
        self._say(f"weight {self._weight() // 100} % in force, requests {self._prefix}-*")

    def end(self) -> None:
        self._kube.run("delete", "modelrollout", "soak", "--ignore-not-found", "--timeout=120s")
        self._kube.run("delete", "deployment/load", "service/load", "--ignore-not-found", "--wait=false")

    # ------------------------------------------------------------------ see gateway_phases.Town

    def endpoint(self, arm: str) -> str:
        return SERVICES[arm]

    def load(self, requests_per_second: float | None = None, phase: str | None = None) -> None:
        body: dict[str, Any] = {}
        if requests_per_second is not None:
            body["requestsPerSecond"] = requests_per_second
        if phase is not None:
            body["phase"] = phase
        self._kube.call("load", "/load", body)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self._kube.call("load", "/state")
        return found

    def route_text(self) -> str:
        name = f"api/v1/namespaces/{self.stack.namespace}/configmaps/{GATEWAY}-route"
        text: str = self._api.get(name)["data"][ROUTE_KEY]
        return text

    def _weight(self) -> int:
        return int(json.loads(self.route_text())["weightBasisPoints"])

    def next_weight(self) -> None:
        before = self._weight()
        # The operator refuses an order that it cannot carry out now, once per id; then it is given again.
        for _ in range(6):
            self._orders += 1
            order = {"spec": {"request": {"id": f"soak-{self._orders}", "action": "skip"}}}
            self._kube.run("patch", "modelrollout", "soak", "--type=merge", "-p", json.dumps(order))
            with contextlib.suppress(Exception):
                self._kube.wait("the next weight", lambda: self._weight() > before, 20, 0.25)
                return
        status = (self._kube.get("modelrollout", "soak") or {}).get("status")
        raise RuntimeError(f"the rollout does not leave weight {before}: {json.dumps(status)[:2000]}")

    def behave(self, arm: str, **settings: Any) -> None:
        story.behave(self.stack, SERVICES[arm], **settings)

    @contextlib.contextmanager
    def arm_away(self, arm: str) -> Iterator[None]:
        service = SERVICES[arm]
        with self._scaled_away(service):
            yield
        story.behave(self.stack, service, **SERVING)

    @contextlib.contextmanager
    def _scaled_away(self, name: str) -> Iterator[None]:
        """Its pods are killed without a word, and none comes in their place."""
        try:
            kill_for_good(self.stack, name)
            yield
        finally:
            self._kube.run("scale", f"deployment/{name}", "--replicas=1")
            self._kube.wait_ready(f"app={name}", 180)

    def database_away(self) -> AbstractContextManager[None]:
        return self._scaled_away("postgres")

    def metrics_away(self) -> AbstractContextManager[None]:
        return self._scaled_away("prometheus")

    def source_away(self) -> AbstractContextManager[None] | None:
        own = self._kube.kubeconfig == KUBECONFIG
        return outage.apiserver_away() if own else None

    def waiting(self, gateway: str) -> int:
        path = f"/api/v1/namespaces/{self.stack.namespace}/pods/{gateway}:9090/proxy/metrics"
        return int(sample_sum(self._kube.run("get", "--raw", path), "cutover_spool_records"))

    def kill(self, gateway: str) -> tuple[float, float]:
        return kill_hard(self.stack, gateway)

    def back(self, gateway: str) -> None:
        def ready() -> bool:
            pod = self._kube.get("pod", gateway) or {}
            conditions = pod.get("status", {}).get("conditions", [])
            return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

        self._kube.wait(f"{gateway} to be ready", ready, 180)

    def leave(self, gateway: str) -> None:
        self._kube.run("delete", "pod", gateway, "--timeout=120s")
        self.back(gateway)

    def pass_streams(self) -> bool:
        self._kube.run("set", "env", f"statefulset/{GATEWAY}", "CUTOVER_STREAMING=passthrough")
        self._kube.run("rollout", "status", f"statefulset/{GATEWAY}", "--timeout=240s")
        return True

    def rows(self) -> list[Row]:
        query = f"select id, assessment_id from assessments where assessment_id like '{self._prefix}-%'"
        psql = f'PGPASSWORD=$POSTGRES_PASSWORD psql -h 127.0.0.1 -U cutover -qtAX -F " " -c "{query}" cutover'
        text = self._kube.run("exec", "deploy/postgres", "--", "sh", "-c", psql)
        return [Row(*line.split(" ", 1)) for line in text.splitlines() if line]

    def story_of_load(self, told: Story) -> None:
        told.asked = [
            Asked(**{**row, "heard": [tuple(one) for one in row["heard"]]}) for row in self._pages("/asked")
        ]
        told.seen = [RouteSeen(**row) for row in self._pages("/routes")]
        state = self.state()
        told.unsent, told.stalls = state["skipped"], [tuple(one) for one in state["stalls"]]

    def _pages(self, path: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = self._kube.call("load", f"{path}?from={len(rows)}")
            rows += page
            if len(page) < PAGE:
                return rows


@contextlib.contextmanager
def installed(say: Say, keep: bool) -> Iterator[Node]:
    """A node town with everything of its own, from the namespace on."""
    kubeconfig = clusters.up().kubeconfig
    demo_stack.uninstall(Stack(Kubectl(kubeconfig, NAMESPACE), {}))  # what an earlier run left
    stack = demo_stack.open_stack(kubeconfig, NAMESPACE)
    try:
        demo_stack.install(stack, say, values=values(stack))
        node = Node(stack, say, has_backup=True)
        node.begin()
        yield node
        node.end()
    finally:
        if not keep:
            demo_stack.uninstall(stack)
            say(f"namespace {NAMESPACE} is removed")


def values(stack: Stack) -> dict[str, Any]:
    """The demo's chart values with a second provider, which answers when the first one does not."""
    found = demo_stack.chart_values(stack)
    (gateway,) = found["gateways"]
    first = gateway["providers"]["gpt-4"]
    gateway["providers"]["backup"] = first | {"baseUrl": f"http://{SERVICES['backup']}:8080/v1"}
    # An arm that hangs with nobody behind it costs its callers ten seconds, not a minute.
    gateway["extraEnv"] = [{"name": "CUTOVER_LAST_ARM_SECONDS", "value": "10"}]
    return found
