"""An API server in memory with the properties the operator leans on, and none of the network.

Kept: resourceVersions (unchanged by a write that changes nothing), server-side apply with field ownership and map lists,
the status subresource, generation, label selectors, uid preconditions, finalizers, background collection of dependents,
immutable Job templates, refusal of names and labels Kubernetes would refuse, and of custom resources their models refuse.
Watches are synchronous calls. Time is an argument.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from cutover.api.base import FIELD_MANAGER
from cutover.api.modelrollout import ModelRollout
from cutover.api.trainingrun import TrainingRun
from cutover_operator.port import (
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    MODEL_ROLLOUTS,
    TRAINING_RUNS,
    Conflict,
    Invalid,
    KubeError,
    Object,
    Resource,
    resource_of,
)

MODELS: dict[Resource, type[TrainingRun] | type[ModelRollout]] = {
    TRAINING_RUNS: TrainingRun,
    MODEL_ROLLOUTS: ModelRollout,
}
NO_STATUS = frozenset({CONFIG_MAPS, EVENTS, LEASES})
NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")

Ident = tuple[Resource, str, str]
FieldPath = tuple[Any, ...]
EventType = Literal["ADDED", "MODIFIED", "DELETED"]


@dataclass(frozen=True)
class Change:
    """What a watch sees; `by` is the field manager that wrote."""

    type: EventType
    resource: Resource
    obj: Object
    by: str


# Lists merged by key when applied, by the name of the field that holds them.
MAP_LISTS: dict[str, tuple[str, ...]] = {
    "conditions": ("type",),
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",),
}
SETS = frozenset({"finalizers"})


def _custom_map_lists() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, dict):
            if node.get("x-kubernetes-list-type") == "map":
                found[name] = tuple(node["x-kubernetes-list-map-keys"])
            for key, child in node.items():
                walk(child, key if key not in ("properties", "items") else name)
        elif isinstance(node, list):
            for child in node:
                walk(child, name)

    for file in (Path(__file__).resolve().parents[2] / "crds").glob("*.yaml"):
        walk(yaml.safe_load(file.read_text()), "")
    return found


MAP_LISTS |= _custom_map_lists()


def clone(value: Any) -> Any:
    """A copy of what JSON can hold; several times faster than a deep copy."""
    if isinstance(value, dict):
        return {key: clone(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [clone(child) for child in value]
    return value


class FakeKube:
    """`port.Kube`. Write as somebody else with `as_user`."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.clock = clock
        self.objects: dict[Ident, Object] = {}
        self.logs: dict[tuple[str, str], str] = {}
        self._owned: dict[tuple[Ident, str, str], set[FieldPath]] = {}
        self._watchers: list[Callable[[Change], None]] = []
        self._counter = [0]
        self._uids = itertools.count(1)
        self._manager = FIELD_MANAGER

    # -------------------------------------------------------------- for tests
    def as_user(self, manager: str = "test") -> FakeKube:
        """The same server, written to under another field manager."""
        other = copy.copy(self)
        other._manager = manager
        return other

    @property
    def version(self) -> int:
        """Grows with every change of anything."""
        return self._counter[0]

    def watch(self, seen: Callable[[Change], None]) -> None:
        self._watchers.append(seen)

    def all(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        return [clone(obj) for obj in self.each(resource, namespace)]

    def each(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        """The objects themselves, to be looked at only."""
        found = [
            (ident[1:], obj)
            for ident, obj in self.objects.items()
            if ident[0] == resource and namespace in (None, ident[1])
        ]
        return [obj for _, obj in sorted(found, key=lambda item: item[0])]

    def peek(self, resource: Resource, namespace: str, name: str) -> Object:
        return clone(self.objects[resource, namespace, name])

    def set_status(self, resource: Resource, namespace: str, name: str, status: dict[str, Any]) -> Object:
        """Play a controller: replace the whole status of an object."""
        ident = (resource, namespace, name)
        new = clone(self.objects[ident])
        new["status"] = clone(status)
        return self._store(ident, new, "controller")

    def edit(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], None],
        by: str = "test",
    ) -> Object:
        """Play a user: change an object in place (spec edits move the generation)."""
        ident = (resource, namespace, name)
        new = clone(self.objects[ident])
        change(new)
        return self._store(ident, new, by)

    def force(self, obj: Object) -> Object:
        """Play a controller: make an object with its status."""
        ident = _ident(obj)
        self._create(ident, obj)
        return self.set_status(*ident, obj.get("status", {}))

    def vanish(self, resource: Resource, namespace: str, name: str) -> None:
        """Gone at once, whatever its finalizers say."""
        self._remove((resource, namespace, name))

    # -------------------------------------------------------------- port.Kube
    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return clone(self.objects.get((resource, namespace, name)))

    async def list(self, resource: Resource, namespace: str | None, label_selector: str = "") -> list[Object]:
        wants = [_requirement(part) for part in label_selector.split(",") if part.strip()]
        return [
            clone(obj)
            for obj in self.each(resource, namespace)
            if all(want(obj["metadata"].get("labels") or {}) for want in wants)
        ]

    async def create(self, obj: Object) -> Object:
        ident = _ident(obj)
        if ident in self.objects:
            raise Conflict(409, f"{ident[0].plural} {ident[2]!r} already exists")
        return self._create(ident, obj)

    async def replace(self, obj: Object) -> Object:
        ident = _ident(obj)
        live = self._live(ident, obj)
        if not obj["metadata"].get("resourceVersion"):
            raise Invalid(422, "metadata.resourceVersion: must be specified for an update")
        new = clone(obj)
        if ident[0] not in NO_STATUS:
            new["status"] = clone(live.get("status", {}))
            if not new["status"]:
                del new["status"]
        for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp"):
            if name in live["metadata"]:
                new["metadata"][name] = live["metadata"][name]
        return self._store(ident, new, self._manager)

    async def apply(self, obj: Object) -> Object:
        ident = _ident(obj)
        if ident not in self.objects:
            if obj["metadata"].get("uid"):
                raise Conflict(
                    409, f"{ident[0].plural} {ident[2]!r}: uid precondition on an object that is gone"
                )
            stored = self._create(ident, obj)
            self._owned[ident, self._manager, ""] = set(
                _leaves(_intent(obj, drop_status=ident[0] not in NO_STATUS))
            )
            return stored
        return self._apply(ident, obj, "")

    async def apply_status(self, obj: Object) -> Object:
        ident = _ident(obj)
        if not obj["metadata"].get("resourceVersion"):
            raise ValueError("apply_status without resourceVersion")
        if ident not in self.objects:
            raise KubeError(404, f"{ident[0].plural} {ident[2]!r} not found")
        return self._apply(ident, obj, "status")

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> None:
        ident = (resource, namespace, name)
        live = self.objects.get(ident)
        if live is None:
            return
        if uid is not None and live["metadata"]["uid"] != uid:
            raise Conflict(409, f"{resource.plural} {name!r}: the uid in the precondition does not match")
        if live["metadata"].get("finalizers"):
            if "deletionTimestamp" not in live["metadata"]:
                new = clone(live)
                new["metadata"]["deletionTimestamp"] = _time(self.clock())
                self._store(ident, new, self._manager)
            return
        self._remove(ident)

    async def pod_log(self, namespace: str, pod: str, tail_lines: int) -> str:
        text = self.logs.get((namespace, pod))
        if text is None:
            raise KubeError(404, f"pods {pod!r} not found")
        return "".join(text.splitlines(keepends=True)[-tail_lines:])

    # -------------------------------------------------------------- inside
    def _live(self, ident: Ident, obj: Object) -> Object:
        live = self.objects.get(ident)
        if live is None:
            raise KubeError(404, f"{ident[0].plural} {ident[2]!r} not found")
        wanted = obj["metadata"].get("resourceVersion")
        if wanted and wanted != live["metadata"]["resourceVersion"]:
            raise Conflict(409, f"{ident[0].plural} {ident[2]!r}: the object has been modified")
        if obj["metadata"].get("uid") not in (None, live["metadata"]["uid"]):
            raise Conflict(409, f"{ident[0].plural} {ident[2]!r}: uid precondition failed")
        return live

    def _create(self, ident: Ident, obj: Object) -> Object:
        new = _intent(obj, drop_status=ident[0] not in NO_STATUS)
        new["metadata"] = {
            **new["metadata"],
            "uid": f"{next(self._uids):08x}-0000-4000-8000-000000000000",
            "creationTimestamp": _time(self.clock()),
            "generation": 1,
        }
        return self._store(ident, new, self._manager)

    def _apply(self, ident: Ident, obj: Object, subresource: str) -> Object:
        live = self._live(ident, obj)
        intent = (
            {"status": clone(obj.get("status", {}))}
            if subresource
            else _intent(obj, drop_status=ident[0] not in NO_STATUS)
        )
        mine = (ident, self._manager, subresource)
        before = self._owned.get(mine, set())
        now = set(_leaves(intent))
        others = set().union(
            *(paths for key, paths in self._owned.items() if key[0] == ident and key != mine)
        )
        new = clone(live)
        # An item of a list goes before its own parts, by which it is found.
        for path in sorted(before - now - others, key=len):
            _remove_path(new, path)
        _merge(new, intent, "")
        stored = self._store(ident, new, self._manager)
        self._owned[mine] = now
        return stored

    def _store(self, ident: Ident, new: Object, by: str) -> Object:
        live = self.objects.get(ident)
        new.setdefault("apiVersion", ident[0].api_version)
        new.setdefault("kind", ident[0].kind)
        new = _admit(ident, new, live)
        if live is not None:
            new["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
            if new == live:
                return clone(live)
            if new.get("spec") != live.get("spec"):
                new["metadata"]["generation"] = live["metadata"].get("generation", 0) + 1
        self._counter[0] += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self.objects[ident] = new
        if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
            self._remove(ident)
        else:
            self._tell(Change("ADDED" if live is None else "MODIFIED", ident[0], clone(new), by))
        return clone(new)

    def _remove(self, ident: Ident) -> None:
        gone = self.objects.pop(ident)
        for key in [key for key in self._owned if key[0] == ident]:
            del self._owned[key]
        self._counter[0] += 1
        self._tell(Change("DELETED", ident[0], gone, self._manager))
        uid = gone["metadata"]["uid"]
        for other, obj in list(self.objects.items()):
            if any(ref["uid"] == uid for ref in obj["metadata"].get("ownerReferences", [])):
                self._remove(other)

    def _tell(self, change: Change) -> None:
        for seen in self._watchers:
            seen(change)


def _ident(obj: Object) -> Ident:
    return resource_of(obj), obj["metadata"]["namespace"], obj["metadata"]["name"]


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _intent(obj: Object, *, drop_status: bool) -> Object:
    """What the sender says about the object, without what identifies it."""
    intent = clone(obj)
    if drop_status:
        intent.pop("status", None)
    for name in ("resourceVersion", "uid", "managedFields", "creationTimestamp", "generation"):
        intent["metadata"].pop(name, None)
    return intent


def _requirement(text: str) -> Callable[[dict[str, str]], bool]:
    text = text.strip()
    found = re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", text)
    if found or " " in text:
        raise NotImplementedError(f"label selector {text!r}")
    if "!=" in text:
        name, value = text.split("!=")
        return lambda labels: labels.get(name) != value
    if "=" in text:
        name, value = text.replace("==", "=").split("=")
        return lambda labels: labels.get(name) == value
    return lambda labels: text in labels


def _admit(ident: Ident, new: Object, live: Object | None) -> Object:
    """Refuse what the API server would refuse; fill in the defaults of custom resources."""
    resource, _, name = ident
    meta = new["metadata"]
    longest = 63 if resource.kind in ("Service", "Job") else 253
    if not NAME.fullmatch(name) or len(name) > longest:
        raise Invalid(422, f"metadata.name: {name!r} is not a name of at most {longest} characters")
    for key, value in (meta.get("labels") or {}).items():
        if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
            raise Invalid(422, f"metadata.labels: {key}: {value!r} is not a label value")
    if resource.kind == "Job" and live is not None and new["spec"]["template"] != live["spec"]["template"]:
        raise Invalid(422, "spec.template: field is immutable")
    for ref in meta.get("ownerReferences", []):
        if not ref.get("uid"):
            raise Invalid(422, "metadata.ownerReferences.uid: must not be empty")
    model = MODELS.get(resource)
    if model is None:
        return new
    try:
        read = model.from_object(new)
    except ValidationError as error:
        raise Invalid(422, f"{resource.kind} {name!r}: {error}") from None
    except KeyError as error:
        raise Invalid(422, f"{resource.kind} {name!r}: {error} is required") from None
    new["spec"] = read.spec.to_wire()
    return new


# ------------------------------------------------------------------ server-side apply
def _key_of(name: str, item: Any) -> tuple[Any, ...] | None:
    keys = MAP_LISTS.get(name)
    if keys is None or not isinstance(item, dict) or any(key not in item for key in keys):
        return None
    return ("key", *(item[key] for key in keys))


def _is_map(name: str, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_key_of(name, item) for item in value)


def _leaves(value: Any, path: FieldPath = (), name: str = "") -> Iterator[FieldPath]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, (*path, key), key)
    elif _is_map(name, value):
        for item in value:
            yield (*path, _key_of(name, item))
            yield from _leaves(item, (*path, _key_of(name, item)), "")
    elif name in SETS and isinstance(value, list):
        for item in value:
            yield (*path, ("value", item))
    else:
        yield path


