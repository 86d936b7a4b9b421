"""The checks before a step is taken: references, edits, the gateway, orders, the first pod. Pure.

Each check looks at the draft, and says True when it has decided the pass.
"""

from __future__ import annotations

from cutover.contract import FINALIZER
from cutover.route import GatewayConfig
from cutover_operator.origins import is_allowed
from cutover_operator.rollout import gates
from cutover_operator.rollout.candidate import Refusal
from cutover_operator.rollout.draft import Draft, stamp
from cutover_operator.rollout.leaving import holder_in_sight
from cutover_operator.rollout.routing import first_control
from cutover_operator.rollout.serving import health

WAIT_SECONDS = 5.0
STALLED_SECONDS = 30.0


# ---------------------------------------------------------------- references
def _refusal(d: Draft) -> Refusal | None:
    gateway, ref = d.world.gateway, d.spec.gateway_ref
    if gateway is None:
        known = ", ".join(d.world.known_gateways) or "none"
        return Refusal(
            "GatewayNotFound", f"gatewayRef: this namespace has no gateway {ref!r}; it has {known}", True
        )
    if not isinstance(gateway, GatewayConfig):
        return Refusal("GatewayUnreadable", gateway, True)
    for path, name in (("control", d.spec.control.provider), ("fallback", d.spec.fallback.provider)):
        if name is not None and name not in gateway.providers:
            known = ", ".join(sorted(gateway.providers))
            return Refusal(
                "ProviderNotFound", f"{path}.provider: gateway {ref} has no provider {name!r}; it has {known}"
            )
    if gateway.default_provider not in gateway.providers:
        return Refusal(
            "ProviderNotFound", f"gateway {ref}: its defaultProvider {gateway.default_provider!r} is unknown"
        )
    wrong = gates.mistakes(d.spec, gateway.task)
    if wrong is not None:
        return Refusal(*wrong)
    site, url = d.world.site, d.spec.analysis.prometheus.url
    if url is not None and not is_allowed(url, (*site.allowed_urls, site.prometheus_url)):
        return Refusal("UrlNotAllowed", f"analysis.prometheus.url {url} is not in the operator's allow list")
    if url is None and not site.prometheus_url:
        return Refusal("PrometheusUnknown", "analysis.prometheus.url: set it, the operator has no default")
    return d.model_refusal


def references(d: Draft) -> bool:
    """Names that lead nowhere. Before the start they stop everything; later they only stop advances."""
    refusal = _refusal(d)
    if refusal is None:
        return False
    started = d.status.phase != "Pending"
    waiting = refusal.waiting and refusal.reason in ("TrainingRunNotReady", "TrainingRunNotFound")
    if not waiting and d.condition("Stalled", "True", refusal.reason, refusal.message):
        d.notice(refusal.reason, refusal.message, "Warning")
    if started:
        d.blocked = refusal
        return False
    if waiting:
        d.condition("Stalled", "False", refusal.reason, refusal.message)
    d.say(refusal.reason, refusal.message)
    d.again(WAIT_SECONDS if waiting else STALLED_SECONDS)
    return True


def edited(d: Draft) -> bool:
    """Steps, gates or model changed in mid-rollout: back to the first step, at the lower of both weights."""
    if d.promoted or d.status.phase == "Pending":
        if d.promoted and d.model is not None and d.model.version != d.status.candidate_version:
            d.blocked = Refusal(
                "CandidateChanged",
                f"candidate is now {d.model.version}, but {d.status.candidate_version} was promoted; "
                "make a new ModelRollout for the new model",
            )
            d.condition("Stalled", "True", d.blocked.reason, d.blocked.message)
        return False
    if d.blocked is not None:
        return False
    assert d.model is not None
    if d.status.candidate_version not in ("", d.model.version):
        message = (
            f"the candidate changed from {d.status.candidate_version} to {d.model.version}: starting again"
        )
        d.leave_step("CandidateChanged", message)
        if d.ledger is not None:
            d.ledger = d.ledger.afresh(d.now.timestamp(), d.model.version, d.model.digest)
            d.ledger_due = True
        d.set(
            phase="Starting",
            step=0,
            weight=0,
            shadow=0,
            step_entered_at=stamp(d.now),
            step_confirmed_at=None,
            candidate_version=d.model.version,
            steps_hash=gates.steps_hash(d.spec),
        )
        d.say("CandidateChanged", message)
        d.notice("CandidateChanged", message, "Warning", d.model.version)
        d.again(0.1)
        return True
    if d.ledger is not None and d.ledger.files not in ("", d.model.digest):
        d.blocked = Refusal(
            "CandidateChanged",
            f"version {d.model.version} names other files than those being tested; give them a version of their own",
        )
        d.condition("Stalled", "True", d.blocked.reason, d.blocked.message)
        return False
    digest = gates.steps_hash(d.spec)
    if d.status.steps_hash in ("", digest):
        return False
    if not d.running:
        d.set(steps_hash=digest)
        return False
    if d.ledger is None:
        # It may go on when the evidence is there again: until then it is not forgotten that these are other steps.
        return False
    d.set(steps_hash=digest)
    weight = min(d.status.weight, d.spec.steps[0].weight or 0)
    message = f"steps or gates changed: back to step 1 at weight {weight}%"
    d.leave_step("StepsChanged", message)
    d.ledger = d.ledger.without_steps()
    d.enter_step(0, weight)
    d.say("StepsChanged", message)
    d.notice("StepsChanged", message, "Warning", digest)
    return True


