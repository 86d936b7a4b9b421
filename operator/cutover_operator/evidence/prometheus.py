"""Reads raw samples from Prometheus: one instant query `{...}[window]` for many rollouts and all their metrics at once.

I/O only: it judges nothing about the numbers. Every failure becomes an `Unavailable` with the reason in words. The
window is wider than what is needed and samples already counted are skipped by timestamp, so it does not matter that
Prometheus 2.x includes the window's left end and 3.x does not. For what is now no
`time` is sent: the server's own clock rules.

Passes come in company (see `turns`), and one query answers for all whose turn it is: the rollouts that ask now, and
those of the same turn that have yet to come. So there is less than one query a second however many rollouts there are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from sys import intern
from typing import Any

import aiohttp
import orjson

from cutover_operator.evidence.labels import Labels, Names
from cutover_operator.evidence.query import HISTOGRAMS, SHORT_SECONDS, query_for, together
from cutover_operator.evidence.samples import Answer, Asked, Sample, Series, Unavailable, custom_key
from cutover_operator.turns import ROUNDED_FROM_SECONDS, Turn

ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
SHARED_SECONDS = 0.9
"""Time from a query's sending for which its answer serves those it was asked for. Who comes later looks anew: a breach is
to be answered within an interval and a second, and this is what an answer may add to the interval."""
EARLY_SECONDS = 0.1
"""How much earlier than its turn a rollout may come and still ask for its company, too."""
COMPANY_SECONDS = 0.02
"""How long the first to ask waits for others."""
AT_ONCE = 4
"""Queries at the same time for one Prometheus."""
NAMES_SECONDS = 900.0
"""A series that no answer named for one to two times as long is read anew when it comes back."""


@dataclass(frozen=True, slots=True)
class TooLarge(Unavailable):
    """More than is held in memory at once; fewer rollouts would be less."""


Result = Mapping[str, Answer | Unavailable]
"""By metric of the contract, and by `custom_key` for a user's own counters."""


@dataclass(slots=True)
class _Regular:
    """A rollout that asks again and again."""

    asked: Asked
    window_seconds: int
    interval_seconds: float
    due_at: float
    """Its next turn, by the monotonic clock."""

    def comes(self, turns: Container[float], now: float) -> bool:
        """Whether it is expected with those. Short intervals have no turns in common."""
        if self.interval_seconds < ROUNDED_FROM_SECONDS:
            return abs(now - self.due_at) <= SHARED_SECONDS
        return self.due_at in turns


@dataclass(slots=True)
class _Question:
    """One query, and whose it is."""

    members: Mapping[str, Asked]
    window_seconds: int
    answered: asyncio.Future[Result]
    sent_at: float = math.inf

    def is_young(self, now: float) -> bool:
        return now - self.sent_at <= SHARED_SECONDS

    def serves(self, one: _Waiting, now: float) -> bool:
        return (
            self.is_young(now)
            and self.window_seconds >= one.window_seconds
            and self.members[one.asked.rollout] == one.asked
        )


@dataclass(slots=True)
class _Waiting:
    asked: Asked
    window_seconds: int
    due_at: float
    """The turn for which it asks; infinite if it was not expected now."""
    question: asyncio.Future[_Question]


