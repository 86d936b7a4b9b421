"""Certificates and kubeconfigs of one run of a control plane, made anew each time by openssl.

Elliptic keys, since making RSA keys for all components would take longer than the API server's start.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.shell import run

DAYS = "365"
# openssl's own configuration would make every certificate a CA.
CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A CA in a folder, which signs the certificates of the servers and of the users."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._config = directory / "openssl.cnf"
        self._config.write_text(CONFIG)
        self.ca = self._pair("ca")
        self._request(self.ca, "/CN=cutover", ["basicConstraints=critical,CA:TRUE"])
        self.service_accounts = directory / "service-accounts.key"
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.service_accounts])

    def _pair(self, name: str) -> Pair:
        return Pair(self.directory / f"{name}.crt", self.directory / f"{name}.key")

    def _request(
        self, pair: Pair, subject: str, extensions: Sequence[str], signer: Pair | None = None
    ) -> None:
        argv: list[str | Path] = ["openssl", "req", "-x509", "-config", self._config, *NEW_KEY, "-days", DAYS]
        argv += ["-subj", subject, "-keyout", pair.key, "-out", pair.certificate]
        if signer is not None:
            argv += ["-CA", signer.certificate, "-CAkey", signer.key]
        for extension in extensions:
            argv += ["-addext", extension]
        run(argv)

    def sign(self, name: str, user: str, group: str = "", addresses: Sequence[str] = ()) -> Pair:
        """A certificate for a user (and group), or for a server that answers on `addresses` ("IP:..", "DNS:..")."""
        pair = self._pair(name)
        extensions = ["basicConstraints=critical,CA:FALSE"]
        if addresses:
            extensions.append("subjectAltName=" + ",".join(addresses))
        self._request(pair, (f"/O={group}" if group else "") + f"/CN={user}", extensions, self.ca)
        return pair

    def kubeconfig(self, path: Path, server: str, pair: Pair) -> Path:
        """A kubeconfig that needs no other file."""

        def embed(file: Path) -> str:
            return base64.b64encode(file.read_bytes()).decode()

        cluster = {"server": server, "certificate-authority-data": embed(self.ca.certificate)}
        user = {"client-certificate-data": embed(pair.certificate), "client-key-data": embed(pair.key)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cutover", "cluster": cluster}],
            "users": [{"name": "cutover", "user": user}],
            "contexts": [{"name": "cutover", "context": {"cluster": "cutover", "user": "cutover"}}],
            "current-context": "cutover",
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(document))
        return path
