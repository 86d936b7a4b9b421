"""How the API server is reached: the pod's service account, else a kubeconfig.

The parsing is kopf's own, so that the watches and this client can never disagree on whom they talk to. The token of a
service account is read again from its file, because it is replaced about every hour.
"""

from __future__ import annotations

import base64
import ssl
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import kopf

TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
TOKEN_FRESH_SECONDS = 60.0


class NoAccess(Exception):
    """Neither a service account nor a kubeconfig."""


@dataclass
class Access:
    server: str
    tls: ssl.SSLContext | None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    _read_at: float = field(default=float("-inf"), repr=False)

    def headers(self) -> dict[str, str]:
        now = time.monotonic()
        if self.token_file is not None and now - self._read_at > TOKEN_FRESH_SECONDS:
            self.token = self.token_file.read_text().strip()
            self._read_at = now
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def token_refused(self) -> None:
        """A 401: read the file again at the next request."""
        self._read_at = float("-inf")


def credentials() -> kopf.ConnectionInfo:
    """Raises NoAccess."""
    settings = kopf.OperatorSettings()
    info: kopf.ConnectionInfo | None = kopf.login_with_service_account(
        settings=settings
    ) or kopf.login_with_kubeconfig(settings=settings)
    if info is None:
        raise NoAccess("no service account in this pod and no kubeconfig; set KUBECONFIG")
    return info


def access(info: kopf.ConnectionInfo) -> Access:
    in_pod = TOKEN_FILE.exists() and info.server == "https://kubernetes.default.svc"
    return Access(
        server=str(info.server).rstrip("/"),
        tls=_tls(info) if str(info.server).startswith("https") else None,
        token=info.token,
        token_file=TOKEN_FILE if in_pod else None,
    )


def _tls(info: kopf.ConnectionInfo) -> ssl.SSLContext:
    authority = _bytes(info.ca_data)
    context = ssl.create_default_context(
        cafile=str(info.ca_path) if info.ca_path else None, cadata=authority.decode() if authority else None
    )
    if info.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = _bytes(info.certificate_data), _bytes(info.private_key_data)
    if certificate and key:
        # ssl loads a key from a file only; this one is private to the process and gone at once.
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificate + b"\n" + key)
            file.flush()
            context.load_cert_chain(file.name)
    elif info.certificate_path and info.private_key_path:
        context.load_cert_chain(str(info.certificate_path), str(info.private_key_path))
    return context


def _bytes(data: str | bytes | None) -> bytes | None:
    """kubeconfig data is base64; PEM passes as it is."""
    if not data:
        return None
    raw = data.encode() if isinstance(data, str) else data
    return raw if raw.lstrip().startswith(b"-----BEGIN") else base64.b64decode(raw)
