"""Brings our images to the cluster: what is there already is neither built, pushed nor pulled again.

An image's tag is the digest of everything that its Dockerfile copies in, of the Dockerfile itself and of the images
below it. So a tag says what is in it, whatever the state of git, and an image whose tag exists is never stale.

    references = images.ensure(["operator", "server"])
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cluster import base, builds, dockerfiles
from cluster.clusters import up
from cluster.delivery import Delivery, delivery
from cluster.locks import exclusive
from cluster.paths import REPOSITORY
from cluster.steps import say, step


@dataclass(frozen=True)
class Image:
    """A Dockerfile, built with the repository as its context; `on` names the image that it takes as its BASE."""

    dockerfile: str
    on: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)


IMAGES = {
    "operator": Image("operator/Dockerfile"),
    "server": Image("server/Dockerfile"),
    "ml": Image("trainer/Dockerfile", arguments={"SLIM": "1"}),
    "fakes": Image("tests/cluster/images/fakes/Dockerfile", on="server"),
    "probe": Image("tests/cluster/images/probe/Dockerfile"),
    "prometheus": Image("tests/cluster/images/prometheus/Dockerfile"),
    "postgres": Image("tests/cluster/images/postgres/Dockerfile"),
    "mlflow": Image("tests/cluster/images/mlflow/Dockerfile"),
}


def ensure(names: Iterable[str] = tuple(IMAGES)) -> dict[str, str]:
    """Every named image, ready to be run by the cluster's pods: name -> reference."""
    cluster = up()
    wanted = list(dict.fromkeys(names))
    with exclusive("images"):
        to = delivery(cluster)
        references = {name: _ensure(name, to) for name in wanted}
    return references


def reference(name: str, prefix: str) -> str:
    """The reference that this image has, built or not, from the files as they are now."""
    return f"{prefix}/{name}:{_digest(name)}"


def _digest(name: str) -> str:
    image = IMAGES[name]
    dockerfile = REPOSITORY / image.dockerfile
    below = _digest(image.on) if image.on else base.digest()
    files = [dockerfile, *dockerfiles.sources(dockerfile, REPOSITORY)]
    return builds.digest(files, below, repr(sorted(image.arguments.items())), root=REPOSITORY)


def _ensure(name: str, to: Delivery) -> str:
    wanted = reference(name, to.prefix)
    if not to.has(wanted):
        image = IMAGES[name]
        arguments = {**image.arguments, **({"BASE": _ensure(image.on, to)} if image.on else {})}
        with step(f"building the image {name}"):
            to.build(REPOSITORY / image.dockerfile, REPOSITORY, wanted, arguments)
        with step(f"storing the image {name}"):
            to.store(wanted)
    if to.arrived(wanted):
        say(f"image {name}: there already")
    else:
        with step(f"bringing the image {name} to the node"):
            to.bring(wanted)
    return wanted
