"""Asks the operator's gate tests about many runs at once: which gates pass, fail or know too little. Pure.

What `rollout.verdict` reads from one ledger is read here from books of many; the tests are the same functions, with the
same limits, risks and floors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutover.api.base import to_seconds
from cutover.api.modelrollout import ModelRolloutSpec
from cutover_operator.rollout import gate_tests, label_tests
from cutover_operator.rollout.accuracy import by_stratum, has_pairs, pass_alpha
from cutover_operator.rollout.gate_tests import Counts, Judged, Segments
from cutover_operator.rollout.gates import (
    DEFAULT_RATIO_MARGIN,
    EXCUSABLE,
    SLOW_SHARE,
    NamedGate,
    advance_names,
    named_gates,
)
from cutover_operator.rollout.label_tests import Labels
from cutover_operator.rollout.risk import spent
from cutover_operator.rollout.verdict import certified_accuracy, certified_share
from cutover_operator.simulation.books import Books, Col, Floats, Ints, Mask
from cutover_operator.simulation.hours import Bet, HourBooks

_SHARES: dict[str, tuple[tuple[Col, Col], tuple[Col, Col] | None]] = {
    "errorRate": ((Col.ERRORS, Col.ANSWERED), (Col.MIRRORED_ERRORS, Col.MIRRORED)),
    "latency": ((Col.SLOW, Col.ANSWERED), (Col.MIRRORED_SLOW, Col.MIRRORED)),
    "custom": ((Col.BAD, Col.ANSWERED), None),
}
_CONTROL: dict[str, tuple[Col, Col] | None] = {
    "errorRate": (Col.CONTROL_ERRORS, Col.CONTROL_ANSWERED),
    "latency": (Col.CONTROL_SLOW, Col.CONTROL_ANSWERED),
    "custom": None,
}


@dataclass(frozen=True, slots=True)
class Rules:
    """A spec, with everything a tick needs worked out once. Arrays run over steps."""

    spec: ModelRolloutSpec
    gates: tuple[NamedGate, ...]
    wanted: NDArray[np.bool_]
    """(steps, gates): must pass to leave the step."""
    excusable: NDArray[np.bool_]
    """(gates, 1): a control that does not answer excuses its fail."""
    floors: Floats
    """(steps, gates): what a certificate must prove; NaN where there is nothing to certify."""
    weight: Floats
    shadow: Floats
    min_requests: Floats
    min_seconds: Floats
    deadline_seconds: Floats
    """Infinite where the step has none that rolls back."""
    mirrors: bool
    bets: frozenset[Bet]
    """What is judged by the hour: accuracy by stratum, and margins by pairs."""

    @classmethod
    def of(cls, spec: ModelRolloutSpec) -> Rules:
        gates, steps = named_gates(spec), spec.steps
        floors = np.asarray([[_floor(spec, i, g) for g in gates] for i in range(len(steps))])
        # Nobody skips here: what stands at a step has passed those before.
        names = [advance_names(spec, i, range(i)) for i in range(len(steps))]
        return cls(
            spec=spec,
            gates=gates,
            excusable=np.asarray([[g.metric in EXCUSABLE] for g in gates]),
            wanted=np.asarray([[g.name in wanted for g in gates] for wanted in names]),
            floors=floors,
            weight=np.asarray([(s.weight or 0) / 100 for s in steps]),
            shadow=np.asarray([(s.shadow or 0) / 100 for s in steps]),
            min_requests=np.asarray([float(s.min_requests) for s in steps]),
            min_seconds=np.asarray([to_seconds(s.min_duration) for s in steps]),
            deadline_seconds=np.asarray(
                [
                    to_seconds(s.deadline) if s.deadline and s.on_deadline == "rollback" else np.inf
                    for s in steps
                ]
            ),
            mirrors=any(s.shadow is not None for s in steps),
            bets=frozenset(_bets(spec, gates, floors)),
        )

    @property
    def label_deadline(self) -> float:
        return to_seconds(self.spec.analysis.labels.deadline)

    @property
    def incident_limit(self) -> float:
        """Share of errors within which a control must answer before a shared incident is over."""
        return min((g.gate.limit or 0.05 for g in self.gates if g.metric == "errorRate"), default=0.05)


def _floor(spec: ModelRolloutSpec, step: int, gate: NamedGate) -> float:
    if gate.metric == "accuracy":
        return np.nan if gate.gate.limit is None else certified_accuracy(spec, step, gate.gate.limit)
    return certified_share(spec, step, gate) if gate.metric in _SHARES else np.nan


def _bets(spec: ModelRolloutSpec, gates: tuple[NamedGate, ...], floors: Floats) -> Iterator[Bet]:
    for i, gate in enumerate(gates):
        limit, margin = gate.gate.limit, gate.gate.margin
        if gate.metric != "accuracy":
            continue
        if by_stratum(spec) and limit is not None:
            yield Bet(False, limit, -1)
            yield from (Bet(False, float(floor), 1) for floor in floors[:, i])
        elif margin is not None and has_pairs(spec):
            yield Bet(True, margin, -1)
            yield Bet(True, margin, 1)


def judge_all(
    rules: Rules,
    books: Books,
    hours: HourBooks | None,
    who: Ints,
    step: Ints,
    cost_wealth: Mapping[float, Floats],
    incident: Mask,
) -> tuple[NDArray[np.int8], Mask]:
    """(codes, shared) of every gate for the runs `who` at their `step`, shape `(gates, runs)`."""
    found = [
        _judge(rules, i, books, hours, who, step, cost_wealth, incident) for i in range(len(rules.gates))
    ]
    codes = np.stack([j.code for j in found])
    return codes, np.stack([j.shared for j in found])


def _judge(
    rules: Rules,
    index: int,
    books: Books,
    hours: HourBooks | None,
    who: Ints,
    step: Ints,
    cost_wealth: Mapping[float, Floats],
    incident: Mask,
) -> Judged:
    gate = rules.gates[index]
    fail_alpha = gate.rollback_alpha if gate.rolls_back else 0.0
    floor = rules.floors[step, index]
    if gate.metric == "accuracy":
        return _judge_accuracy(rules, gate, books, hours, who, floor, fail_alpha)
    if gate.metric == "cost":
        limit = gate.gate.limit or 0.0
        answers, usd = books.since(who, Col.ANSWERED, Col.COST)
        return gate_tests.judge_cost(
            answers[0],
            usd[0],
            cost_wealth[limit],
            gate_tests.Priced(answers, usd),
            books.k_of(who, fresh=False),
            limit=limit,
            fail_alpha=fail_alpha,
        )
    if gate.metric == "satisfaction":
        totals = books.totals[:, who]
        return gate_tests.judge_satisfaction(
            Counts(totals[Col.DOWN], totals[Col.UP]),
            Counts(totals[Col.CONTROL_DOWN], totals[Col.CONTROL_UP]),
            _votes(books, who),
            books.k_of(who, fresh=False),
            margin=gate.gate.margin if gate.gate.margin is not None else DEFAULT_RATIO_MARGIN,
            fail_alpha=fail_alpha,
        )
    return _judge_share(rules, gate, books, who, floor, fail_alpha, incident)


def _judge_accuracy(
    rules: Rules,
    gate: NamedGate,
    books: Books,
    hours: HourBooks | None,
    who: Ints,
    floor: Floats,
    fail_alpha: float,
) -> Judged:
    """As `rollout.accuracy.judged` chooses among the tests."""
    spec, limit, margin = rules.spec, gate.gate.limit, gate.gate.margin
    enough = pass_alpha(spec, gate)
    if hours is not None and by_stratum(spec):
        value, drawn, missing = hours.estimate(who)
        log_pass = log_fail = None
        if limit is not None:
            log_pass, log_fail = np.zeros(len(who)), hours.wealth(Bet(False, limit, -1), books, who)
            for one in np.unique(floor):
                here = floor == one
                log_pass[here] = hours.wealth(Bet(False, float(one), 1), books, who[here])
        return label_tests.judge_accuracy_bets(
            Labels(drawn - missing, np.zeros_like(drawn), missing),
            value=value,
            limit=limit,
            log_pass=log_pass,
            log_fail=log_fail,
            log_within=None,
            log_below=None,
            fail_alpha=fail_alpha,
            pass_alpha=enough,
        )
    paired = hours is not None and margin is not None and has_pairs(spec)
    total = books.labels(who)
    found = label_tests.judge_accuracy(
        total,
        books.label_epochs(who),
        books.k_of(who, fresh=False),
        books.labels(who, control=True),
        limit=limit,
        floor=floor if limit is not None else None,
        fail_alpha=fail_alpha,
        pass_alpha=enough,
        margin=None if paired else margin,
        stretches=lambda: books.label_stretches(who, rules.label_deadline),
        exact=False,
    )
    if hours is None or margin is None or not paired:
        return found
    return label_tests.judge_accuracy_bets(
        total,
        value=found.value,
        limit=limit,
        log_pass=found.log_e_pass,
        log_fail=found.log_e_fail,
        log_within=hours.wealth(Bet(True, margin, 1), books, who),
        log_below=hours.wealth(Bet(True, margin, -1), books, who),
        fail_alpha=fail_alpha,
        pass_alpha=enough,
    )


def _judge_share(
    rules: Rules, gate: NamedGate, books: Books, who: Ints, floor: Floats, fail_alpha: float, incident: Mask
) -> Judged:
    (mine, copies), theirs = _SHARES[gate.metric], _CONTROL[gate.metric]
    incidents = books.incidents[who]
    nothing = Counts(np.zeros((books.slots(who), len(who))), np.zeros((books.slots(who), len(who))))

    def segments() -> Segments:
        return Segments(nothing, nothing) if theirs is None else books.segments(who, mine, theirs)

    return gate_tests.judge_share(
        books.fresh_counts(who, *mine),
        books.counts(who, *mine),
        books.k_of(who, fresh=True),
        books.counts(who, *theirs) if theirs is not None else nothing,
        segments,
        limit=SLOW_SHARE if gate.metric == "latency" else gate.gate.limit or SLOW_SHARE,
        floor=floor,
        fail_alpha=spent(fail_alpha, incidents),
        pass_alpha=spent(rules.spec.analysis.risk, incidents),
        margin=gate.gate.margin,
        default_margin=DEFAULT_RATIO_MARGIN,
        mirrored=books.counts(who, *copies) if copies is not None and rules.mirrors else None,
        incident=incident,
        exact=False,
    )


def recovered(rules: Rules, books: Books, who: Ints, before: Floats) -> Mask:
    """Runs whose control looks ill since judging began, and well in what was counted since the totals `before`."""
    newest = books.totals[:, who] - before[:, who]
    since, now = np.zeros(len(who), dtype=bool), np.zeros(len(who), dtype=bool)
    judging = books.k_of(who, fresh=True) > 0
    for gate in rules.gates:
        columns = _CONTROL.get(gate.metric)
        if columns is not None and gate.metric in EXCUSABLE:
            limit = SLOW_SHARE if gate.metric == "latency" else gate.gate.limit or SLOW_SHARE
            bad, whole = (newest[c] for c in columns)
            now |= gate_tests.looks_ill(Counts(bad, whole - bad), limit)
            since |= (judging & gate_tests.looks_ill(books.counts(who, *columns), limit)).any(axis=0)
    return np.asarray((newest[Col.CONTROL_ANSWERED] > 0) & ~now & since)


def _votes(books: Books, who: Ints) -> Segments:
    """Votes between all marks; `Segments` wants (bad, good), and up plus down is the whole."""
    down = books.segments(who, (Col.DOWN, Col.DOWN), (Col.CONTROL_DOWN, Col.CONTROL_DOWN), fresh=False)
    up = books.segments(who, (Col.UP, Col.UP), (Col.CONTROL_UP, Col.CONTROL_UP), fresh=False)
    return Segments(Counts(down.candidate.bad, up.candidate.bad), Counts(down.control.bad, up.control.bad))
