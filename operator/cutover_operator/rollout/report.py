"""The written report of a rollout as Markdown: what was decided, when, on which numbers, and what it saved. Pure.

Made from the committed status and the evidence ledger alone, so the same record always gives the same text. It holds
no secret: credentials and queries of URLs that stand in messages are taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cutover.api.modelrollout import ModelRolloutSpec, ModelRolloutStatus
from cutover.contract import FIELD_OVERALL
from cutover_operator.evidence.ledger import Ledger, Totals
from cutover_operator.rollout.accounts import (
    DEPENDENCY_GOAL,
    SAVING_GOAL,
    Dependency,
    bill,
    dependency,
    is_hosted,
)
from cutover_operator.rollout.counts import (
    Pair,
    answered,
    error_counts,
    label_counts,
    shadow_counts,
    slow_counts,
)
from cutover_operator.rollout.gates import edges, named_gates
from cutover_operator.rollout.lessons import Facts, lessons, stays
from cutover_operator.rollout.wording import cell, clock, number, percent, span, without_credentials

LIMIT_BYTES = 60_000
ENDINGS = {
    "Promoted": "promoted",
    "RolledBack": "rolled back",
    "Aborted": "aborted",
    "Superseded": "superseded",
}
ARMS = ("candidate", "control")


def write_report(
    name: str,
    namespace: str,
    spec: ModelRolloutSpec,
    status: ModelRolloutStatus,
    ledger: Ledger | None,
    as_of: datetime,
) -> str:
    """The report; `as_of` is when its numbers were true. At most LIMIT_BYTES in UTF-8."""
    facts = Facts(spec, status, ledger, as_of)
    parts = [
        _head(name, namespace, facts),
        _section("Decisions", _decisions(facts)),
        _section("Gates", _gates(facts)),
        _section("Evidence", _evidence(facts)),
        _section("Cost", _cost(facts)),
        _section("Who answered", _who_answered(facts)),
        _section(
            "Lessons",
            "\n".join(f"- {text}" for text in lessons(facts)) or "None: nothing was out of the ordinary.",
        ),
    ]
    return bounded(without_credentials("\n\n".join(part for part in parts if part)) + "\n")


def bounded(text: str, limit_bytes: int = LIMIT_BYTES) -> str:
    """The text, cut at a line with a note when it is too long."""
    raw = text.encode()
    if len(raw) <= limit_bytes:
        return text
    note = "\n\n(The report is cut here; the whole record stands in the rollout's status.)\n"
    kept = raw[: limit_bytes - len(note.encode())].decode(errors="ignore")
    return kept.rsplit("\n", 1)[0] + note


# ---------------------------------------------------------------- parts
def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _head(name: str, namespace: str, facts: Facts) -> str:
    spec, status = facts.spec, facts.status
    end = ENDINGS.get(status.finish or "", f"in progress ({status.phase})")
    control = status.control_version or "the control"
    said = [
        f"# Rollout {name}: {end}",
        f"{status.candidate_version or 'The candidate'} against {control} on gateway {spec.gateway_ref}, "
        f"namespace {namespace}. Risk {percent(spec.analysis.risk)} over the whole rollout.",
    ]
    begun = datetime.fromisoformat(status.steps[0].entered_at) if status.steps else None
    if status.finish and status.finished_at:
        at = datetime.fromisoformat(status.finished_at)
        took = f", {span((at - begun).total_seconds())} after its first step began" if begun else ""
        said.append(f"{end.capitalize()} on {clock(at)}{took}.")
    elif begun:
        said.append(f"In progress since {clock(begun)}; standing at {status.step_text or 'its first step'}.")
    if status.reason or status.message:
        said.append(f"Reason: {status.reason}: {cell(status.message, 1000)}")
    said.append(f"Numbers as of {clock(facts.as_of)}.")
    return "\n\n".join(said)


def _decisions(facts: Facts) -> str:
    rows = []
    for stay in stays(facts):
        record = stay.record
        left = clock(datetime.fromisoformat(record.left_at)) if record.left_at else "still there"
        rows.append(
            [
                cell(record.name),
                clock(datetime.fromisoformat(record.entered_at)),
                left,
                span(stay.seconds),
                cell(record.outcome) or "-",
                cell(record.message) or "-",
            ]
        )
    return (
        _table(["step", "entered", "left", "took", "outcome", "on which numbers"], rows)
        or "No step was entered."
    )


def _gates(facts: Facts) -> str:
    roles = {gate.name: gate.gate.role for gate in named_gates(facts.spec)}
    rows = [
        [cell(gate.name), roles.get(gate.name, "-"), gate.verdict, f"{gate.samples:,}", cell(gate.message)]
        for gate in facts.status.gates
    ]
    return _table(["gate", "role", "last verdict", "n", "in words"], rows)


def _evidence(facts: Facts) -> str:
    ledger = facts.ledger
    if ledger is None:
        return "There is no evidence ledger: nothing was counted, or it is lost."
    totals, rows = ledger.totals, []
    rows.append(["requests answered", *(f"{answered(totals, arm):,.0f}" for arm in ARMS)])
    rows.append(["errors", *(_of(error_counts(totals, arm)) for arm in ARMS)])
    for edge in edges(facts.spec):
        rows.append([f"slower than {edge:g} s", *(_of(slow_counts(totals, arm, edge)) for arm in ARMS)])
    if any(key.startswith("shadow/") for key in totals):
        rows.append(["mirrored requests", f"{sum(shadow_counts(totals)):,.0f}", "-"])
        rows.append(["errors on mirrored requests", _of(shadow_counts(totals)), "-"])
        for edge in edges(facts.spec):
            rows.append(
                [
                    f"mirrored, slower than {edge:g} s",
                    _of(slow_counts(totals, "candidate", edge, "shadow")),
                    "-",
                ]
            )
    for field in _label_fields(facts):
        title = "all fields" if field == FIELD_OVERALL else field
        rows.append([f"labels right ({title})", *(_labels(totals, arm, field) for arm in ARMS)])
        same, other = (totals.get(f"doubles/{field}/{result}", 0.0) for result in ("same", "different"))
        if same + other:
            rows.append([f"second labels that differ ({title})", _of((other, same)), "-"])
    if any(sum(_votes(totals, arm)) for arm in ARMS):
        rows.append(["thumbs down", *(_of(_votes(totals, arm)) for arm in ARMS)])
    quality = [
        f"- Counted since {clock(datetime.fromtimestamp(ledger.started_at, facts.as_of.tzinfo))}, "
        f"ledger revision {ledger.revision}, fresh starts {ledger.epoch - 1}.",
        f"- Counter resets {ledger.resets}, series that ended {ledger.lost_tails - ledger.resets}, samples refused {ledger.refused}, "
        f"shared incidents {ledger.incidents}.",
    ]
    if facts.status.unavailable_since:
        quality.append(f"- Metrics have been unavailable since {facts.status.unavailable_since}.")
    return _table(["counted", *ARMS], rows) + "\n\n" + "\n".join(quality)


def _label_fields(facts: Facts) -> list[str]:
    fields = {gate.field for gate in named_gates(facts.spec) if gate.metric == "accuracy"}
    return sorted(fields) or [FIELD_OVERALL]


def _labels(totals: Totals, arm: str, field: str) -> str:
    right, wrong, missing = label_counts(totals, arm, field)
    n = right + wrong + missing
    return f"{right:,.0f} of {n:,.0f} ({percent(right / n)}), {missing:,.0f} missing" if n else "-"


def _of(counts: Pair) -> str:
    bad, n = counts[0], counts[0] + counts[1]
    return f"{bad:,.0f} of {n:,.0f} ({percent(bad / n)})" if n else "-"


def _votes(totals: Totals, arm: str) -> Pair:
    return totals.get(f"satisfaction/{arm}/down", 0.0), totals.get(f"satisfaction/{arm}/up", 0.0)


def _cost(facts: Facts) -> str:
    if facts.ledger is None:
        return ""
    account = bill(facts.ledger.totals)
    rows = [
        [
            "candidate",
            f"{account.candidate_answers:,.0f}",
            number(account.candidate_each),
            f"{account.candidate_usd:,.2f}",
        ],
        [
            "control",
            f"{account.control_answers:,.0f}",
            number(account.control_each),
            f"{account.control_usd:,.2f}",
        ],
    ]
    text = _table(["arm", "assessments", "USD each", "USD"], rows)
    who = _control_name(facts)
    if account.saved_usd is None or account.saved_share is None:
        return f"{text}\n\nNothing to compare yet: both arms must have answered, and {who} must have a price."
    reached = "reached" if account.saved_share >= SAVING_GOAL else "not reached"
    return "\n\n".join(
        [
            text,
            f"Saved against {who}: {account.saved_usd:,.2f} USD, {percent(account.saved_share)} of each assessment the "
            f"candidate took over (goal {percent(SAVING_GOAL)}: {reached}), {percent(account.saved_share_of_all)} of the "
            "whole bill of this rollout. Mirrored answers are not billed here.",
        ]
    )


def _control_name(facts: Facts) -> str:
    version = facts.status.control_version or "the control"
    return (
        version
        if facts.ledger is None or is_hosted(facts.ledger.control)
        else f"{version} (not a hosted model)"
    )


def _who_answered(facts: Facts) -> str:
    ledger = facts.ledger
    if ledger is None:
        return ""
    if not is_hosted(ledger.control):
        return f"The control {facts.status.control_version} is no hosted model; fallbacks: {_reasons(dependency(ledger.totals))}."
    said = [_dependency_line("Over the whole rollout", dependency(ledger.totals))]
    if facts.status.finish == "Promoted":
        said.append(
            _dependency_line(
                "Since the promotion", dependency(ledger.since_step(facts.status.step)), goal=True
            )
        )
    routing = facts.status.routing
    if routing is not None:
        proven = "proven" if routing.certified else "not proven yet"
        said.append(
            f"Answers below confidence {number(routing.threshold)} go to the fallback ({proven} on {routing.labels:,} "
            f"labels): {percent(routing.kept_share)} of the candidate's answers are kept, "
            f"{percent(routing.kept_accuracy)} of them right; AUROC {number(routing.auroc)}, where 0.5 says that "
            "confidence is worthless."
        )
    said.append(f"Fallbacks of the candidate: {_reasons(dependency(ledger.totals))}.")
    return "\n\n".join(said)


def _dependency_line(title: str, who: Dependency, goal: bool = False) -> str:
    if who.hosted_share is None:
        return f"{title}: no answers yet."
    text = (
        f"{title} the hosted model gave {who.hosted:,.0f} of {who.answers:,.0f} answers ({percent(who.hosted_share)}): "
        f"{who.by_control:,.0f} as the control, {who.deferred:,.0f} deferred to it for low confidence, "
        f"{who.rescued:,.0f} after a failure of the candidate."
    )
    if goal:
        reached = "reached" if who.hosted_share <= DEPENDENCY_GOAL else "not reached"
        text += f" Goal at most {percent(DEPENDENCY_GOAL)}: {reached}."
    return text


def _reasons(who: Dependency) -> str:
    listed = ", ".join(f"{n:,.0f} {reason}" for reason, n in sorted(who.reasons.items(), key=lambda r: -r[1]))
    return listed or "none"
