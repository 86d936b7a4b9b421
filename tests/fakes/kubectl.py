"""A stand-in for kubectl that keeps its objects in a file: what the plugin would see of a cluster, as a process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SCRIPT = """#!{python}
import json, pathlib, sys
state = pathlib.Path({state!r})
arguments = sys.argv[1:]
with state.with_suffix(".log").open("a") as log:
    log.write(json.dumps(arguments) + "\\n")
objects = json.loads(state.read_text())
words = [a for a in arguments if not a.startswith("-")]
forbidden = objects.get("forbidden", [])
if words[1] in forbidden:
    print(f"Error from server (Forbidden): {{words[1]}} is forbidden", file=sys.stderr)
    sys.exit(1)
elif words[:2] == ["get", "events"]:
    print(json.dumps({{"items": objects["events"]}}))
elif words[:2] == ["get", "configmaps"]:
    if words[2] in objects.get("configmaps", {{}}):
        print(json.dumps(objects["configmaps"][words[2]]))
    else:
        assert "--ignore-not-found" in arguments
elif words[0] == "get" and len(words) == 2:
    print(json.dumps({{"items": [objects[words[1]]]}}))
elif words[0] == "get" and objects.get(words[1], {{}}).get("metadata", {{}}).get("name") == words[2]:
    print(json.dumps(objects[words[1]]))
elif words[0] == "patch":
    objects[words[1]]["spec"].update(json.loads(words[3])["spec"])
    if objects.get("operator"):
        objects[words[1]]["status"]["handledRequest"] = objects[words[1]]["spec"]["request"]["id"]
    state.write_text(json.dumps(objects))
    print(json.dumps(objects[words[1]]))
else:
    print(f"Error from server (NotFound): {{words[1]}} {{words[2:]}} not found", file=sys.stderr)
    sys.exit(1)
"""
ROLLOUTS = "modelrollouts.cutover.dev"


class Cluster:
    """The objects behind the stand-in, by the name kubectl is asked for; `operator` says whether orders are seen."""

    def __init__(self, state: Path) -> None:
        self._state = state

    @property
    def objects(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._state.read_text())
        return found

    @property
    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in self._state.with_suffix(".log").read_text().splitlines()]

    def put(self, **objects: Any) -> None:
        self._state.write_text(json.dumps({**self.objects, **objects}))

    def set(self, **status: Any) -> None:
        objects = self.objects
        objects[ROLLOUTS]["status"].update(status)
        self._state.write_text(json.dumps(objects))

    def without_operator(self) -> None:
        self.put(operator=False)


def stand_in(folder: Path, objects: dict[str, Any]) -> tuple[Path, Cluster]:
    """The executable to name in $KUBECTL, and what stands behind it."""
    state = folder / "objects.json"
    state.write_text(json.dumps({"operator": True, "events": [], **objects}))
    script = folder / "kubectl"
    script.write_text(SCRIPT.format(python=sys.executable, state=str(state)))
    script.chmod(0o755)
    return script, Cluster(state)
