"""What the API server would refuse of a spec beyond types and bounds, in its own words. Pure.

The server runs the rules of `cutover.api.rules` as CEL; here the same rules are Python, in the same order, and the messages
are taken from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from cutover.api.base import ApiModel, to_seconds
from cutover.api.modelrollout import (
    ENGINE_FAMILIES,
    SELECTOR_PATTERN,
    Candidate,
    Control,
    Fallback,
    Gate,
    ModelRolloutSpec,
    Serving,
    Step,
)
from cutover.api.rules import RULES
from cutover.contract import LATENCY_EDGES_SECONDS

Check = Callable[[Any], bool]
POD_FIELDS = ("replicas", "image", "args", "resources", "model_cache", "node_selector", "tolerations")
BETWEEN = re.compile(r"t >= (\S+) && t <= ([^)\s]+)")


def refusal(spec: ModelRolloutSpec) -> str | None:
    """The first rule that is broken, as path and message; None when the API server would take the spec."""
    for path, part in _parts("spec", spec):
        broken = _out_of_bounds(path, part) or _broken(path, part)
        if broken is not None:
            return broken
    return None


def _parts(path: str, model: ApiModel) -> Iterator[tuple[str, ApiModel]]:
    yield path, model
    for name, field in type(model).model_fields.items():
        value, at = getattr(model, name), f"{path}.{field.alias or name}"
        for where, one in [(at, value)] if not isinstance(value, list) else _numbered(at, value):
            if isinstance(one, ApiModel):
                yield from _parts(where, one)


def _numbered(path: str, values: list[Any]) -> list[tuple[str, Any]]:
    return [(f"{path}.{index}", value) for index, value in enumerate(values)]


def _broken(path: str, part: ApiModel) -> str | None:
    # What a change may not do needs the object as it was before.
    kind = type(part)
    rules = [rule for rule in RULES.get(kind, ()) if "oldSelf" not in rule.expression]
    for rule, holds in zip(rules, CHECKS.get(kind, ()), strict=True):
        if not holds(part):
            return f"{path}{rule.field}: {rule.message}"
    return None


def _out_of_bounds(path: str, part: ApiModel) -> str | None:
    """Durations have their bounds in a rule of their own."""
    for name, field in type(part).model_fields.items():
        extra: Any = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        value = getattr(part, name)
        for rule in extra.get("x-kubernetes-validations", []):
            found = BETWEEN.search(rule["rule"])
            if found and value is not None and not float(found[1]) <= to_seconds(value) <= float(found[2]):
                return f"{path}.{field.alias or name} is {value}: {rule['message']}"
    return None


# ---------------------------------------------------------------- the rules, in the order of RULES
def _is_url(spec: ModelRolloutSpec) -> bool:
    return spec.candidate.model is not None and bool(re.match("https?://", spec.candidate.model.uri))


def _external(spec: ModelRolloutSpec) -> bool:
    return spec.serving.engine == "external"


def _needs_no_pods(serving: Serving) -> bool:
    bare = Serving(engine=serving.engine)
    return all(getattr(serving, name) == getattr(bare, name) for name in POD_FIELDS)


def _family_is_served(spec: ModelRolloutSpec) -> bool:
    model = spec.candidate.model
    return model is None or model.family in ENGINE_FAMILIES[spec.serving.engine]


def _weights(spec: ModelRolloutSpec) -> list[int]:
    return [step.weight for step in spec.steps if step.weight is not None]


def _shadows_first(spec: ModelRolloutSpec) -> bool:
    served = [step.weight is not None for step in spec.steps]
    return served == sorted(served)


def _names(spec: ModelRolloutSpec) -> list[str]:
    return [gate.full_name for gate in spec.gates]


def _limits_only(spec: ModelRolloutSpec) -> bool:
    gates = [gate for gate in spec.gates if gate.metric == "accuracy"]
    return all(gate.limit is not None and gate.margin is None for gate in gates)


def _one_limit(spec: ModelRolloutSpec) -> bool:
    return sum(gate.metric == "accuracy" and gate.limit is not None for gate in spec.gates) == 1


def _drawn_alike(spec: ModelRolloutSpec) -> bool:
    return spec.analysis.labels.strata == "none"


def _custom_is_whole(gate: Gate) -> bool:
    if gate.metric == "custom":
        return None not in (gate.bad, gate.total, gate.name)
    return gate.bad is None and gate.total is None


def _selects(selector: str | None) -> bool:
    return selector is None or re.fullmatch(SELECTOR_PATTERN, selector) is not None


CHECKS: dict[type[ApiModel], tuple[Check, ...]] = {
    ModelRolloutSpec: (
        lambda s: not _external(s) or _is_url(s),
        lambda s: _external(s) or not _is_url(s),
        lambda s: not _external(s) or s.candidate.model is None or s.candidate.model.adapter_uri is None,
        lambda s: not _external(s) or _needs_no_pods(s.serving),
        _family_is_served,
        _shadows_first,
        lambda s: _weights(s) == sorted(set(_weights(s))),
        lambda s: len(set(_names(s))) == len(s.gates),
        lambda s: all(name in _names(s) for step in s.steps for name in step.gates or ()),
        lambda s: _drawn_alike(s) or _limits_only(s),
        lambda s: not s.fallback.auto_confidence or _one_limit(s),
        lambda s: _drawn_alike(s) or not s.fallback.auto_confidence,
    ),
    Candidate: (lambda c: (c.training_run_ref is None) != (c.model is None),),
    Control: (lambda c: c.promoted != (c.provider is not None),),
    Step: (
        lambda s: (s.shadow is None) != (s.weight is None),
        lambda s: s.deadline is None or to_seconds(s.deadline) >= to_seconds(s.min_duration),
    ),
    Gate: (
        lambda g: g.limit is not None or (g.margin is not None and g.metric in ("accuracy", "satisfaction")),
        lambda g: g.metric != "satisfaction" or g.limit is None,
        lambda g: g.margin is None or g.metric in ("accuracy", "errorRate", "latency", "satisfaction"),
        lambda g: g.metric != "latency" or g.limit is None or g.limit in LATENCY_EDGES_SECONDS,
        lambda g: g.metric not in ("accuracy", "errorRate", "custom") or g.limit is None or 0 < g.limit < 1,
        lambda g: g.metric != "cost" or g.limit is None or g.limit > 0,
        lambda g: g.metric == "accuracy" or g.field is None,
        _custom_is_whole,
        lambda g: _selects(g.bad),
        lambda g: _selects(g.total),
    ),
    Fallback: (lambda f: not (f.auto_confidence and f.confidence is not None),),
}
