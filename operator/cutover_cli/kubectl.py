"""Asks the cluster through kubectl, as a plugin should: every way of signing in and every context works as it does there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cutover.api.base import GROUP
from cutover.api.modelrollout import ModelRollout
from cutover.api.trainingrun import TrainingRun
from cutover_cli.errors import Refused

FIELD_MANAGER = "kubectl-cutover"
ROLLOUTS = f"{ModelRollout.plural}.{GROUP}"
CONFIG_MAPS = "configmaps"
RUNS = f"{TrainingRun.plural}.{GROUP}"
REQUEST_TIMEOUT_SECONDS = 30

Object = dict[str, Any]


class KubectlError(Refused):
    """kubectl said no; the message is its own."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """`$KUBECTL` or `kubectl`, with the namespace, context and kubeconfig the plugin was given."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def get(self, resource: str, name: str) -> Object:
        return self._json(["get", resource, name])

    def find(self, resource: str, name: str, namespace: str | None = None) -> Object | None:
        """The object; None when there is none."""
        return self._json(["get", resource, name, "--ignore-not-found"], namespace) or None

    def list_all(self, resource: str, *, all_namespaces: bool = False) -> list[Object]:
        found = self._json(["get", resource, *(["--all-namespaces"] if all_namespaces else [])])
        return list(found.get("items") or [])

    def events_of(self, obj: Object) -> list[Object]:
        """Events about an object; none when they may not be read."""
        meta = obj["metadata"]
        selector = f"involvedObject.uid={meta.get('uid', '')}"
        try:
            found = self._json(["get", "events", "--field-selector", selector], meta.get("namespace"))
        except KubectlError:
            return []
        return list(found.get("items") or [])

    def merge(self, resource: str, name: str, change: Object) -> Object:
        """Change some fields and nothing else, under this plugin's own field manager."""
        patch = json.dumps(change)
        return self._json(
            ["patch", resource, name, "--type=merge", f"--field-manager={FIELD_MANAGER}", "--patch", patch]
        )

    def _json(self, arguments: Sequence[str], namespace: str | None = None) -> Object:
        command = [
            os.environ.get("KUBECTL") or "kubectl",
            *arguments,
            "--output=json",
            *self._flags(namespace),
        ]
        try:
            done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise KubectlError(
                f"{command[0]} cannot be run ({error.strerror}); install kubectl or name it in $KUBECTL"
            ) from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise KubectlError(said or f"{command[0]} ended with {done.returncode}")
        if not done.stdout.strip():
            return {}
        try:
            document = json.loads(done.stdout)
        except ValueError:
            raise KubectlError(f"{command[0]} {arguments[0]} answered something that is not JSON") from None
        return document if isinstance(document, dict) else {}

    def _flags(self, namespace: str | None) -> list[str]:
        chosen = namespace or self.namespace
        return [
            f"--request-timeout={REQUEST_TIMEOUT_SECONDS}s",
            *([f"--namespace={chosen}"] if chosen else []),
            *([f"--context={self.context}"] if self.context else []),
            *([f"--kubeconfig={self.kubeconfig}"] if self.kubeconfig else []),
        ]
