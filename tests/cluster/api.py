"""A few calls of the Kubernetes API with nothing but the standard library, for what happens before kubectl is there."""

import base64
import http.client
import json
import ssl
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

import yaml

# What the manifests of this folder hold: kind -> (its API path, its name in the path, lives in a namespace).
KINDS = {
    "ServiceAccount": ("api/v1", "serviceaccounts", True),
    "ConfigMap": ("api/v1", "configmaps", True),
    "Service": ("api/v1", "services", True),
    "Deployment": ("apis/apps/v1", "deployments", True),
    "ClusterRole": ("apis/rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "StorageClass": ("apis/storage.k8s.io/v1", "storageclasses", False),
}


class ApiError(RuntimeError):
    """The API server refused; `status` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:1000]}")
        self.status = status


class Api:
    """The cluster of a kubeconfig with a client certificate or a token."""

    def __init__(self, kubeconfig: Path, timeout: float = 10.0) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        chosen = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
        cluster = next(c["cluster"] for c in config["clusters"] if c["name"] == chosen["cluster"])
        user = next(u["user"] for u in config["users"] if u["name"] == chosen["user"])
        self._server = urllib.parse.urlsplit(cluster["server"])
        self._token: str | None = user.get("token")
        self._timeout = timeout
        authority = _part(cluster, "certificate-authority", kubeconfig)
        self._tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
        certificate, key = (_part(user, name, kubeconfig) for name in ("client-certificate", "client-key"))
        if certificate and key:
            with tempfile.NamedTemporaryFile() as file:  # ssl reads keys from files only
                file.write(certificate + b"\n" + key)
                file.flush()
                self._tls.load_cert_chain(file.name)

    def call(self, method: str, path: str, body: object = None, content: str = "application/json") -> Any:
        """One request; the answer is decoded when it is JSON."""
        assert self._server.hostname
        headers = {"Content-Type": content, "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = http.client.HTTPSConnection(
            self._server.hostname, self._server.port or 443, timeout=self._timeout, context=self._tls
        )
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, f"{self._server.path}/{path}", data, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status >= 300:
                raise ApiError(answer.status, text)
            return json.loads(text) if answer.headers.get_content_type() == "application/json" else text
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def apply(self, document: dict[str, Any]) -> None:
        """Server-side apply of one object of the kinds above."""
        path, plural, inside = KINDS[document["kind"]]
        meta = document["metadata"]
        space = f"namespaces/{meta['namespace']}/" if inside else ""
        self.call(
            "PATCH",
            f"{path}/{space}{plural}/{meta['name']}?fieldManager=cutover-cluster&force=true",
            document,
            "application/apply-patch+yaml",
        )

    def ready(self) -> bool:
        """Whether the API server says of itself that it is ready."""
        try:
            return bool(self.get("readyz") == "ok")
        except (OSError, ApiError, http.client.HTTPException):
            return False


def _part(holder: dict[str, Any], name: str, kubeconfig: Path) -> bytes | None:
    if f"{name}-data" in holder:
        return base64.b64decode(holder[f"{name}-data"])
    return (kubeconfig.parent / holder[name]).read_bytes() if name in holder else None
