"""Reads what Prometheus knows about one rollout and folds it into the ledger. Every failure becomes a value.

A Prometheus that answers without our gateway's series, or with old ones, is unavailable: nothing is ever taken for
zero because it was not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from cutover.contract import (
    BREAKER_OPEN,
    CONFIDENCE,
    COST,
    DURATION,
    FALLBACKS,
    LABEL_CONFIDENCE,
    LABEL_DOUBLES,
    LABEL_PAIRS,
    LABEL_POOL,
    LABEL_WEIGHT,
    LABELS_MATURED,
    REQUESTS,
    ROUTE_GENERATION,
    SATISFACTION,
    SHADOW_DURATION,
    SHADOW_PAIRS,
)
from cutover_operator.conditions import timestamp
from cutover_operator.evidence.folding import Wanted, fold, own_counters
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.query import window_for
from cutover_operator.evidence.samples import (
    STALE_SECONDS,
    Answer,
    Asked,
    Series,
    Unavailable,
    custom_key,
    merged,
    per_second,
    scrape_interval,
    stale_after_seconds,
)
from cutover_operator.turns import Turn

FROM_DATABASE = (
    LABELS_MATURED,
    LABEL_PAIRS,
    LABEL_POOL,
    LABEL_WEIGHT,
    LABEL_DOUBLES,
    LABEL_CONFIDENCE,
)
"""Exported by the assessments service, all of one snapshot."""
SOMETIME = Turn("", 30.0)
PROBED_FROM_SECONDS = 310
"""From more than this on a window is asked for only where a short one has shown that there is something to see."""
OPTIONAL = frozenset({*FROM_DATABASE, SATISFACTION, BREAKER_OPEN, FALLBACKS})


class Samples(Protocol):
    """Raw samples of the last `window_seconds`, by metric and by selector of a user's own counter. Those are read
    back for `own_window_seconds`."""

    async def read(
        self, url: str, asked: Asked, window_seconds: int, turn: Turn, own_window_seconds: int
    ) -> Mapping[str, Answer | Unavailable]: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What to read for a rollout."""

    url: str
    gateway: str
    wanted: Wanted
    shadow: bool = False
    satisfaction: bool = False
    doubles: bool = False
    turn: Turn = SOMETIME
    """When it will be read next."""


@dataclass(frozen=True, slots=True)
class Read:
    current: Ledger
    metrics: Unavailable | None
    labels: Unavailable | None
    scraped_replicas: int
    requests_per_second: float | None
    control_down: bool
    served_generation: float = 0.0
    """The lowest route generation that a scraped gateway pod serves."""
    custom: Mapping[str, Unavailable] = field(default_factory=dict)
    """By gate: why its own counters say nothing now."""


@lru_cache(maxsize=4096)
def asked(wish: Wish) -> Asked:
    """What must be read for the gates of a rollout."""
    edges = frozenset(wish.wanted.edges)
    metrics = {ROUTE_GENERATION, BREAKER_OPEN, REQUESTS, COST, FALLBACKS, LABELS_MATURED}
    if edges:
        metrics.add(DURATION)
    if wish.shadow:
        metrics.add(SHADOW_PAIRS)
        if edges:
            metrics.add(SHADOW_DURATION)
    if wish.satisfaction:
        metrics.add(SATISFACTION)
    if wish.wanted.hourly_fields:
        metrics |= {LABEL_PAIRS, LABEL_POOL, LABEL_WEIGHT}
    if wish.doubles:
        metrics.add(LABEL_DOUBLES)
    if wish.wanted.sure_fields:
        metrics |= {CONFIDENCE, LABEL_CONFIDENCE}
    custom = tuple(selector for _, *pair in wish.wanted.custom for selector in pair)
    return Asked(wish.wanted.rollout, wish.gateway, frozenset(metrics), edges, tuple(dict.fromkeys(custom)))


