"""Simulated rollouts as a table and a picture. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutover.api.modelrollout import ModelRolloutSpec
from cutover_cli.chart import Axis, Line, line_chart
from cutover_cli.layout import columns
from cutover_cli.worlds import Assumptions, Limit, Story, keeps_by_confidence, not_simulated
from cutover_operator.rollout.draft import step_title
from cutover_operator.rollout.gates import named_gates
from cutover_operator.rollout.threshold import EDGES
from cutover_operator.rollout.wording import span
from cutover_operator.simulation.arrivals import Drawn
from cutover_operator.simulation.outcome import PROMOTED, ROLLED_BACK, UNDECIDED

SIDE_BY_SIDE = 3
ENDS = ((PROMOTED, "promoted"), (ROLLED_BACK, "rolled back"), (UNDECIDED, "undecided"))


def view(
    name: str,
    spec: ModelRolloutSpec,
    assumed: Assumptions,
    stories: Sequence[Story],
    seed: int,
    notes: Sequence[str] = (),
) -> str:
    """What was assumed, what became of it, and when each step was entered."""
    runs = stories[0].outcome.runs
    head = (
        f"{name}: {runs} runs each, seed {seed}, a look every {span(assumed.tick_seconds)}, "
        f"given up after {span(assumed.horizon_seconds)}.\n"
        f"Assumed: {assumed.rps:g} requests/s, {100 * assumed.label_rate:.3g} % of answers labelled, errors "
        f"{100 * assumed.error_rate:.3g} %, control right in {100 * assumed.control_accuracy:.4g} %."
    )
    missing = not_simulated(spec)
    if missing:
        head += f"\nNot simulated: {'; '.join(missing)}."
    for note in [*notes, *_unlabelled(spec, assumed)]:
        head += f"\nNote: {note}."
    if len(stories) > SIDE_BY_SIDE:
        return f"{head}\n\n{_compared(spec, stories, assumed.horizon_seconds)}"
    horizon = assumed.horizon_seconds

    def within(hours: float | None) -> str:
        return _hours(hours, horizon)

    rows = [
        *[[title, *(_chance(story, end) for story in stories)] for end, title in ENDS],
        ["stopped by", *(_stopped(story) for story in stories)],
        ["time to the decision, median", *(within(s.outcome.summary().median_hours) for s in stories)],
        ["  nine of ten within", *(within(s.outcome.summary().slowest_hours) for s in stories)],
        ["labels drawn, median", *(f"{s.outcome.summary().median_labels:,.0f}" for s in stories)],
        [
            "answers of the candidate, median",
            *(f"{s.outcome.summary().median_requests:,.0f}" for s in stories),
        ],
        ["  of them bad", *(f"{s.outcome.summary().median_bad_answers:,.0f}" for s in stories)],
        *_together(spec, assumed, stories),
        *_confidence(spec, stories),
        ["information limit", *(_limit(story.limit) for story in stories)],
    ]
    table = columns(["", *(f"accuracy {story.accuracy:g}" for story in stories)], rows)
    return "\n\n".join([head, table, *(_steps(spec, story, len(stories) > 1, horizon) for story in stories)])


def _unlabelled(spec: ModelRolloutSpec, assumed: Assumptions) -> list[str]:
    """Why nothing can be decided without labels."""
    gates = [gate.name for gate in named_gates(spec) if gate.metric == "accuracy"]
    if assumed.label_rate > 0 or not gates:
        return []
    return [f"no answer is labelled (--label-rate 0), so nothing can prove {', '.join(gates)}"]


def _together(spec: ModelRolloutSpec, assumed: Assumptions, stories: Sequence[Story]) -> list[list[str]]:
    """What was assumed of both models on one request, where that matters."""
    drawn = Drawn.of(spec)
    if not (drawn.pairs or drawn.strata):
        return []
    shares = [assumed.together(s.accuracy).shares(s.accuracy, assumed.control_accuracy) for s in stories]
    rows = [
        [
            "only the candidate right, only the control",
            *(f"{_percent(s[1])}, {_percent(s[2])}" for s in shares),
        ]
    ]
    if drawn.strata:
        rows.append(["the same answer of both", *(_percent(s[0] + s[3]) for s in shares)])
        right = [(_part(s[0], s[0] + s[3]), _part(s[1], s[1] + s[2] + s[4])) for s in shares]
        rows.append(["  candidate right there, elsewhere", *(f"{same}, {other}" for same, other in right)])
    return rows


def _confidence(spec: ModelRolloutSpec, stories: Sequence[Story]) -> list[list[str]]:
    """Which answers were kept, where confidence decides that."""
    if not keeps_by_confidence(spec):
        return []
    return [
        ["threshold at the end, median", *(_threshold(story) for story in stories)],
        ["its answers kept, median", *(_kept(story) for story in stories)],
    ]


def _threshold(story: Story) -> str:
    known = story.outcome.kept_from
    return "-" if known is None else f"{EDGES[int(np.median(known))]:g}"


def _kept(story: Story) -> str:
    share = kept_share(story)
    return "-" if share is None else f"{100 * share:.0f} %"


def kept_share(story: Story) -> float | None:
    """Median over runs of the share of the candidate's answers that reached somebody; None if it never gave one."""
    outcome = story.outcome
    gave = outcome.requests > 0
    return float(np.median(outcome.kept[gave] / outcome.requests[gave])) if gave.any() else None


