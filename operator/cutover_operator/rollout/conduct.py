"""The checks while a candidate serves: is it in force, can it be judged, must it stop, may it go on. Pure.

Each check looks at the draft, and says True when it has decided the pass. Only `advance` ever raises a weight by
itself, and only on recorded passes.
"""

from __future__ import annotations

from datetime import timedelta

from cutover.api.base import to_seconds
from cutover_operator.conditions import timestamp
from cutover_operator.evidence.ledger import Totals, minus
from cutover_operator.evidence.samples import Unavailable
from cutover_operator.rollout.counts import answered, shadow_counts
from cutover_operator.rollout.draft import Draft, parsed, stamp, step_title, too_large
from cutover_operator.rollout.entering import promote
from cutover_operator.rollout.gate_tests import odd_share
from cutover_operator.rollout.gates import EXCUSABLE, PASSED, advance_names, named_gates, passed_steps
from cutover_operator.rollout.moves import Move, choose, incident_lasts
from cutover_operator.rollout.risk import WATCH_SECONDS
from cutover_operator.rollout.serving import health
from cutover_operator.rollout.verdict import Bench, Verdict, control_is_ill, judge, unavailable

FIRST_SCRAPE_SECONDS = 120.0
LOOK_AGAIN_SECONDS = 0.2
CONTROL_DOWN = "ControlDown"
"""Reason of a shared incident while the control's breaker is open."""
EVIDENCE_REASONS = ("WaitingForEvidence", "LabelsUnavailable")
"""A gate that must pass has not, or cannot be judged."""


def _judged(d: Draft) -> tuple[Verdict, ...]:
    assert d.ledger is not None
    incident = d.condition_is("SharedIncident", "True") and _incident_lasts(d)[0]
    evidence = d.world.evidence
    bench = Bench(
        d.spec,
        d.status.step,
        d.ledger,
        d.now.timestamp(),
        evidence.labels,
        incident,
        evidence.custom,
    )
    return tuple(judge(bench, gate) for gate in named_gates(d.spec))


def _needed(d: Draft) -> frozenset[str]:
    """Names of the gates this step needs, by the spec and by how the steps before were left."""
    return advance_names(d.spec, min(d.status.step, len(d.spec.steps) - 1), passed_steps(d.spec, d.status))


def _stop(d: Draft, reason: str, message: str) -> bool:
    d.finish("RolledBack", reason, message)
    return True


def pods_gone(d: Draft) -> bool:
    """A candidate without a single ready pod for the whole start deadline does not come back by itself."""
    pods = health(d.world)
    since = d.conditions.get("CandidateServing")
    if pods.any_ready or since is None or since.status != "False" or since.reason == "NotYetObserved":
        return False
    if d.since(since.last_transition_time) < to_seconds(d.spec.serving.start_deadline):
        return False
    return _stop(d, "CandidateNotReady", f"{pods.message} for {d.spec.serving.start_deadline}")


def confirm(d: Draft) -> bool:
    """A step's time runs from the moment every gateway pod reports the step's route. After the first step the
    metrics have to be there too: else its evidence would begin with what was counted under the step before."""
    late = d.out_of_sync()
    if late:
        if d.status.step_confirmed_at is None and not d.promoted:
            d.say("RouteNotInSync", f"waiting until every gateway serves the step: {late}")
        return False
    known = d.world.evidence.metrics is None
    if d.status.step_confirmed_at is None and (known or d.promoted or _first_of_all(d)):
        d.set(step_confirmed_at=stamp(d.now))
        if d.ledger is not None and known and not d.promoted:
            d.ledger = d.ledger.with_mark(d.now.timestamp(), d.status.step)
            d.ledger_due = True
    return False


def _first_of_all(d: Draft) -> bool:
    """Whether the evidence began with this step: whatever is counted later on is its own."""
    return d.ledger is not None and [m.step for m in d.ledger.marks] == [d.status.step]


def evidence_lost(d: Draft) -> bool:
    """Without the counts so far there is no verdict; they are never begun again at zero by themselves."""
    if d.ledger is not None:
        if not too_large(d):
            d.condition("EvidenceLost", "False", "Complete")
        return False
    problem = d.evidence_problem or "there is no evidence ledger"
    message = f"{problem}; holding at weight {d.status.weight}%, request retry or abort"
    if d.condition("EvidenceLost", "True", "EvidenceLost", message):
        d.notice("EvidenceLost", message, "Warning")
    d.set(verdict="unavailable")
    if not d.promoted:
        d.set(phase="Holding")
    d.say("EvidenceLost", message)
    d.again(max(5.0, d.interval_seconds))
    return True