async def read_evidence(
    samples: Samples, wish: Wish, ledger: Ledger, age_seconds: float, own_age_seconds: float = 0.0
) -> Read:
    """The ledger with everything counted that came in the last `age_seconds`, or why nothing can be said now.

    `own_age_seconds`: the same for the user's own counters, if these could not be read for longer. A long look back is
    dear, so whether there is anything to see now is asked first.
    """
    window, short = window_for(max(0.0, age_seconds)), window_for(0.0)
    own_window = window_for(max(0.0, age_seconds, own_age_seconds))
    if window > PROBED_FROM_SECONDS:
        answers = await samples.read(wish.url, asked(wish), short, wish.turn, short)
        now = digest(answers, wish, ledger)
        if now.metrics is not None:
            return now
    answers = await samples.read(wish.url, asked(wish), window, wish.turn, own_window)
    return digest(answers, wish, ledger)


def own_age(wish: Wish, ledger: Ledger, now: float) -> float:
    """Seconds since all of the user's own counters had been read; 0 without any."""
    read = (ledger.own_read.get(own_counters(*one), ledger.started_at) for one in wish.wanted.custom)
    return max((now - at for at in read), default=0.0)


def own_counted(wish: Wish, read: Read, now: float) -> Ledger:
    """The ledger that says which of the user's own counters have been read by now."""
    if not wish.wanted.custom and not read.current.own_read:
        return read.current
    until = {
        name: read.current.own_read.get(name) if gate in read.custom else now
        for gate, name in ((one[0], own_counters(*one)) for one in wish.wanted.custom)
    }
    return replace(read.current, own_read={name: at for name, at in until.items() if at is not None})


def digest(answers: Mapping[str, Answer | Unavailable], wish: Wish, ledger: Ledger) -> Read:
    """Judge the answers' availability, then fold those that can be trusted. Pure."""
    own = {metric: answer for metric, answer in answers.items() if metric in asked(wish).metrics}
    problem = _metrics_problem(own, wish)
    # Others that shared the query may have asked for more: what this rollout counts is its own choice.
    users = {custom_key(selector) for _, *pair in wish.wanted.custom for selector in pair}
    good = {m: a for m, a in answers.items() if isinstance(a, Answer) and (m in own or m in users)}
    labels = _labels_problem(own, wish.wanted.rollout, ledger)
    if labels is not None:
        # One snapshot of the database, or none of it: sums that belong together stay together.
        good = {metric: answer for metric, answer in good.items() if metric not in FROM_DATABASE}
    custom = _custom_problems(answers, wish.wanted)
    if problem is not None:
        return Read(ledger, problem, labels or problem, 0, None, False, custom=custom)
    replicas = good[ROUTE_GENERATION]
    pods = _fresh(merged(replicas.at(wish.gateway)), replicas)
    breaker = good.get(BREAKER_OPEN)
    requests = good[REQUESTS].of(wish.wanted.rollout)
    return Read(
        # Both counters of a gate or neither: their difference is evidence, too.
        current=fold(
            ledger,
            good,
            replace(wish.wanted, custom=tuple(c for c in wish.wanted.custom if c[0] not in custom)),
        ),
        metrics=None,
        labels=labels,
        scraped_replicas=len(pods),
        served_generation=min((max(s.samples)[1] for s in pods), default=0.0),
        requests_per_second=per_second(merged(requests)),
        control_down=breaker is not None
        and any(
            max(s.samples)[1] == 1.0
            for s in _fresh([s for s in breaker.at(wish.gateway) if s.label("arm") == "control"], breaker)
        ),
        custom=custom,
    )


def _fresh(series: Sequence[Series], answer: Answer) -> list[Series]:
    if all(answer.served_at - s.newest <= STALE_SECONDS[0] for s in series):
        return list(series)
    limit = stale_after_seconds(scrape_interval(series))
    return [s for s in series if answer.served_at - s.newest <= limit]


