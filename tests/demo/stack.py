"""Everything the demo and the node tests stand on: namespace, infrastructure, the chart, the stand-ins, the driver.

Installing is idempotent: a second call on a running stack changes nothing that is right already.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from cluster import images, tools
from demo.kubectl import Kubectl

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = Path(__file__).parent / "manifests"
EXAMPLE = ROOT / "examples/building-damage"
FIXTURE = ROOT / "tests/fixtures/tiny-llava"
GATEWAY = "assessor"
RELEASE = "cutover"
STAND_INS = ("gpt-4", "wrong-model", "slow-model")

POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@dataclass
class Stack:
    """A namespace with Cutover and its surroundings."""

    kube: Kubectl
    refs: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.kube.namespace

    def apply(self, manifest: str, **more: Any) -> None:
        self.kube.apply(self.render(manifest, **more))

    def render(self, manifest: str, **more: Any) -> str:
        """A manifest of this folder, filled in; values that are not text go in as JSON."""
        values = {
            "NAMESPACE": self.namespace,
            "GATEWAY": GATEWAY,
            "ASSESSMENTS": f"{RELEASE}-assessments",
            "POD_SECURITY": json.dumps(POD_SECURITY),
            "CONTAINER_SECURITY": json.dumps(CONTAINER_SECURITY),
            **{f"IMAGE_{name.upper()}": ref for name, ref in self.refs.items()},
            **{key: value if isinstance(value, str) else json.dumps(value) for key, value in more.items()},
        }
        return Template((MANIFESTS / manifest).read_text()).substitute(values)


def open_stack(kubeconfig: Path, namespace: str, names: list[str] | None = None) -> Stack:
    """Build and hand over the images, make the namespace."""
    refs = images.ensure(names or ["operator", "server", "ml", "fakes", "prometheus", "postgres", "mlflow"])
    kube = Kubectl(kubeconfig, namespace)
    kube.apply(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": namespace,
                    "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
                },
            }
        )
    )
    return Stack(kube, refs)


def _secrets(stack: Stack) -> None:
    """Tokens are drawn once and kept: a second run must not lock anybody out."""
    if stack.kube.get("secret", "demo-auth") is None:
        password = secrets.token_urlsafe(18)
        tokens = {
            name: secrets.token_urlsafe(24) for name in ("admin-token", "surveyor-token", "internal-token")
        }
        url = f"postgresql+asyncpg://cutover:{password}@postgres:5432/cutover"
        for name, values in (
            ("demo-auth", tokens),
            ("demo", {"postgres-password": password, "database-url": url}),
            ("demo-keys", {"gpt-4": secrets.token_urlsafe(24)}),
        ):
            manifest = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name},
                "stringData": values,
            }
            stack.kube.apply(yaml.safe_dump(manifest))


def _task(stack: Stack) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "building-damage-task"},
        "data": {"task.yaml": (EXAMPLE / "task.yaml").read_text()},
    }
    stack.kube.apply(yaml.safe_dump(manifest))


def _base_model(stack: Stack) -> None:
    """The small base model onto its claim, the way an administrator would put LLaVA-7B there."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "model-loader"},
        "spec": {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "securityContext": POD_SECURITY,
            "containers": [
                {
                    "name": "loader",
                    "image": stack.refs["fakes"],
                    "command": ["sleep", "infinity"],
                    "securityContext": CONTAINER_SECURITY,
                    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                }
            ],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        },
    }
    stack.kube.apply(yaml.safe_dump(pod))
    stack.kube.run("wait", "--for=condition=Ready", "pod/model-loader", "--timeout=180s")
    listed = stack.kube.run("exec", "model-loader", "--", "ls", "/models")
    if "tiny-llava" not in listed.split():
        stack.kube.run("cp", str(FIXTURE), "model-loader:/models/tiny-llava.part")
        stack.kube.run("exec", "model-loader", "--", "mv", "/models/tiny-llava.part", "/models/tiny-llava")
    stack.kube.run("delete", "pod", "model-loader", "--wait=false", "--grace-period=0")


