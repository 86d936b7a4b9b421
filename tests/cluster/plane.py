"""How etcd and the API server are started: the part that the node and a control plane alone have in common."""

from collections.abc import Sequence
from pathlib import Path

from cluster.pki import Authority, Pair

ISSUER = "https://kubernetes.default.svc.cluster.local"
SERVICES = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"  # kubernetes.default.svc, by definition
API_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")


def etcd(data: Path, client: str, peer: str) -> list[str]:
    """etcd for tests: what a power cut would lose, nobody misses, so it never waits for the disk."""
    return [
        "etcd",
        f"--data-dir={data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--quota-backend-bytes=2147483648",
        "--log-level=warn",
    ]


def api_certificate(authority: Authority, addresses: Sequence[str]) -> Pair:
    """The API server's own certificate, good for every name under which pods and users reach it."""
    names = [f"DNS:{name}" for name in API_NAMES]
    return authority.sign(
        "apiserver", "apiserver", addresses=[*names, *(f"IP:{address}" for address in addresses)]
    )


def apiserver(
    kube: Path, authority: Authority, serving: Pair, etcd_url: str, address: str, port: int
) -> list[str | Path]:
    """The API server with the authorisation of a real cluster, and its default admission plugins."""
    return [
        kube,
        "apiserver",
        f"--etcd-servers={etcd_url}",
        f"--client-ca-file={authority.ca.certificate}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--service-account-key-file={authority.service_accounts}",
        f"--service-account-signing-key-file={authority.service_accounts}",
        f"--service-account-issuer={ISSUER}",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        "--profiling=false",
    ]
