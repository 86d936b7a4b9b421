"""Renders the route document from what is committed in status. Pure.

The generation only moves when the content does, and a generation a gateway may have seen is never used for other
content. The route belongs to the gateway, not to a rollout: an annotation on its ConfigMap names the one rollout
that may write it, and taking it over is a compare-and-swap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec
from cutover.contract import (
    LABEL_GATEWAY,
    LABEL_MANAGED_BY,
    LABEL_OWNER_KIND,
    LABEL_OWNER_NAME,
    MANAGED_BY,
    ROLLOUT_NONE,
    ROUTE_KEY,
    STRATUM_AGREE,
    STRATUM_ALL,
    STRATUM_DISAGREE,
    route_config_map,
)
from cutover.route import Arm, FallbackRules, GatewayConfig, LabelSampling, Route
from cutover_operator.rollout import strata

HOLDER = "cutover.dev/held-by"
"""Annotation on the route's ConfigMap: `name/uid` of the rollout that may write it."""
GUESSED_PAIRS = (85.0, 15.0)
"""Pairs that agree and that do not, before any was seen."""
PROBABILITIES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rollout stands, as far as the route is concerned."""

    rollout_key: str
    rollout_name: str
    uid: str
    control: Arm
    candidate: Arm | None
    weight_percent: int = 0
    shadow_percent: int = 0
    promoted: bool = False
    confidence: float | None = None
    """Candidate answers below it are deferred."""
    label_probabilities: Mapping[str, float] = field(default_factory=lambda: {STRATUM_ALL: 0.0})


def read_route(config_map: dict[str, Any] | None) -> Route | None:
    """The route in a ConfigMap; None when there is none or it cannot be read."""
    text = ((config_map or {}).get("data") or {}).get(ROUTE_KEY)
    if not text:
        return None
    try:
        return Route.model_validate_json(text)
    except ValidationError:
        return None


def holder_of(config_map: dict[str, Any] | None) -> tuple[str, str]:
    """(name, uid) of the rollout that may write the route; empty when nobody took it."""
    text = str((((config_map or {}).get("metadata") or {}).get("annotations") or {}).get(HOLDER, ""))
    name, _, uid = text.partition("/")
    return name, uid


def first_control(spec: ModelRolloutSpec, config: GatewayConfig, route: Route | None) -> Arm:
    """Whom a rollout that starts now is compared with: the provider it names, else the model promoted last on this
    gateway (never one that is only half tested), else the gateway's default provider. Raises KeyError."""
    if spec.control.provider is not None:
        return config.provider_arm(spec.control.provider)
    if spec.control.promoted and route is not None:
        if route.promoted and route.candidate is not None:
            return route.candidate
        if route.control.name not in config.providers:
            return route.control
    return config.provider_arm(config.default_provider)


def current_control(pinned: Arm, config: GatewayConfig) -> Arm:
    """The pinned control with today's address and price when it is a provider."""
    return config.provider_arm(pinned.name) if pinned.name in config.providers else pinned


def render(spec: ModelRolloutSpec, config: GatewayConfig, position: Position, generation: int) -> Route:
    """The route for a position. Without a candidate it is the route at rest. Raises KeyError for an unknown provider."""
    fallback = config.provider_arm(spec.fallback.provider or config.default_provider)
    if position.candidate is None:
        return Route(
            generation=generation,
            rollout=ROLLOUT_NONE,
            task=config.task,
            control=position.control,
            fallback=fallback,
            salt=position.uid,
            fallback_rules=_fallback_rules(spec, False, None),
        )
    return Route(
        generation=generation,
        rollout=position.rollout_key,
        rollout_name=position.rollout_name,
        task=config.task,
        control=position.control,
        candidate=position.candidate,
        fallback=fallback,
        promoted=position.promoted,
        weight_basis_points=position.weight_percent * 100,
        shadow_basis_points=position.shadow_percent * 100,
        salt=position.uid,
        fallback_rules=_fallback_rules(spec, position.promoted, position.confidence),
        labels=LabelSampling(
            probability=dict(position.label_probabilities),
            deadline_seconds=to_seconds(spec.analysis.labels.deadline),
            mirrored=spec.analysis.labels.pool == "mirrored",
            double_share=spec.analysis.labels.double_share,
        ),
    )