# ---------------------------------------------------------------- the gateway
def gateway_wanted(d: Draft) -> bool:
    """Take the gateway, one rollout at a time, by a compare-and-swap on its route."""
    if d.status.phase != "Pending":
        return False
    d.condition("Stalled", "False", "NotStalled")
    if FINALIZER not in d.world.finalizers:
        d.finalizer = True
        d.say("Preparing", "the references are in order")
        d.again(0.1)
        return True
    other = holder_in_sight(d)
    busy = other is not None and other.finish is None and not d.holds_route
    if busy and other is not None and not d.spec.supersede:
        message = (
            f"gateway {d.spec.gateway_ref} is taken by ModelRollout {other.name}; "
            "wait for it, abort it, or set supersede: true"
        )
        if d.status.reason != "GatewayBusy":
            d.notice("GatewayBusy", message, "Warning")
        d.say("GatewayBusy", message)
        d.again(WAIT_SECONDS)
        return True
    config = d.config
    assert config is not None
    assert d.model is not None
    if not d.holds_route:
        d.taking_route = True
        if d.ledger is not None:
            d.ledger = d.ledger.pinned(first_control(d.spec, config, d.world.route).to_wire())
    d.set(
        phase="Starting",
        step_entered_at=stamp(d.now),
        steps_hash=gates.steps_hash(d.spec),
        candidate_version=d.model.version,
    )
    d.say("CandidateStarting", f"starting {d.model.version} with engine {d.spec.serving.engine}")
    d.notice("CandidateStarting", d.status.message, about=d.model.version)
    d.again(0.1)
    return True


def other_orders(d: Draft) -> bool:
    """promote, skip and retry, once per id. A freeze forbids both ways forward."""
    order = d.spec.request
    if order is None or order.id == d.status.handled_request:
        return False
    lost = d.ledger is None
    if order.action == "retry" and lost and d.promoted:
        d.set(handled_request=order.id)
        d.ledger = d.new_ledger().with_mark(d.now.timestamp(), d.status.step)
        d.ledger_due = True
        d.condition("EvidenceLost", "False", "Retried")
        d.say("RetryRequested", f"watching the promoted model anew (request {order.id})")
        return True
    if order.action == "retry" and lost and d.running:
        d.set(handled_request=order.id, steps_hash=gates.steps_hash(d.spec))
        d.leave_step("Retried", f"request {order.id}")
        d.enter_step(0)
        d.condition("EvidenceLost", "False", "Retried")
        d.say(
            "RetryRequested", f"starting again from the first step with fresh evidence (request {order.id})"
        )
        return True
    refused = ""
    if order.action == "retry":
        refused = "nothing to retry, the rollout is in progress" if not d.promoted else "it is promoted"
    elif not d.running:
        refused = f"{order.action} makes no sense in phase {d.status.phase}"
    elif d.spec.freeze:
        refused = "freeze is set"
    elif d.blocked is not None:
        refused = d.blocked.message
    elif not health(d.world).all_ready:
        refused = health(d.world).message
    elif lost:
        refused = "the evidence is lost; request retry"
    d.set(handled_request=order.id)
    if refused:
        d.notice("RequestRefused", f"request {order.id} ({order.action}): {refused}", "Warning", order.id)
        d.say("RequestRefused", f"request {order.id} ({order.action}): {refused}")
        return False
    last = len(d.spec.steps) - 1
    if order.action == "skip" and d.status.step < last:
        d.leave_step("Skipped", f"by request {order.id}")
        d.enter_step(d.status.step + 1)
        return True
    d.leave_step("Promoted", f"by request {order.id}")
    if d.status.step < last or d.status.weight < 100:
        d.enter_step(last, 100)
        d.leave_step("Promoted", f"by request {order.id}")
    promote(d, f"promoted by request {order.id}")
    return True


def promote(d: Draft, message: str) -> None:
    """All traffic for good; the rollback gates keep watching, with the risk quoted per week."""
    if d.ledger is not None:
        d.ledger = d.ledger.restarted_watch(d.now.timestamp(), d.status.step)
        d.ledger_due = True
    d.set(phase="Promoted", finish="Promoted", finished_at=stamp(d.now), weight=100, shadow=0)
    d.say("Promoted", message)
    d.condition("Promoted", "True", "Promoted", message)
    d.condition("RolledBack", "False", "Promoted")
    d.condition("Held", "False", "Promoted")
    d.notice("Promoted", message, about=stamp(d.now))
    d.again(d.interval_seconds)


# ---------------------------------------------------------------- the first pod
def candidate_starting(d: Draft) -> bool:
    """Scaled and warm before the first request: no step begins on pods that are not ready."""
    if d.status.phase != "Starting":
        return False
    if d.blocked is not None:
        d.say(d.blocked.reason, d.blocked.message)
        d.again(WAIT_SECONDS)
        return True
    pods = health(d.world)
    if pods.all_ready and d.spec.freeze:
        d.say("Frozen", "the candidate is ready; freeze is set, so the first step does not begin")
        d.condition("Held", "True", "Frozen", d.status.message)
        d.again(WAIT_SECONDS)
        return True
    if pods.all_ready:
        d.enter_step(0)
        return True
    if d.deadline_passed(d.status.step_entered_at, d.spec.serving.start_deadline):
        d.finish(
            "RolledBack",
            "CandidateNotReady",
            f"{pods.message}; not ready within serving.startDeadline {d.spec.serving.start_deadline}",
        )
        return True
    d.say("CandidateNotReady" if pods.reason in ("NotCreated", "PodsNotReady") else pods.reason, pods.message)
    d.again(min(WAIT_SECONDS, max(1.0, d.interval_seconds)))
    return True