def chart_values(stack: Stack) -> dict[str, Any]:
    """The chart's values for this stack: real GPT-4 would differ in `baseUrl` and the key alone."""
    task = yaml.safe_load((EXAMPLE / "task.yaml").read_text())
    # Two stacks and a training Job find room on two cores.
    small = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "768Mi"}}
    price = {"kind": "tokens", "usdPerRequest": 0.04, "validFrom": "2026-11-01"}
    providers = {
        "gpt-4": {
            "baseUrl": "http://gpt-4:8080/v1",
            "model": "gpt-4o",
            "key": "gpt-4",
            "price": price,
        }
    }
    return {
        "crds": {"enabled": False},
        "images": {
            "operator": stack.refs["operator"],
            "server": stack.refs["server"],
            "ml": stack.refs["ml"],
        },
        "operator": {
            "replicas": 2,
            "resources": small,
            "prometheusUrl": "http://prometheus:9090",
            "allowedUrls": ["http://mlflow:5000"],
        },
        "auth": {"existingSecret": "demo-auth"},
        "gateways": [
            {
                "name": GATEWAY,
                "replicas": 2,
                "resources": small,
                "providers": providers,
                "defaultProvider": "gpt-4",
                "task": task,
                "keysSecret": "demo-keys",
            }
        ],
        "assessments": {"resources": small, "database": {"existingSecret": "demo", "key": "database-url"}},
    }


def install_chart(stack: Stack, values_given: dict[str, Any] | None = None) -> None:
    """The CRDs by themselves: they outlive releases, and a release of another namespace may own them already."""
    stack.kube.run("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as values:
        yaml.safe_dump(values_given or chart_values(stack), values)
        values.flush()
        command = [
            str(tools.helm()),
            "upgrade",
            "--install",
            RELEASE,
            str(ROOT / "charts/cutover"),
            f"--kubeconfig={stack.kube.kubeconfig}",
            f"--namespace={stack.namespace}",
            f"--values={values.name}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"helm upgrade: {done.stderr.strip()}")


def install(stack: Stack, progress: Any = print, values: dict[str, Any] | None = None) -> None:
    """Bring everything up and wait until it is ready. `values` of the chart: by default `chart_values`."""
    _secrets(stack)
    _task(stack)
    stack.apply("infra.yaml")
    for name in STAND_INS:
        stack.apply("stand-in.yaml", NAME=name)
    progress("infrastructure applied: PostgreSQL, Prometheus, MLflow, stand-ins")
    stack.kube.wait_ready("app=postgres", 180)
    install_chart(stack, values)
    _base_model(stack)
    progress("chart installed, base model on its claim")
    for name in (*STAND_INS, "prometheus", "mlflow"):
        stack.kube.wait_ready(f"app={name}", 240)
    stack.kube.wait_ready("app.kubernetes.io/component=operator", 240, count=2)
    stack.kube.wait_ready(f"cutover.dev/gateway={GATEWAY}", 240, count=2)
    stack.kube.wait_ready("app.kubernetes.io/component=assessments", 240)
    stack.apply("driver.yaml")
    stack.kube.wait_ready("app=driver", 240)


def uninstall(stack: Stack) -> None:
    """Custom resources first, while the operator still runs and can give the traffic back; then all the rest."""
    if stack.kube.get("namespace", stack.namespace) is None:
        return
    stack.kube.run("delete", "modelrollouts,trainingruns", "--all", "--timeout=60s", check=False)
    command = [str(tools.helm()), "uninstall", RELEASE, f"--kubeconfig={stack.kube.kubeconfig}"]
    subprocess.run([*command, f"--namespace={stack.namespace}"], capture_output=True, check=False)
    stack.kube.run("delete", "namespace", stack.namespace, "--timeout=180s")
