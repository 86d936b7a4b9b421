"""One decision while it is being made: the status as it will be, and what goes with it.

Lives for one call of `decide` and touches nothing outside it. The checks write here; `settle` turns it into a plan.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from cutover.api.base import Condition, ConditionStatus, to_seconds
from cutover.api.modelrollout import LedgerRef, ModelRolloutStatus, Step, StepRecord
from cutover.contract import rollout_key
from cutover.route import Arm, GatewayConfig
from cutover_operator.conditions import timestamp
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.ledger_map import ledger_name
from cutover_operator.plan import Notice
from cutover_operator.rollout.candidate import Refusal, ServedModel, served_model
from cutover_operator.rollout.moves import Move
from cutover_operator.rollout.resources import Owner
from cutover_operator.rollout.routing import current_control, first_control, holder_of
from cutover_operator.rollout.verdict import Verdict
from cutover_operator.rollout.world import World

CONDITIONS = (
    "Ready",
    "CandidateServing",
    "MetricsAvailable",
    "RouteInSync",
    "SharedIncident",
    "Promoted",
    "RolledBack",
    "Held",
    "EvidenceLost",
    "RegistryUpdated",
    "Stalled",
)
STEPS_KEPT = 64
RUNNING = ("Progressing", "Holding", "Frozen")
TOO_LARGE = "LedgerTooLarge"
"""Reason of a condition EvidenceLost that is False: nothing is lost yet, and no checkpoint can be kept any more."""


def stamp(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parsed(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        value = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def step_title(step: Step) -> str:
    return f"shadow {step.shadow}%" if step.shadow is not None else f"weight {step.weight}%"


def _evidence_problem(world: World) -> str:
    """Why the evidence the status stands on is not there; empty when it is, or when none was ever kept."""
    evidence, said = world.evidence, world.status.ledger
    if evidence.damaged:
        return f"the evidence ledger cannot be read: {evidence.damaged}"
    if said is None:
        return ""
    if evidence.stored is None:
        return "the evidence ledger is gone"
    if evidence.stored.revision < said.revision:
        return f"the evidence ledger is at revision {evidence.stored.revision}, older than {said.revision}"
    return ""


class Draft:
    def __init__(self, world: World, now: datetime) -> None:
        self.world = world
        self.now = now
        self.spec = world.spec
        self.status: ModelRolloutStatus = world.status
        self.conditions: dict[str, Condition] = {c.type: c for c in world.status.conditions}
        self.evidence_problem = _evidence_problem(world)
        self.ledger: Ledger | None = None if self.evidence_problem else world.evidence.current
        self.ledger_due = False
        self.taking_route = False
        self.finalizer: bool | None = None
        self.orphan_children = False
        self.remove_children = False
        self.notices: list[Notice] = []
        self.again_in_seconds: float | None = None
        self.blocked: Refusal | None = None
        """What is wrong with the references of a rollout that runs already: it may stop, not advance."""
        self.verdicts: tuple[Verdict, ...] = ()
        self.missing: list[tuple[str, str]] = []
        """(reason, sentence) of everything that keeps the step."""
        self.move = Move.HOLD
        found = served_model(world.spec, world.training_run)
        self.model: ServedModel | None = found if isinstance(found, ServedModel) else None
        self.model_refusal: Refusal | None = found if isinstance(found, Refusal) else None

    # ------------------------------------------------------------ facts
    @property
    def owner(self) -> Owner:
        return Owner(self.world.name, self.world.namespace, self.world.uid)

    @property
    def key(self) -> str:
        return rollout_key(self.world.uid)

    @property
    def config(self) -> GatewayConfig | None:
        return self.world.gateway if isinstance(self.world.gateway, GatewayConfig) else None

    @property
    def holds_route(self) -> bool:
        return holder_of(self.world.route_map)[1] == self.world.uid

    @property
    def step(self) -> Step:
        return self.spec.steps[min(self.status.step, len(self.spec.steps) - 1)]

    @property
    def running(self) -> bool:
        return self.status.phase in RUNNING

    @property
    def promoted(self) -> bool:
        return self.status.finish == "Promoted"

    @property
    def interval_seconds(self) -> float:
        return max(0.5, to_seconds(self.spec.analysis.interval))

    def since(self, text: str | None) -> float:
        """Seconds since a time in status; 0 when there is none, or when the clock went back."""
        at = parsed(text)
        return max(0.0, (self.now - at).total_seconds()) if at is not None else 0.0

    def out_of_sync(self) -> str:
        """Why it is not proven that every gateway serves the committed route; empty when it is."""
        if not self.world.gateways:
            return f"no pod of gateway {self.spec.gateway_ref} is ready"
        wanted = self.status.route_generation
        current = self.world.route.generation if self.world.route is not None else 0
        if current < wanted:
            return f"route {wanted} is not written yet"
        for pod in self.world.gateways:
            if pod.report is None:
                return f"gateway pod {pod.name} {pod.error}"
            if pod.report.generation < wanted:
                return f"gateway pod {pod.name} serves route {pod.report.generation}, not {wanted}"
        return ""

    def control(self) -> Arm | None:
        """The arm the candidate is compared with, pinned when the rollout took the gateway."""
        config, route = self.config, self.world.route
        pinned: Arm | None = None
        if self.ledger is not None and self.ledger.control is not None:
            pinned = Arm.model_validate(self.ledger.control)
        elif self.holds_route and route is not None:
            pinned = route.control
        if config is None:
            return pinned or (route.control if route is not None else None)
        if pinned is None:
            try:
                pinned = first_control(self.spec, config, route)
            except KeyError:
                return None
        leaving = {n.name for n in self.world.rollouts if n.deleting}
        if pinned.name in leaving and pinned.name not in config.providers:
            return config.provider_arm(config.default_provider)
        return current_control(pinned, config)

    # ------------------------------------------------------------ writing
    def set(self, **changes: Any) -> None:
        status = self.status
        if any(getattr(status, name) != value for name, value in changes.items()):
            self.status = status.model_copy(update=changes)

    def say(self, reason: str, message: str) -> None:
        self.set(reason=reason, message=message[:4096])

    def condition(self, type_: str, status: ConditionStatus, reason: str, message: str = "") -> bool:
        """Set a condition; True when its status is another than before."""
        before, generation = self.conditions.get(type_), self.world.generation
        said = (status, reason, message, generation)
        if before is not None and said == (
            before.status,
            before.reason,
            before.message,
            before.observed_generation,
        ):
            return False
        changed = before is None or before.status != status
        since = before.last_transition_time if before is not None and not changed else timestamp(self.now)
        self.conditions[type_] = Condition(
            type=type_,
            status=status,
            reason=reason,
            message=message[:32768],
            observed_generation=generation,
            last_transition_time=since,
        )
        return changed

    def condition_is(self, type_: str, status: ConditionStatus) -> bool:
        return type_ in self.conditions and self.conditions[type_].status == status

    def notice(
        self, reason: str, message: str, type_: Literal["Normal", "Warning"] = "Normal", about: str = ""
    ) -> None:
        self.notices.append(Notice(reason, message[:1024], type_, about))

    def again(self, seconds: float) -> None:
        if self.again_in_seconds is None or seconds < self.again_in_seconds:
            self.again_in_seconds = seconds

    # ------------------------------------------------------------ moves
    def leave_step(self, outcome: str, message: str) -> None:
        """Close the record of the present step, with the numbers it was left on."""
        steps = list(self.status.steps)
        if steps and steps[-1].left_at is None:
            steps[-1] = steps[-1].model_copy(
                update={"left_at": stamp(self.now), "outcome": outcome, "message": message[:4096]}
            )
        self.set(steps=steps)

    def enter_step(self, index: int, weight: int | None = None) -> None:
        """Stand at a step: one status write, before which the ledger is kept and after which the route follows."""
        step = self.spec.steps[index]
        share = weight if weight is not None else (step.weight or 0)
        shadow = step.shadow or 0
        if self.ledger is None:
            self.ledger = self.new_ledger()
        elif self.ledger.control is None:
            self.ledger = self.ledger.pinned(self._control_wire())
        self.ledger = self.ledger.with_mark(self.now.timestamp(), index)
        self.ledger_due = True
        record = StepRecord(index=index, name=step_title(step), entered_at=stamp(self.now))
        self.set(
            phase="Progressing",
            step=index,
            weight=share,
            shadow=shadow,
            step_entered_at=stamp(self.now),
            step_confirmed_at=None,
            actual_weight="",
            steps=[*self.status.steps, record][-STEPS_KEPT:],
        )
        self.say("StepEntered", f"step {index + 1} of {len(self.spec.steps)}, {step_title(step)}")
        self.notice(
            "StepEntered", self.status.message, about=f"{self.ledger.epoch}-{index}-{stamp(self.now)}"
        )
        self.again(min(1.0, self.interval_seconds))

    def new_ledger(self) -> Ledger:
        version = self.model.version if self.model is not None else self.status.candidate_version
        return Ledger(
            uid=self.world.uid,
            version=version,
            files=self.model.digest if self.model is not None else "",
            started_at=self.now.timestamp(),
            control=self._control_wire(),
        )

    def _control_wire(self) -> dict[str, Any] | None:
        control = self.control()
        return control.to_wire() if control is not None else None

    def finish(
        self, finish: Literal["RolledBack", "Aborted", "Superseded"], reason: str, message: str
    ) -> None:
        """No traffic for the candidate from here on, and no way back but a person's request."""
        self.leave_step(finish, message)
        self.set(
            phase=finish,
            finish=finish,
            finished_at=stamp(self.now),
            weight=0,
            shadow=0,
            unavailable_since=None,
        )
        self.say(reason, message)
        self.ledger_due = self.ledger is not None
        self.condition("Promoted", "False", finish, message)
        self.condition("RolledBack", "True" if finish == "RolledBack" else "False", reason, message)
        self.condition("RouteInSync", "False", finish, "the gateways take the traffic back")
        self.condition("SharedIncident", "False", finish)
        self.condition("Held", "False", finish)
        self.notice(
            finish, f"{reason}: {message}", "Warning" if finish != "Superseded" else "Normal", stamp(self.now)
        )
        self.again(1.0)

    def ledger_ref(self, ledger: Ledger) -> LedgerRef:
        return LedgerRef(name=ledger_name(self.world.name), revision=ledger.revision)

    def deadline_passed(self, start: str | None, duration: str | None) -> bool:
        at = parsed(start)
        return (
            duration is not None
            and at is not None
            and self.now >= at + timedelta(seconds=to_seconds(duration))
        )


def too_large(d: Draft) -> bool:
    """Whether the last checkpoint that was tried did not fit."""
    known = d.conditions.get("EvidenceLost")
    return known is not None and known.status == "False" and known.reason == TOO_LARGE
