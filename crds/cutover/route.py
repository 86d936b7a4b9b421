"""The route document a gateway follows, the gateway's own configuration, and what it reports back.

The operator renders the route into the ConfigMap `<gateway>-route`; the same file serves outside Kubernetes.
Pure data, plus the assignment of a request to an arm.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from cutover.contract import ROLLOUT_NONE, STRATUM_AGREE, STRATUM_ALL, STRATUM_DISAGREE
from cutover.task import Task

BASIS_POINTS = 10_000


class WireModel(BaseModel):
    """camelCase document shared between programs; unknown keys are ignored, so that versions may differ by one."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def to_wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Price(WireModel):
    """What an answer costs, and since when the price holds."""

    kind: Literal["tokens", "busySeconds"] = "tokens"
    usd_per_million_input_tokens: Annotated[float, Field(ge=0)] = 0.0
    usd_per_million_output_tokens: Annotated[float, Field(ge=0)] = 0.0
    usd_per_request: Annotated[float, Field(ge=0)] = 0.0
    usd_per_busy_second: Annotated[float, Field(ge=0)] = 0.0
    valid_from: str = ""
    """ISO date of the price list."""


class Arm(WireModel):
    """An OpenAI-compatible endpoint."""

    name: str
    """Provider name, or the name of the ModelRollout that serves it."""
    version: str
    """Value of the metric label `version`."""
    base_url: str
    """Up to and including `/v1`."""
    model: str
    """Value of `model` in the request."""
    key: str | None = None
    """Name of the key file; never the key."""
    price: Price = Price()
    fetches_from_text: bool = False
    """It opens the URL of a Markdown picture in a prompt's text, as TGI does: no such text may reach it."""


class FallbackRules(WireModel):
    on: tuple[Literal["error", "timeout", "invalid", "overload"], ...] = (
        "error",
        "timeout",
        "invalid",
        "overload",
    )
    deadline_seconds: float = 10.0
    """Time the chosen arm has."""
    confidence: float | None = None
    """Candidate answers below it are deferred to the fallback."""
    reverse: bool = False
    """The candidate answers for a failed control (only once promoted)."""


class LabelSampling(WireModel):
    """Which requests people are asked to label: hash(salt, 'label', id) < probability of the stratum.

    With probabilities for agree and disagree, a request that both models answer is drawn when the second answer is
    there and tells the stratum; every other request is of stratum all and drawn with its record.
    """

    probability: dict[str, float] = Field(default_factory=lambda: {STRATUM_ALL: 0.0})
    deadline_seconds: float = 86400.0
    mirrored: bool = False
    """A sampled request that the control answers is copied to the candidate too, whatever the shadow share."""
    double_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that two people label, apart from one another, if they are sampled."""

    @property
    def by_stratum(self) -> bool:
        return STRATUM_DISAGREE in self.probability

    @property
    def pair_probability(self) -> float:
        """The highest chance of a request that both models answer."""
        if not self.by_stratum:
            return self.probability.get(STRATUM_ALL, 0.0)
        return max(self.probability.get(stratum, 0.0) for stratum in (STRATUM_AGREE, STRATUM_DISAGREE))


class Route(WireModel):
    schema_version: int = 1
    generation: int
    rollout: str = ROLLOUT_NONE
    """`contract.rollout_key(uid)` of the active rollout; value of the metric label `rollout`."""
    rollout_name: str = ""
    task: Task
    control: Arm
    candidate: Arm | None = None
    fallback: Arm | None = None
    """Answers for a failed arm; none means that failures reach the caller."""
    promoted: bool = False
    """The candidate has won: it is what the next rollout is compared with."""
    weight_basis_points: Annotated[int, Field(ge=0, le=BASIS_POINTS)] = 0
    shadow_basis_points: Annotated[int, Field(ge=0, le=BASIS_POINTS)] = 0
    """Share of the requests *not* assigned to the candidate that are mirrored to it."""
    salt: str = ""
    fallback_rules: FallbackRules = FallbackRules()
    labels: LabelSampling = LabelSampling()


class Provider(WireModel):
    """A hosted model the chart's values name."""

    base_url: str
    model: str
    version: str = ""
    """Default: the model's name."""
    key: str | None = None
    price: Price = Price()


class GatewayConfig(WireModel):
    """The chart's part: what this gateway may call and which task it serves."""

    name: str
    task: Task
    providers: dict[str, Provider]
    default_provider: str

    def provider_arm(self, name: str) -> Arm:
        """The arm of a provider. Raises KeyError with the known names."""
        if name not in self.providers:
            raise KeyError(f"provider {name!r} is not one of {sorted(self.providers)} of gateway {self.name}")
        provider = self.providers[name]
        return Arm(
            name=name,
            version=provider.version or provider.model,
            base_url=provider.base_url,
            model=provider.model,
            key=provider.key,
            price=provider.price,
        )

    def idle_route(self) -> Route:
        """The route before any rollout: everything to the default provider."""
        return Route(generation=0, task=self.task, control=self.provider_arm(self.default_provider))


class RouteReport(WireModel):
    """What a gateway replica serves right now."""

    gateway: str
    pod: str = ""
    generation: int
    rollout: str = ROLLOUT_NONE
    weight_basis_points: int = 0


def bucket(salt: str, *parts: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: first 8 bytes of SHA-256."""
    digest = hashlib.sha256("\x1f".join((salt, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assigned_to_candidate(route: Route, key: str) -> bool:
    """Whether the request with this key goes to the candidate. Raising the weight only adds keys."""
    return route.candidate is not None and bucket(route.salt, key) * BASIS_POINTS < route.weight_basis_points


def mirrored(route: Route, key: str) -> bool:
    """Whether a request the control answers is copied to the candidate as well."""
    if route.candidate is None or route.shadow_basis_points == 0 or assigned_to_candidate(route, key):
        return False
    return bucket(route.salt, "shadow", key) * BASIS_POINTS < route.shadow_basis_points


def mirrored_for_label(route: Route, key: str, request_id: str) -> bool:
    """Whether a request the control answers is copied to the candidate because people will, or may, label it."""
    if route.candidate is None or not route.labels.mirrored or assigned_to_candidate(route, key):
        return False
    return in_label_pool(route, request_id)


def label_probability(route: Route, stratum: str = STRATUM_ALL) -> float:
    return route.labels.probability.get(stratum, 0.0)


def sampled_for_label(route: Route, key: str, stratum: str = STRATUM_ALL) -> bool:
    """Whether people are asked to label this request. Independent of the assignment."""
    probability = label_probability(route, stratum)
    return probability > 0.0 and bucket(route.salt, "label", key) < probability


def in_label_pool(route: Route, request_id: str) -> bool:
    """Whether a request that both models answer might be drawn for a label, in one stratum or the other."""
    return bucket(route.salt, "label", request_id) < route.labels.pair_probability


def labellers_wanted(route: Route, request_id: str) -> int:
    """How many people label this request if it is sampled. Independent of the sampling and of the assignment."""
    share = route.labels.double_share
    return 2 if share > 0.0 and bucket(route.salt, "double", request_id) < share else 1