def _fallback_rules(spec: ModelRolloutSpec, promoted: bool, confidence: float | None) -> FallbackRules:
    return FallbackRules(
        on=spec.fallback.when,
        deadline_seconds=spec.fallback.deadline_seconds,
        confidence=confidence,
        reverse=spec.fallback.reverse and promoted,
    )


def same_content(one: Route | None, other: Route) -> bool:
    return one is not None and one.model_copy(update={"generation": other.generation}) == other


def next_generation(current: Route | None, committed: int, wanted: Route, seen: int = 0) -> int:
    """Generation for the wanted content. `committed` is what status promised: when the route has not reached it and no
    gateway reports it (`seen`), nobody knows it, and it may still be used."""
    reached = current.generation if current is not None else 0
    if same_content(current, wanted) and reached >= committed:
        return reached
    return committed if max(reached, seen) < committed else max(reached, seen, committed) + 1


def label_probability(per_hour: float, requests_per_second: float | None, current: float) -> float:
    """The sampling probability that gives people about `per_hour` labels; 1 while the rate is unknown.

    In few steps, and only changed when it is off by half: every change is a new route.
    """
    if requests_per_second is None or requests_per_second <= 0:
        return current if current > 0 else 1.0
    ideal = min(1.0, per_hour / 3600.0 / requests_per_second)
    if current > 0 and 0.5 <= current / ideal <= 2.0:
        return current
    return min(PROBABILITIES, key=lambda p: abs(p - ideal) if p <= ideal else 10 + p)


def label_probabilities(
    per_hour: float,
    requests_per_second: float | None,
    current: Mapping[str, float],
    pairs: tuple[float, float] | None,
) -> dict[str, float]:
    """The sampling probability of each stratum. `pairs`: mirrored requests that agree and that do not; none when labels
    are drawn alike.

    Few pairs weigh little beside a guess, and small changes are not followed: every change is a new route.
    """
    overall = label_probability(per_hour, requests_per_second, current.get(STRATUM_ALL, 0.0))
    if pairs is None:
        return {STRATUM_ALL: overall}
    shares = [seen + guessed for seen, guessed in zip(pairs, GUESSED_PAIRS, strict=True)]
    agree, disagree = (float(f"{p:.4g}") for p in strata.probabilities(shares, overall))
    before = current.get(STRATUM_DISAGREE, 0.0) / current.get(STRATUM_AGREE, 1.0)
    same = overall == current.get(STRATUM_ALL) and STRATUM_DISAGREE in current
    if same and 0.67 <= before / (disagree / agree) <= 1.5:
        return dict(current)
    return {STRATUM_ALL: overall, STRATUM_AGREE: agree, STRATUM_DISAGREE: disagree}


def config_map(
    current: dict[str, Any] | None, namespace: str, gateway: str, route: Route, holder: tuple[str, str]
) -> dict[str, Any]:
    """The route's ConfigMap with the new document; whatever else the chart put on it stays."""
    obj: dict[str, Any] = deepcopy(current) if current is not None else {}
    obj["apiVersion"], obj["kind"] = "v1", "ConfigMap"
    metadata = obj.setdefault("metadata", {})
    metadata.setdefault("name", route_config_map(gateway))
    metadata.setdefault("namespace", namespace)
    metadata.pop("managedFields", None)
    # The owner's labels let the watch see whoever moves the route.
    metadata["labels"] = {
        **(metadata.get("labels") or {}),
        LABEL_GATEWAY: gateway,
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_OWNER_KIND: "ModelRollout",
        LABEL_OWNER_NAME: holder[0][:63],
    }
    metadata["annotations"] = {**(metadata.get("annotations") or {}), HOLDER: "/".join(holder)}
    obj["data"] = {
        **(obj.get("data") or {}),
        ROUTE_KEY: json.dumps(route.to_wire(), indent=1, sort_keys=True),
    }
    return obj