def metrics_unavailable(d: Draft) -> bool:
    """Metrics that cannot be read are neither good nor bad: hold, say since when, and follow `onUnavailable`."""
    problem = d.world.evidence.metrics
    if problem is None:
        d.set(unavailable_since=None)
        d.condition("MetricsAvailable", "True", "Available", "the gateway's metrics are read")
        return False
    since = d.status.unavailable_since or stamp(d.now)
    d.again(d.interval_seconds)
    d.verdicts = tuple(unavailable(gate, problem) for gate in named_gates(d.spec))
    d.set(verdict="unavailable")
    if _first_scrape(d, problem):
        d.condition("MetricsAvailable", "Unknown", "WaitingForFirstScrape", problem.message)
        d.say("WaitingForFirstScrape", problem.message)
        return True
    d.set(unavailable_since=since)
    message = f"metrics unavailable since {since}: {problem.message}"
    if d.condition("MetricsAvailable", "False", problem.kind, message):
        d.notice("MetricsUnavailable", message, "Warning")
    after = to_seconds(d.spec.analysis.on_unavailable.after)
    if d.since(since) >= after and not d.promoted:
        if d.spec.analysis.on_unavailable.action == "rollback":
            return _stop(d, "MetricsUnavailable", f"{message}; onUnavailable says rollback after {after:g} s")
        message += f"; longer than {d.spec.analysis.on_unavailable.after}, onUnavailable says hold"
    if not d.promoted:
        d.set(phase="Holding")
    d.say("MetricsUnavailable", message)
    return True


def _first_scrape(d: Draft, problem: Unavailable) -> bool:
    """Whether a first step has no series because its gateways have only just begun to serve it, or not yet."""
    if problem.kind != "NoSeries" or d.status.step != 0 or d.condition_is("MetricsAvailable", "True"):
        return False
    if d.status.step_confirmed_at is None:
        return bool(d.out_of_sync())
    return d.status.unavailable_since is None and d.since(d.status.step_confirmed_at) < FIRST_SCRAPE_SECONDS


def judged(d: Draft) -> bool:
    """Work out the verdicts and the move every later check stands on."""
    assert d.ledger is not None
    down, known = d.world.evidence.control_down, d.conditions.get("SharedIncident")
    if known is not None and known.status == "True" and known.reason == CONTROL_DOWN and not down:
        # What happened while nobody could be sent back judges nobody.
        _rolled(d)
    d.verdicts = _judged(d)
    d.missing = [] if d.promoted else _missing(d)
    d.move = _move(d)
    part = d.ledger.since_step(d.status.step)
    mine, theirs = answered(part, "candidate"), answered(part, "control")
    names = _needed(d)
    worst = "pass" if all(v.verdict == "pass" for v in d.verdicts if v.gate.name in names) else "insufficient"
    if any(v.verdict == "unavailable" for v in d.verdicts if v.gate.name in names):
        worst = "unavailable"
    if any(v.verdict == "fail" for v in d.verdicts):
        worst = "fail"
    d.set(
        actual_weight=f"{100 * mine / (mine + theirs):.1f}%" if mine + theirs > 0 else "",
        verdict=worst,
    )
    d.again(d.interval_seconds)
    return False


def _move(d: Draft) -> Move:
    """What the verdicts allow, by the same rule that simulated rollouts follow."""
    names = _needed(d)
    found = {reason for reason, _ in d.missing}
    late = d.deadline_passed(d.status.step_entered_at, d.step.deadline)
    move = choose(
        [v.code for v in d.verdicts],
        [v.shared for v in d.verdicts],
        [v.gate.name in names for v in d.verdicts],
        control_down=d.world.evidence.control_down,
        excusable=[v.gate.metric in EXCUSABLE for v in d.verdicts],
        incident=d.condition_is("SharedIncident", "True") and _incident_lasts(d)[0],
        promoted=d.promoted,
        held=d.spec.freeze or d.spec.hold,
        in_force=not found - {"WaitingForRequests", "WaitingForTime", *EVIDENCE_REASONS},
        enough_requests="WaitingForRequests" not in found,
        enough_time="WaitingForTime" not in found,
        too_late=late and d.step.on_deadline == "rollback",
    )
    return Move(int(move))


