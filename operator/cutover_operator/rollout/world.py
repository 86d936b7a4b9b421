"""What a decision about a rollout looks at: frozen values, whatever could fail already turned into one. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cutover.api.modelrollout import ModelRolloutSpec, ModelRolloutStatus
from cutover.route import GatewayConfig, Route, RouteReport
from cutover_operator.evidence.ledger import Ledger, Totals
from cutover_operator.evidence.samples import Unavailable
from cutover_operator.rollout.resources import Images


@dataclass(frozen=True, slots=True)
class Site:
    """What the operator's own settings say."""

    prometheus_url: str
    allowed_urls: tuple[str, ...]
    images: Images


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another ModelRollout that holds the gateway or serves behind its route."""

    name: str
    uid: str
    finish: str | None
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class GatewayPod:
    """A gateway replica that is ready, with what it reports or why it does not."""

    name: str
    report: RouteReport | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The checkpoint as stored, and what it amounts to with the samples since."""

    stored: Ledger | None = None
    config_map: dict[str, Any] | None = None
    damaged: str = ""
    """Why the stored ledger cannot be read; empty when it can, or when there is none."""
    current: Ledger | None = None
    before: Totals | None = None
    """What had been counted at the look before; at the checkpoint when none is remembered."""
    metrics: Unavailable | None = None
    """Why the gateway's metrics cannot be judged now; None when they can."""
    unread_since: float | None = None
    """While they cannot: until when everything has been counted (Unix seconds). What came since will be read later."""
    labels: Unavailable | None = None
    scraped_replicas: int = 0
    requests_per_second: float | None = None
    served_generation: float = 0.0
    """The lowest route generation that a scraped gateway pod said it serves."""
    control_down: bool = False
    """A gateway's breaker for the control is open."""
    custom: Mapping[str, Unavailable] = field(default_factory=dict)
    """By gate with counters of its own: why they say nothing now."""


@dataclass(frozen=True, slots=True)
class World:
    parent: dict[str, Any]
    """The parent as stored."""
    spec: ModelRolloutSpec
    status: ModelRolloutStatus
    site: Site
    gateway: GatewayConfig | str | None = None
    """The chart's configuration; a text says why it cannot be read; None that there is none."""
    known_gateways: tuple[str, ...] = ()
    route_map: dict[str, Any] | None = None
    route: Route | None = None
    rollouts: tuple[Neighbour, ...] = ()
    training_run: dict[str, Any] | None = None
    deployment: dict[str, Any] | None = None
    service: dict[str, Any] | None = None
    pods: tuple[dict[str, Any], ...] = ()
    """The candidate's pods."""
    gateways: tuple[GatewayPod, ...] = ()
    evidence: Evidence = field(default_factory=Evidence)
    remembered: bool = False
    """Nothing but the evidence was read anew since a whole look found the children as they must be."""
    report_map: dict[str, Any] | None = None
    """The written report as stored; looked at only after an end."""
    champion_job: dict[str, Any] | None = None
    """The Job that tells MLflow of an end; looked at while the status speaks of one."""
    champion_pods: tuple[dict[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return str(self.parent["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.parent["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.parent["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.parent["metadata"].get("generation", 0))

    @property
    def deleted_at(self) -> str | None:
        stamp = self.parent["metadata"].get("deletionTimestamp")
        return str(stamp) if stamp else None

    @property
    def finalizers(self) -> list[str]:
        return list(self.parent["metadata"].get("finalizers") or [])


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A parent whose spec is not one; the API server's schema normally refuses it."""

    parent: dict[str, Any]
    message: str
