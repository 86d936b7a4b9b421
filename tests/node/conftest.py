"""One stack for all tests of this tier: the real node, the chart as shipped, PostgreSQL, Prometheus, MLflow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import clusters
from demo import stack as demo_stack
from demo.kubectl import Kubectl
from demo.stack import Stack

NAMESPACE = "cutover-node"


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    kubeconfig = clusters.up().kubeconfig
    demo_stack.uninstall(Stack(Kubectl(kubeconfig, NAMESPACE), {}))  # what an earlier run left
    opened = demo_stack.open_stack(kubeconfig, NAMESPACE)
    demo_stack.install(opened)
    yield opened
    demo_stack.uninstall(opened)


@pytest.fixture
def app(stack: Stack) -> Iterator[Stack]:
    """The app asks sixteen times a second and the surveyor labels, for as long as the test runs."""
    for name in demo_stack.STAND_INS:
        stack.kube.call(name, "/admin/behaviour", {"accuracy": 0.96, "latency_mean_seconds": 0.02})
    stack.kube.call("driver", "/surveyor", {"on": True})
    stack.kube.call("driver", "/app", {"rps": 16, "reset": True})
    yield stack
    stack.kube.call("driver", "/app", {"rps": 0})
    stack.kube.run("delete", "modelrollouts", "--all", "--timeout=120s")
