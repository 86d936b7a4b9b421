"""`make demo`: from nothing to a promoted model and two stopped ones, on a real Kubernetes node.

python -m demo up | down
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import clusters
from cluster.paths import KUBECONFIG
from demo import report, story
from demo.kubectl import Kubectl
from demo.stack import Stack, install, open_stack, uninstall

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "cutover-demo"
_START = time.monotonic()


def say(text: str) -> None:
    """One line with the time since the start."""
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", flush=True)


def up() -> int:
    """Run the whole story; 0 when everything ended as promised."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds[name] = time.monotonic() - start

    with timed("node"):
        kubeconfig = clusters.up().kubeconfig
        say(f"cluster ready; look at it with: export KUBECONFIG={kubeconfig}")
    with timed("images and chart"):
        uninstall(Stack(Kubectl(kubeconfig, NAMESPACE), {}))  # what an earlier run left
        stack = open_stack(kubeconfig, NAMESPACE)
        install(stack, say)
    with timed("seeding"):
        story.seed(stack, say)
    with timed("training"):
        training = story.train(stack, say)
    stack.kube.call("driver", "/surveyor", {"on": True})
    stack.kube.call("driver", "/app", {"rps": story.APP_REQUESTS_PER_SECOND, "reset": True})
    with timed("cutover"):
        acts = [story.cut_over(stack, say)]
    with timed("bad candidates"):
        acts.append(story.wrong_candidate(stack, say))
        acts.append(story.slow_candidate(stack, say))
    stack.kube.call("driver", "/app", {"rps": 0})
    time.sleep(2)  # requests in flight, so that the last ones are counted
    seen = stack.kube.call("driver", "/stats")
    print(report.summary(training, acts, seen, seconds))
    print(stack.kube.run("get", "tr,mro"))
    found = report.problems(training, acts, seen)
    for line in found:
        print(f"NOT AS PROMISED: {line}")
    return 1 if found else 0


def down() -> int:
    """Remove the demo's namespace, then the node when it is our own."""
    given = os.environ.get("KUBECONFIG", "")
    if given and Path(given) != KUBECONFIG:
        uninstall(Stack(Kubectl(Path(given), NAMESPACE), {}))
    clusters.down()
    return 0


if __name__ == "__main__":
    commands = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit("usage: python -m demo up|down")
    sys.exit(commands[sys.argv[1]]())
