"""kubectl as a small object: apply, read, wait on a condition, talk to a Service through the API server."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster import tools

T = TypeVar("T")


class NotYet(Exception):
    """What was waited for did not come true in time."""


@dataclass(frozen=True)
class Kubectl:
    """Commands against one namespace of one cluster."""

    kubeconfig: Path
    namespace: str

    def run(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        """Standard output of a kubectl command. Raises RuntimeError with kubectl's own words."""
        command = [
            str(tools.kubectl()),
            f"--kubeconfig={self.kubeconfig}",
            f"--namespace={self.namespace}",
            *args,
        ]
        done = subprocess.run(
            command, input=stdin, text=True, capture_output=True, check=False, env=dict(os.environ)
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(args[:4])}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def apply(self, manifest: str) -> None:
        self.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        out = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(out) if out.strip() else None

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        args = ["get", kind, "-o", "json"] + (["-l", selector] if selector else [])
        found: list[dict[str, Any]] = json.loads(self.run(*args))["items"]
        return found

    def call(self, service: str, path: str, body: dict[str, Any] | None = None, port: int = 8080) -> Any:
        """GET, or POST with a body, to a Service through the API server's proxy."""
        raw = f"/api/v1/namespaces/{self.namespace}/services/{service}:{port}/proxy{path}"
        if body is None:
            return json.loads(self.run("get", "--raw", raw))
        return json.loads(self.run("create", "--raw", raw, "-f", "-", stdin=json.dumps(body)))

    def wait(
        self, what: str, probe: Callable[[], T | None], timeout_seconds: float, every_seconds: float = 0.5
    ) -> T:
        """The first value of `probe` that is not None or False. Raises NotYet with the last error."""
        deadline = time.monotonic() + timeout_seconds
        last: Exception | None = None
        while time.monotonic() < deadline:
            try:
                value = probe()
            except (RuntimeError, KeyError, IndexError, json.JSONDecodeError) as error:
                last = error
            else:
                if value is not None and value is not False:
                    return value
            time.sleep(every_seconds)
        raise NotYet(f"{what}: not within {timeout_seconds:.0f} s" + (f" ({last})" if last else ""))

    def wait_ready(self, selector: str, timeout_seconds: float, count: int = 1) -> None:
        """Until `count` pods of the selector are Ready and none is on its way out."""

        def ready() -> bool:
            pods = self.items("pods", selector)
            good = [
                pod
                for pod in pods
                if "deletionTimestamp" not in pod["metadata"]
                and any(
                    c["type"] == "Ready" and c["status"] == "True"
                    for c in pod["status"].get("conditions", [])
                )
            ]
            return len(good) >= count

        self.wait(f"{count} ready pod(s) of {selector}", ready, timeout_seconds)