def _metrics_problem(answers: Mapping[str, Answer | Unavailable], wish: Wish) -> Unavailable | None:
    for metric, answer in answers.items():
        if isinstance(answer, Unavailable) and metric not in OPTIONAL:
            return answer
    replicas, requests = answers[ROUTE_GENERATION], answers[REQUESTS]
    assert isinstance(replicas, Answer)
    assert isinstance(requests, Answer)
    own = replicas.at(wish.gateway)
    if not own:
        return Unavailable(
            "NoSeries",
            f"Prometheus at {wish.url} answers, but knows no series {ROUTE_GENERATION} of gateway {wish.gateway}: "
            "it does not scrape the gateway",
        )
    if not _fresh(own, replicas):
        return Unavailable("Stale", f"the newest sample of gateway {wish.gateway} is from {_clock(own)}")
    counted = list(requests.of(wish.wanted.rollout))
    if not counted:
        return Unavailable(
            "NoSeries", f"gateway {wish.gateway} is scraped, but has no series {REQUESTS} of this rollout yet"
        )
    if not _fresh(counted, requests):
        return Unavailable(
            "Stale", f"the newest sample of {REQUESTS} of this rollout is from {_clock(counted)}"
        )
    if not all(_usable_newest(s) for s in counted):
        return Unavailable(
            "BadAnswer", f"the newest samples of {REQUESTS} are no counts (NaN, infinite or negative)"
        )
    return None


def _custom_problems(answers: Mapping[str, Answer | Unavailable], wanted: Wanted) -> dict[str, Unavailable]:
    """By gate. A counter that is not there is not zero: the exporter may be gone, or the selector mistyped."""
    found: dict[str, Unavailable] = {}
    for gate, bad, total in wanted.custom:
        problems = (
            _custom_problem(answers.get(custom_key(selector)), part, selector)
            for part, selector in (("bad", bad), ("total", total))
        )
        problem = next((p for p in problems if p is not None), None)
        if problem is not None:
            found[gate] = problem
    return found


def _custom_problem(answer: Answer | Unavailable | None, part: str, selector: str) -> Unavailable | None:
    if answer is None or isinstance(answer, Unavailable):
        return answer or Unavailable("NoSeries", f"{part}: {selector} was not read")
    if not answer.series:
        return Unavailable(
            "NoSeries", f"{part}: Prometheus knows no series {selector}; export it from zero on"
        )
    fresh = _fresh(answer.series, answer)
    if not fresh:
        return Unavailable(
            "Stale", f"{part}: the newest sample of {selector} is from {_clock(answer.series)}"
        )
    if not all(_usable_newest(s) for s in fresh):
        return Unavailable(
            "BadAnswer", f"{part}: the newest samples of {selector} are no counts (NaN, infinite or negative)"
        )
    return None


def _clock(series: Sequence[Series]) -> str:
    return timestamp(datetime.fromtimestamp(max(s.newest for s in series), UTC))


def _usable_newest(series: Series) -> bool:
    value = max(series.samples)[1] if series.samples else 0.0
    return 0.0 <= value < float("inf")


def _labels_problem(
    answers: Mapping[str, Answer | Unavailable], rollout: str, ledger: Ledger
) -> Unavailable | None:
    away = (answers.get(metric) for metric in FROM_DATABASE)
    problem = next((answer for answer in away if isinstance(answer, Unavailable)), None)
    answer = answers.get(LABELS_MATURED)
    if problem is not None or not isinstance(answer, Answer):
        return problem
    own = list(answer.of(rollout))
    if any(not _usable_newest(s) for s in own):
        return Unavailable("BadAnswer", f"the newest samples of {LABELS_MATURED} are no counts")
    if any(key.startswith(("labels/", "drawn/")) for key in ledger.totals) and not _fresh(own, answer):
        return Unavailable(
            "Stale", "the assessments service does not export this rollout's labels at present"
        )
    return None