@dataclass(slots=True)
class _Server:
    """What is known about one Prometheus."""

    regulars: dict[str, _Regular] = field(default_factory=dict)
    questions: dict[str, _Question] = field(default_factory=dict)
    """The newest in which a rollout is named; for a moment only."""
    waiting: list[_Waiting] = field(default_factory=list)
    own: dict[str, tuple[float, int, asyncio.Task[Answer | Unavailable]]] = field(default_factory=dict)
    """A user's own counters: selector -> (when asked, window, answer)."""
    going: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class Prometheus:
    """One reader for all rollouts of an operator. `clock` is monotonic."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        timeout_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._servers: dict[str, _Server] = {}
        self._flushes: set[asyncio.Task[None]] = set()
        self._names = Names()
        self._turned_at = clock()

    async def read(
        self, url: str, asked: Asked, window_seconds: int, turn: Turn, own_window_seconds: int | None = None
    ) -> Result:
        """The samples of the last `window_seconds`, of a user's own counters of the last `own_window_seconds`. The
        rollout is expected to ask again at its next `turn`."""
        url = url.rstrip("/")
        server = self._servers.setdefault(url, _Server())
        now = self._clock()
        before = server.regulars.get(asked.rollout)
        server.regulars[asked.rollout] = _Regular(asked, window_seconds, turn.seconds, turn.after(now))
        own_window = window_seconds if own_window_seconds is None else own_window_seconds
        own = asyncio.gather(*(self._own(url, server, one, own_window) for one in asked.custom))
        due_at = before.due_at if before is not None and before.due_at <= now + EARLY_SECONDS else math.inf
        mine = _Waiting(asked, window_seconds, due_at, asyncio.get_running_loop().create_future())
        common = await self._shared(url, server, mine)
        return {**common, **dict(zip(map(custom_key, asked.custom), await own, strict=True))}

    # ------------------------------------------------------------ our metrics, for many at once
    async def _shared(self, url: str, server: _Server, mine: _Waiting) -> Result:
        question = server.questions.get(mine.asked.rollout)
        if question is None or not question.serves(mine, self._clock()):
            server.waiting.append(mine)
            if len(server.waiting) == 1:
                task = asyncio.create_task(self._flush(url, server))
                self._flushes.add(task)
                task.add_done_callback(self._flushes.discard)
            question = await mine.question
        return await asyncio.shield(question.answered)

    async def _flush(self, url: str, server: _Server) -> None:
        await asyncio.sleep(COMPANY_SECONDS)
        waiting, server.waiting = server.waiting, []
        await asyncio.gather(*(self._put(url, server, window, group) for window, group in _groups(waiting)))

    async def _put(self, url: str, server: _Server, window_seconds: int, group: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        question = _Question(
            self._members(server, window_seconds, group), window_seconds, loop.create_future()
        )
        server.questions.update(dict.fromkeys(question.members, question))
        for one in group:
            if not one.question.done():
                one.question.set_result(question)
        try:
            async with server.going:
                question.sent_at = self._clock()
                result = await self._metrics(url, list(question.members.values()), window_seconds)
        except Exception as error:  # whoever waits must hear of it
            question.answered.set_exception(error)
            raise
        else:
            question.answered.set_result(result)
        finally:
            self._let_go(server)
            loop.call_later(SHARED_SECONDS + 0.1, self._let_go, server)

    def _members(self, server: _Server, window_seconds: int, group: list[_Waiting]) -> dict[str, Asked]:
        """Those, and who has yet to come for the same turn. Who stopped asking is forgotten."""
        now = self._clock()
        turns = {one.due_at for one in group}
        members = {one.asked.rollout: one.asked for one in group}
        for rollout, regular in list(server.regulars.items()):
            if now - regular.due_at > 600.0:
                del server.regulars[rollout]
                continue
            asked = server.questions.get(rollout)
            if (
                len(members) < together(window_seconds)
                and regular.comes(turns, now)
                and (
                    regular.window_seconds == window_seconds
                    or regular.window_seconds < window_seconds <= SHORT_SECONDS
                )
                and (asked is None or not asked.is_young(max(now, regular.due_at)))
            ):
                members.setdefault(rollout, regular.asked)
        return members

    def _let_go(self, server: _Server) -> None:
        """The samples of all rollouts together are not held in memory."""
        now = self._clock()
        server.questions = {
            rollout: question
            for rollout, question in server.questions.items()
            if question.is_young(now) or not question.answered.done()
        }
        server.own = {
            selector: known
            for selector, known in server.own.items()
            if now - known[0] <= SHARED_SECONDS or not known[2].done()
        }

    async def _metrics(
        self, url: str, members: list[Asked], window_seconds: int, at: float | None = None
    ) -> Result:
        names = {metric for one in members for metric in one.metrics}
        if self._clock() - self._turned_at > NAMES_SECONDS:
            self._turned_at = self._clock()
            self._names.turn()
        answer = await self._ask(url, query_for(members, window_seconds), at, self._names)
        if isinstance(answer, TooLarge) and len(members) > 1:
            half = len(members) // 2
            parts = [
                await self._metrics(url, part, window_seconds, at)
                for part in (members[:half], members[half:])
            ]
            return {name: _joined([part[name] for part in parts if name in part]) for name in names}
        if isinstance(answer, Unavailable):
            return dict.fromkeys(names, answer)
        rows: dict[str, list[Series]] = {name: [] for name in names}
        for one in answer.series:
            assert isinstance(one.labels, Labels)
            name = one.labels.metric
            metric = name.removesuffix("_bucket")
            rows.setdefault(metric if metric in HISTOGRAMS else name, []).append(one)
        return {name: Answer(tuple(found), answer.served_at) for name, found in rows.items()}

    # ------------------------------------------------------------ a user's own counters
    async def _own(
        self, url: str, server: _Server, selector: str, window_seconds: int
    ) -> Answer | Unavailable:
        now = self._clock()
        known = server.own.get(selector)
        if known is None or known[1] < window_seconds or now - known[0] > SHARED_SECONDS:
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._ask(url, f"{selector}[{window_seconds}s]"))
            task.add_done_callback(lambda _: loop.call_later(SHARED_SECONDS + 0.1, self._let_go, server))
            known = server.own[selector] = (now, window_seconds, task)
        return await asyncio.shield(known[2])

    async def read_past(self, url: str, asked: Asked, window_seconds: int, at: float) -> Result:
        """The samples of the `window_seconds` before a moment in the past (Unix seconds); nothing is kept or shared."""
        url = url.rstrip("/")
        found = dict(await self._metrics(url, [asked], window_seconds, at)) if asked.metrics else {}
        for selector in asked.custom:
            found[custom_key(selector)] = await self._ask(url, f"{selector}[{window_seconds}s]", at)
        return found

    async def _ask(
        self, url: str, query: str, at: float | None = None, names: Names | None = None
    ) -> Answer | Unavailable:
        form = {"query": query} if at is None else {"query": query, "time": f"{at:.3f}"}
        timeout = aiohttp.ClientTimeout(total=self._timeout_seconds)
        try:
            async with self._session.post(
                f"{url}/api/v1/query", data=form, timeout=timeout, allow_redirects=False
            ) as response:
                body = await response.content.read(ANSWER_LIMIT_BYTES + 1)
                while len(body) <= ANSWER_LIMIT_BYTES and not response.content.at_eof():
                    body += await response.content.read(ANSWER_LIMIT_BYTES + 1 - len(body))
                served_at = _served_at(response.headers.get("Date"))
                status = response.status
        except TimeoutError:
            return Unavailable(
                "TimedOut", f"Prometheus at {url} gave no answer within {self._timeout_seconds:g} s"
            )
        except (aiohttp.ClientError, OSError) as error:
            return Unavailable(
                "Unreachable", f"Prometheus at {url} cannot be reached: {type(error).__name__}: {error}"
            )
        if len(body) > ANSWER_LIMIT_BYTES:
            return TooLarge("BadAnswer", f"Prometheus at {url} answered more than {ANSWER_LIMIT_BYTES} bytes")
        if status in (400, 422):
            return Unavailable(
                "QueryRefused", f"Prometheus at {url} refused {query[:200]}: {_error_text(body)}"
            )
        if status != 200:
            return Unavailable("HttpError", f"Prometheus at {url} answered {status}: {_error_text(body)}")
        try:
            return samples_of(orjson.loads(body), served_at, names)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Unavailable(
                "BadAnswer", f"Prometheus at {url} answered something else than samples: {error}"[:512]
            )


def _joined(parts: list[Answer | Unavailable]) -> Answer | Unavailable:
    """One answer of several, about different rollouts; none where one of them is missing."""
    away = next((part for part in parts if isinstance(part, Unavailable)), None)
    if away is not None:
        return away
    answers = [part for part in parts if isinstance(part, Answer)]
    return Answer(
        tuple(one for answer in answers for one in answer.series), max(answer.served_at for answer in answers)
    )


def _groups(waiting: list[_Waiting]) -> Iterator[tuple[int, list[_Waiting]]]:
    """Those that ask for the same window, or for a short one, together; not more than go into one query."""
    short = max((w.window_seconds for w in waiting if w.window_seconds <= SHORT_SECONDS), default=0)
    by_window: dict[int, list[_Waiting]] = {}
    for one in waiting:
        by_window.setdefault(max(one.window_seconds, short), []).append(one)
    for window, group in by_window.items():
        most = together(window)
        for start in range(0, len(group), most):
            yield window, group[start : start + most]


def _served_at(date: str | None) -> float:
    if date:
        try:
            return parsedate_to_datetime(date).timestamp()
        except ValueError:
            pass
    return time.time()


def _error_text(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])[:256]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:128].decode("utf-8", "replace")


def samples_of(document: Any, served_at: float, names: Names | None = None) -> Answer:
    """The raw samples in an answer of Prometheus. Raises ValueError, KeyError, TypeError or AttributeError."""
    if document["status"] != "success":
        raise ValueError(f"status {document['status']!r}: {document.get('error', '')}")
    data = document["data"]
    if data["resultType"] != "matrix":
        raise ValueError(
            f"a {data['resultType']}, not raw samples; name a counter without a function around it"
        )
    rows = data["result"]
    found: list[Series] = []
    times: dict[float, float] = {}
    # A target's samples share their times, and most counters of a window stand still: one object serves for all. The
    # rows are given up one by one, so that the answer is never in memory twice.
    rows.reverse()
    while rows:
        row = rows.pop()
        labels: Mapping[str, str]
        if names is not None:
            labels = names.of(row["metric"])
        else:
            labels = {intern(str(k)): intern(str(v)) for k, v in row["metric"].items()}
        samples: list[Sample] = []
        before, value = None, math.nan
        for at, text in row.get("values", []):
            if text != before:
                before, value = text, float(text)
            samples.append((times.setdefault(at, float(at)), value))
        found.append(Series(labels, samples))
    return Answer(tuple(found), served_at)