def _part(part: float, whole: float) -> str:
    return _percent(part / whole) if whole > 0 else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _compared(spec: ModelRolloutSpec, stories: Sequence[Story], horizon: float) -> str:
    """A line each, for more candidates than fit side by side."""
    rows, sure = [], keeps_by_confidence(spec)
    for story in stories:
        summary = story.outcome.summary()
        rows.append(
            [
                f"{story.accuracy:g}",
                *(_chance(story, end) for end, _ in ENDS),
                _hours(summary.median_hours, horizon),
                _hours(summary.slowest_hours, horizon),
                f"{summary.median_labels:,.0f}",
                f"{summary.median_bad_answers:,.0f}",
                *([_threshold(story), _kept(story)] if sure else []),
                _limit(story.limit),
            ]
        )
    header = ["ACCURACY", "PROMOTED", "ROLLED BACK", "UNDECIDED", "MEDIAN TIME", "9 OF 10 WITHIN", "LABELS"]
    kept = ["THRESHOLD", "KEPT"] if sure else []
    return columns([*header, "BAD ANSWERS", *kept, "INFORMATION LIMIT"], rows)


def _steps(spec: ModelRolloutSpec, story: Story, titled: bool, horizon: float) -> str:
    rows = []
    for step, stay in zip(spec.steps, story.stays, strict=True):
        hours = [
            _hours(at, horizon) if stay.entered else "-" for at in (stay.median_hours, stay.slowest_hours)
        ]
        labels = "-" if stay.median_labels is None else f"{stay.median_labels:,.0f}"
        rows.append([step_title(step), f"{100 * stay.entered:.0f} %", *hours, labels])
    title = f"Steps at accuracy {story.accuracy:g}" if titled else "Steps"
    return f"{title}\n" + columns(["STEP", "ENTERED", "MEDIAN", "NINE OF TEN WITHIN", "LABELS BY THEN"], rows)


def _chance(story: Story, end: int) -> str:
    p = story.outcome.share(end)
    error = (p * (1 - p) / story.outcome.runs) ** 0.5
    return f"{100 * p:.1f} %" + (f" ± {100 * error:.1f}" if error else "")


def _stopped(story: Story) -> str:
    found = [(story.outcome.stopped_by_gate(name), name) for name in story.outcome.stopped_by]
    found.append((story.outcome.stopped_by_deadline, "deadline"))
    said = [f"{name} {100 * share:.0f} %" for share, name in sorted(found, reverse=True) if share > 0]
    return ", ".join(said) or "-"


def _hours(hours: float | None, horizon_seconds: float) -> str:
    """`> 14d` for what lies beyond the horizon."""
    return f"> {span(horizon_seconds)}" if hours is None else span(3600 * hours)


