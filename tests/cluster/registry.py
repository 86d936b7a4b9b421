"""A registry of images for this machine alone: what was pushed once, no later run pushes or builds again."""

import json
import urllib.error
import urllib.request

from cluster.containers import REGISTRY_PORT
from cluster.daemons import Daemon
from cluster.packages import find
from cluster.paths import NODE, REGISTRY, RUN
from cluster.steps import wait_until

HOST = f"localhost:{REGISTRY_PORT}"
DAEMON = Daemon("registry", RUN, NODE / "logs")
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def start() -> None:
    """Start it unless it runs, and return when it answers."""
    if DAEMON.pid() is None:
        NODE.mkdir(parents=True, exist_ok=True)
        config = NODE / "registry.yaml"
        settings = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(REGISTRY)}, "delete": {"enabled": True}},
            "http": {"addr": f"127.0.0.1:{REGISTRY_PORT}"},
        }
        config.write_text(json.dumps(settings))  # which is YAML too
        DAEMON.start(
            [find("docker-registry") or "docker-registry", "serve", config], {"OTEL_TRACES_EXPORTER": "none"}
        )
    wait_until("the registry answers", _answers, 30, every=0.05)


def _answers() -> bool:
    return _head("") in {200, 401}


def has(reference: str) -> bool:
    """Whether `localhost:PORT/NAME:TAG` is there."""
    name, _, tag = reference.removeprefix(f"{HOST}/").rpartition(":")
    return _head(f"{name}/manifests/{tag}") == 200


def _head(path: str) -> int:
    url = f"http://127.0.0.1:{REGISTRY_PORT}/v2/{path}"
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": MANIFESTS})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy of the host
    try:
        with opener.open(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