def must_stop(d: Draft) -> bool:
    """One proven breach takes the traffic away, unless the control breaks the same limit: then nobody is to blame."""
    failed = [v for v in d.verdicts if v.verdict == "fail"]
    if d.move is Move.ROLL_BACK and failed:
        down = d.world.evidence.control_down
        first = next(v for v in failed if not (v.shared or (down and v.gate.metric in EXCUSABLE)))
        tail = " after the promotion" if d.promoted else f" at {step_title(d.step)}"
        return _stop(d, first.reason, first.message + tail)
    if failed:
        suspected = next((v for v in failed if v.suspected), failed[0])
        return _incident(d, suspected)
    return _incident_over(d)


def _incident(d: Draft, verdict: Verdict) -> bool:
    assert d.ledger is not None
    now = d.now.timestamp()
    down = d.world.evidence.control_down
    why = "the control's breaker is open" if down else verdict.message
    message = f"both arms are in trouble, so no weight moves: {why}"
    begun = d.condition_is("SharedIncident", "True")
    if begun:
        _look_anew(d)
    d.condition("SharedIncident", "True", CONTROL_DOWN if down else verdict.reason, message)
    if not begun:
        d.notice("SharedIncident", message, "Warning", stamp(d.now))
        d.ledger = d.ledger.after_incident(now)
        d.ledger_due = True
    _frozen(d, message)
    return True


def _look_anew(d: Draft) -> None:
    """Once the control answers well after a bad stretch, judge both arms from the look before on and look again at once,
    so that the bad stretch holds up nobody. While it lasts there is nothing to write."""
    if not d.world.evidence.control_down and _control_recovered(d, _before(d)):
        _rolled(d)
        d.again(LOOK_AGAIN_SECONDS)


def _before(d: Draft) -> Totals:
    """The totals of the look before."""
    assert d.ledger is not None
    before = d.world.evidence.before
    return before if before is not None else d.ledger.totals


def _rolled(d: Draft) -> None:
    assert d.ledger is not None
    d.ledger = d.ledger.rolled_incident(d.now.timestamp(), _before(d))
    d.ledger_due = True


def _control_recovered(d: Draft, before: Totals) -> bool:
    """Whether the control looks ill since judging began, and well since the look before."""
    assert d.ledger is not None
    newest = minus(d.ledger.totals, before)
    return (
        answered(newest, "control") > 0
        and not control_is_ill(d.spec, newest)
        and any(control_is_ill(d.spec, since) for _, since in d.ledger.epochs(d.ledger.fresh_from))
    )


def _frozen(d: Draft, message: str) -> None:
    if not d.promoted:
        d.set(phase="Frozen")
    d.set(verdict="fail")
    d.say("SharedIncident", message)
    d.again(d.interval_seconds)


def _incident_over(d: Draft) -> bool:
    """The incident lasts until the control has answered enough within the limits since the last bad look."""
    if not d.condition_is("SharedIncident", "True"):
        d.condition("SharedIncident", "False", "None")
        return False
    assert d.ledger is not None
    lasts, bad, n = _incident_lasts(d)
    if lasts:
        _look_anew(d)
        down, known = d.world.evidence.control_down, d.conditions["SharedIncident"]
        if down != (known.reason == CONTROL_DOWN):
            reason = CONTROL_DOWN if down else "ControlAnswers"
            d.condition("SharedIncident", "True", reason, known.message)
        _frozen(d, f"shared incident: {bad:.0f} of the control's last {n:.0f} answers were errors")
        return True
    d.condition("SharedIncident", "False", "Over", f"the control answered {n:.0f} requests within its limits")
    d.notice("SharedIncidentOver", "the control answers within its limits again", about=stamp(d.now))
    return False


def _incident_lasts(d: Draft) -> tuple[bool, float, float]:
    """Whether the shared incident goes on, with the control's errors and answers since the last bad look."""
    assert d.ledger is not None
    since: Totals = next(iter(d.ledger.epochs(d.ledger.fresh_from)), (1, {}))[1]
    bad, n = since.get("requests/control/error", 0.0), answered(since, "control")
    limit = min((g.gate.limit or 0.05 for g in named_gates(d.spec) if g.metric == "errorRate"), default=0.05)
    return bool(incident_lasts(bad, n, limit, d.world.evidence.control_down)), bad, n


def watching(d: Draft) -> bool:
    """After the promotion only rollbacks are left; every week the tests begin anew."""
    if not d.promoted:
        return False
    assert d.ledger is not None
    start = min((m.at for m in d.ledger.marks), default=d.now.timestamp())
    if d.now.timestamp() - start >= WATCH_SECONDS:
        d.ledger = d.ledger.restarted_watch(d.now.timestamp(), d.status.step)
        d.ledger_due = True
    if d.status.reason in ("SharedIncident", "MetricsUnavailable", "EvidenceLost", "RequestRefused"):
        d.say("Promoted", "all traffic; the rollback gates keep watching")
    return True


