"""kubectl against one cluster, for tests: errors carry what kubectl said, and waiting has a deadline.

kubectl = Kubectl(up().kubeconfig, namespace="trial")
kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", ...})
kubectl.wait("job/train", lambda job: job["status"].get("succeeded") == 1, seconds=60)
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import tools
from cluster.shell import CommandError, run
from cluster.steps import wait_until


@dataclass(frozen=True)
class Kubectl:
    """Commands in one namespace of one cluster."""

    kubeconfig: Path
    namespace: str = "default"

    def __call__(self, *words: str, given: str | None = None) -> str:
        """Any command; its standard output."""
        base: list[str | Path] = [
            tools.kubectl(),
            f"--kubeconfig={self.kubeconfig}",
            f"--namespace={self.namespace}",
        ]
        return run([*base, *words], given=given)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Server-side apply of all of them."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self("apply", "--server-side", "--force-conflicts", "-f", "-", given=json.dumps(items))

    def get(self, what: str) -> dict[str, Any]:
        """One object ("job/train") or a list ("pods") as it is now."""
        found: dict[str, Any] = json.loads(self("get", what, "--output=json"))
        return found

    def wait(self, what: str, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """The object, once the condition holds; past the deadline the error shows the object's last status."""
        last: dict[str, Any] = {}

        def holds() -> bool:
            nonlocal last
            try:
                last = self.get(what)
            except CommandError as error:
                if "NotFound" in str(error):
                    return False
                raise
            return condition(last)

        try:
            wait_until(what, holds, seconds, every=0.2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its last status: {json.dumps(last.get('status'))}") from None
        return last