def _merge(target: dict[str, Any], intent: dict[str, Any], _: str) -> None:
    for key, value in intent.items():
        old = target.get(key)
        if isinstance(value, dict) and value and isinstance(old, dict):
            _merge(old, value, key)
        elif _is_map(key, value) and isinstance(old, list):
            known = {_key_of(key, item): item for item in old}
            for item in value:
                match = known.get(_key_of(key, item))
                if match is None:
                    old.append(clone(item))
                else:
                    _merge(match, item, "")
        elif key in SETS and isinstance(old, list):
            old += [item for item in value if item not in old]
        else:
            target[key] = clone(value)


def _remove_path(target: Any, path: FieldPath) -> None:
    *parents, last = path
    trail: list[tuple[Any, Any, str]] = []
    name = ""
    for part in parents:
        trail.append((target, part, name))
        target = _child(target, part, name)
        name = part if isinstance(part, str) else ""
        if target is None:
            return
    if isinstance(last, str):
        if isinstance(target, dict):
            target.pop(last, None)
    elif isinstance(target, list):
        target[:] = [item for item in target if not _matches(item, last, name)]
    # An object or list that became empty by this goes as well.
    for holder, part, holder_name in reversed(trail):
        if _child(holder, part, holder_name) in ({}, []):
            if isinstance(part, str):
                del holder[part]
            else:
                holder[:] = [item for item in holder if not _matches(item, part, holder_name)]


def _child(holder: Any, part: Any, name: str) -> Any:
    if isinstance(part, str):
        return holder.get(part) if isinstance(holder, dict) else None
    return (
        next((item for item in holder if _matches(item, part, name)), None)
        if isinstance(holder, list)
        else None
    )


def _matches(item: Any, part: tuple[Any, ...], name: str) -> bool:
    return item == part[1] if part[0] == "value" else _key_of(name, item) == part