def _limit(limit: Limit | None) -> str:
    return "-" if limit is None else f"{limit.labels:,.0f} labels to {limit.kind}, {span(3600 * limit.hours)}"


# ---------------------------------------------------------------- pictures
def picture(
    name: str, spec: ModelRolloutSpec, assumed: Assumptions, stories: Sequence[Story], command: str
) -> str:
    """One accuracy: how the decisions come over time. Several: chances over the accuracy, a power curve."""
    return (
        _over_time(name, stories[0], command)
        if len(stories) == 1
        else _power(name, spec, assumed, stories, command)
    )


def _over_time(name: str, story: Story, command: str) -> str:
    outcome = story.outcome
    hours = sorted({float(h) for h in outcome.decided_hours if np.isfinite(h)})
    end = (hours[-1] if hours else 24.0) * 1.1
    days = end > 96
    scale = 24.0 if days else 1.0

    def line(finish: int, title: str) -> Line:
        moments = np.sort(outcome.decided_hours[outcome.finish == finish])
        points = [
            (0.0, 0.0),
            *((float(h) / scale, 100 * (i + 1) / outcome.runs) for i, h in enumerate(moments)),
        ]
        return Line(
            f"{title} {100 * len(moments) / outcome.runs:.0f} %",
            [*points, (end / scale, points[-1][1])],
            True,
        )

    lines = [line(PROMOTED, "promoted"), line(ROLLED_BACK, "rolled back")]
    kept = f" {_kept(story)} of its answers kept in the median." if outcome.kept_from is not None else ""
    words = (
        f"{outcome.runs} simulated rollouts of a candidate that is right in {100 * story.accuracy:g} %: "
        f"{100 * outcome.share(PROMOTED):.0f} % promoted, {100 * outcome.share(ROLLED_BACK):.0f} % rolled back, "
        f"{100 * outcome.share(UNDECIDED):.0f} % undecided.{kept} Made by: {command}"
    )
    title = f"{name}: decisions over time, accuracy {story.accuracy:g}"
    x = Axis("days since the first step" if days else "hours since the first step", 0.0, end / scale)
    return line_chart(title, x, Axis("% of runs", 0.0, 100.0), lines, words)


def _power(
    name: str, spec: ModelRolloutSpec, assumed: Assumptions, stories: Sequence[Story], command: str
) -> str:
    ordered = sorted(stories, key=lambda story: story.accuracy)
    lines = [
        Line(title, [(story.accuracy, 100 * story.outcome.share(end)) for story in ordered])
        for end, title in ENDS
    ]
    sure = keeps_by_confidence(spec)
    if sure:
        kept = [(story.accuracy, kept_share(story)) for story in ordered]
        lines.append(Line("answers kept", [(at, 100 * share) for at, share in kept if share is not None]))
    limit = _aim(spec, assumed)
    told = "; ".join(
        f"{story.accuracy:g}: {100 * story.outcome.share(PROMOTED):.0f} % promoted, "
        f"{100 * story.outcome.share(ROLLED_BACK):.0f} % rolled back"
        + (f", {_kept(story)} kept" if sure else "")
        for story in ordered
    )
    x = Axis(
        "accuracy of the candidate" + (f" (limit {limit:g})" if limit else ""),
        ordered[0].accuracy,
        ordered[-1].accuracy,
    )
    y = Axis("% of runs; kept: % of answers" if sure else "% of runs", 0.0, 100.0)
    words = f"{ordered[0].outcome.runs} simulated rollouts per accuracy. {told}. Made by: {command}"
    return line_chart(f"{name}: what becomes of a candidate", x, y, lines, words, limit)


def _aim(spec: ModelRolloutSpec, assumed: Assumptions) -> float | None:
    """The accuracy that separates good from bad: the higher one of a limit and of the control's less the margin."""
    gates = [g.gate for g in named_gates(spec) if g.metric == "accuracy"]
    limits = [g.limit for g in gates if g.limit is not None]
    limits += [round(assumed.control_accuracy - g.margin, 6) for g in gates if g.margin is not None]
    return max(limits, default=None)