def held_by_people(d: Draft) -> bool:
    """`freeze` and `hold` stop advances only: a breach has been looked for already."""
    if not (d.spec.freeze or d.spec.hold):
        d.condition("Held", "False", "NotHeld")
        return False
    reason = "Frozen" if d.spec.freeze else "HeldByUser"
    field = "freeze" if d.spec.freeze else "hold"
    message = f"spec.{field} is set: no advance from weight {d.status.weight}%; rollbacks still happen"
    d.condition("Held", "True", reason, message)
    d.set(phase="Frozen" if d.spec.freeze else "Holding")
    d.say(reason, message)
    return True


def advance(d: Draft) -> bool:
    """Go on when everything that must pass has passed; otherwise say what is missing."""
    if d.move is not Move.ADVANCE:
        late = d.deadline_passed(d.status.step_entered_at, d.step.deadline)
        text = "; ".join(m for _, m in d.missing)
        if d.move is Move.ROLL_BACK:
            return _stop(d, "DeadlinePassed", f"not proven within {d.step.deadline}: {text}")
        d.set(phase="Holding" if late or d.blocked is not None else "Progressing")
        if late:
            d.say(
                "DeadlinePassed",
                f"the step's deadline {d.step.deadline} has passed, onDeadline says hold: {text}",
            )
        else:
            d.say(d.missing[0][0], text)
        return True
    names = _needed(d)
    passed = "; ".join(v.message for v in d.verdicts if v.gate.name in names) or "time and requests"
    d.leave_step(PASSED, passed)
    if d.status.step + 1 < len(d.spec.steps):
        d.enter_step(d.status.step + 1)
    elif d.status.weight < 100:
        d.set(weight=100)
        d.enter_step(d.status.step, 100)
        d.leave_step(PASSED, passed)
        promote(d, f"passed the last step: {passed}")
    else:
        promote(d, f"passed the last step: {passed}")
    return True


def _missing(d: Draft) -> list[tuple[str, str]]:
    """(reason, sentence) of everything that keeps the step."""
    assert d.ledger is not None
    found: list[tuple[str, str]] = []
    step, evidence = d.step, d.world.evidence
    if d.blocked is not None:
        found.append((d.blocked.reason, d.blocked.message))
    pods = health(d.world)
    if not pods.all_ready:
        found.append(("CandidateNotReady", pods.message))
    confirmed = parsed(d.status.step_confirmed_at)
    late = d.out_of_sync()
    if confirmed is None or late:
        found.append(("RouteNotInSync", f"not every gateway serves the step: {late or 'just now'}"))
        return found
    part = d.ledger.since_step(d.status.step)
    n = sum(shadow_counts(part)) if step.shadow is not None else answered(part, "candidate")
    if n < step.min_requests:
        kind = "mirrored requests" if step.shadow is not None else "requests"
        found.append(("WaitingForRequests", f"{n:.0f} of {step.min_requests} {kind} in this step"))
    elif step.weight is not None:
        odd = _odd_share(part, d.status.weight)
        if odd:
            found.append(("WeightNotObserved", odd))
    if evidence.scraped_replicas < len(d.world.gateways):
        text = f"Prometheus scrapes {evidence.scraped_replicas} of {len(d.world.gateways)} gateway pods"
        found.append(("ScrapeIncomplete", text))
    names = _needed(d)
    for verdict in d.verdicts:
        if verdict.gate.name in names and verdict.verdict != "pass":
            found.append((EVIDENCE_REASONS[verdict.verdict == "unavailable"], verdict.message))
    waited, least = d.since(d.status.step_confirmed_at), to_seconds(step.min_duration)
    if waited < least:
        until = timestamp(confirmed + timedelta(seconds=least))
        found.append(
            (
                "WaitingForTime",
                f"at this step until {until} at the earliest (minDuration {step.min_duration})",
            )
        )
        d.again(max(0.2, least - waited))
    return found


def _odd_share(part: Totals, weight: int) -> str:
    """Why the observed share of requests contradicts the weight; empty when it does not."""
    mine, theirs = answered(part, "candidate"), answered(part, "control")
    if not odd_share(mine, theirs, weight / 100):
        return ""
    share = mine / (mine + theirs)
    return (
        f"{100 * share:.1f}% of {mine + theirs:.0f} requests reached the candidate, the weight is {weight}%"
    )
