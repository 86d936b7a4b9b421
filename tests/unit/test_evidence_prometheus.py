"""The Prometheus reader against a server on loopback that is slow, empty, wrong, or gone; and what is made of answers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cutover.contract import BREAKER_OPEN, COST, DURATION, LABELS_MATURED, REQUESTS, ROUTE_GENERATION
from cutover_operator.evidence import prometheus, query
from cutover_operator.evidence.folding import Wanted
from cutover_operator.evidence.ledger import Ledger
from cutover_operator.evidence.prometheus import Prometheus, Result
from cutover_operator.evidence.query import query_for, window_for
from cutover_operator.evidence.reading import Read, Wish, asked, digest, read_evidence
from cutover_operator.evidence.samples import Answer, Asked, Series, Unavailable, custom_key
from cutover_operator.turns import SLOT_SECONDS, Turn

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LEDGER = Ledger(uid="u", version="v1", started_at=0.0)
TURN = Turn("", 10.0)


class FakePrometheus:
    """Answers `POST /api/v1/query` with what the test says."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.answer: Handler = self.samples
        self.series: list[tuple[dict[str, str], list[tuple[float, Any]]]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        self.queries.append(str(form["query"]))
        return await self.answer(request)

    async def samples(self, request: web.Request) -> web.StreamResponse:
        wanted = matchers(self.queries[-1])
        rows = [
            {"metric": labels, "values": [[at, str(value)] for at, value in values]}
            for labels, values in self.series
            if all(pattern.fullmatch(labels.get(name, "")) for name, pattern in wanted.items())
        ]
        return web.json_response({"status": "success", "data": {"resultType": "matrix", "result": rows}})


def matchers(query: str) -> dict[str, re.Pattern[str]]:
    """What a selector asks of each label; a label that is absent is the empty text."""
    selector = query[: query.rindex("[")]
    found = re.findall(r'(\w+)=~"((?:[^"\\]|\\.)*)"', selector)
    if not found:
        found = [("__name__", re.escape(selector.split("{")[0]))]
    return {name: re.compile(pattern.replace("\\\\", "\\")) for name, pattern in found}


def want(rollout: str = "r", custom: tuple[str, ...] = (), edges: tuple[float, ...] = ()) -> Asked:
    return Asked(rollout, "assessor", frozenset({REQUESTS, DURATION}), frozenset(edges), custom)


@pytest.fixture
async def server() -> AsyncIterator[FakePrometheus]:
    fake = FakePrometheus()
    app = web.Application()
    app.router.add_post("/api/v1/query", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    yield fake
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as kept:
        yield kept


def said(status: int, text: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text)

    return handler


async def slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(5)
    return web.Response()


def document(**data: Any) -> str:
    return json.dumps({"status": "success", "data": data})


@pytest.mark.parametrize(
    ("handler", "kind", "words"),
    [
        (said(500, "boom"), "HttpError", "500"),
        (said(400, '{"status":"error","error":"parse error at char 3"}'), "QueryRefused", "parse error"),
        (said(200, "<html>login</html>"), "BadAnswer", "something else"),
        (said(200, ""), "BadAnswer", "something else"),
        (said(200, '{"status":"success"}'), "BadAnswer", "data"),
        (said(200, "[]"), "BadAnswer", "something else"),
        (said(200, "[" * 100_000), "BadAnswer", "something else"),
        (said(200, document(resultType="vector", result=[])), "BadAnswer", "raw samples"),
        (
            said(200, document(resultType="matrix", result=[{"metric": {}, "values": [[1, "x"]]}])),
            "BadAnswer",
            "x",
        ),
        (said(302, ""), "HttpError", "302"),
        (slow, "TimedOut", "no answer within"),
    ],
)
async def test_every_failure_is_a_value_with_words(
    server: FakePrometheus, session: aiohttp.ClientSession, handler: Handler, kind: str, words: str
) -> None:
    server.answer = handler
    answers = await Prometheus(session, timeout_seconds=0.5).read(server.url, want(custom=("m",)), 120, TURN)
    assert set(answers) == {REQUESTS, DURATION, custom_key("m")}
    for result in answers.values():
        assert isinstance(result, Unavailable)
        assert result.kind == kind
        assert words in result.message


async def test_a_server_that_is_gone_is_unreachable(session: aiohttp.ClientSession) -> None:
    result = (await Prometheus(session).read("http://127.0.0.1:1", want(), 120, TURN))[REQUESTS]
    assert isinstance(result, Unavailable)
    assert result.kind == "Unreachable"


def counted(result: Result, rollout: str) -> list[tuple[float, float]]:
    answer = result[REQUESTS]
    assert isinstance(answer, Answer)
    return [sample for one in answer.of(rollout) for sample in one.samples]


async def test_one_query_answers_for_all_rollouts_and_all_metrics(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    for number in range(20):
        server.series += series_of(1.0, value=number, rollout=f"r{number}")
    reader = Prometheus(session)

    async def read(number: int) -> Result:
        return await reader.read(server.url + "/", want(f"r{number}"), 120, TURN)

    answers = await asyncio.gather(*(read(number) for number in range(20)))
    assert len(server.queries) == 1
    for number, answer in enumerate(answers):
        assert counted(answer, f"r{number}") == [(-14.0, 0.0), (1.0, float(number))]
    await asyncio.gather(*(read(number) for number in range(20)))
    assert len(server.queries) == 1, "a moment later the same answer serves"
    await reader.read(server.url, want("r1"), 300, TURN)
    assert len(server.queries) == 2, "a wider window needs its own answer"
    await reader.read(server.url, want("r2", edges=(2.0,)), 120, TURN)
    assert len(server.queries) == 3, "and so does another edge"


async def test_who_is_a_little_late_asks_with_the_others_for_the_longer_window(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    server.series += [*series_of(1.0, value=1, rollout="a"), *series_of(1.0, value=2, rollout="late")]
    reader = Prometheus(session)
    windows = {"a": 75, "late": 120, "restarted": 3600}
    answers = await asyncio.gather(
        *(reader.read(server.url, want(name), window, TURN) for name, window in windows.items())
    )
    assert len(server.queries) == 2, "an hour of everybody would be too much"
    assert sorted(query.endswith("[120s]") for query in server.queries) == [False, True]
    assert counted(answers[0], "a") == [(-14.0, 0.0), (1.0, 1.0)]
    assert counted(answers[1], "late") == [(-14.0, 0.0), (1.0, 2.0)]


class Clock:
    """Seconds of a monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def reader_of(server: FakePrometheus, session: aiohttp.ClientSession, names: str) -> tuple[Prometheus, Clock]:
    """A reader with a clock to move, of a server that knows a rollout of each letter."""
    server.series = [pair for name in names for pair in series_of(1.0, rollout=name)]
    clock = Clock()
    return Prometheus(session, clock=clock), clock


async def test_those_whose_turn_it_is_are_asked_for_before_they_come(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    reader, clock = reader_of(server, session, "abcd")
    for name, turn in (("a", TURN), ("b", TURN), ("c", Turn("", 15.0)), ("d", TURN)):
        await reader.read(server.url, want(name), 120, turn)
    first = len(server.queries)
    clock.now = TURN.after(clock.now)
    assert counted(await reader.read(server.url, want("a"), 120, TURN), "a")
    assert 'rollout=~"|a|b|d"' in server.queries[-1], "b and d are due as well, c is not"
    clock.now += prometheus.SHARED_SECONDS - 0.1
    assert counted(await reader.read(server.url, want("b"), 120, TURN), "b")
    assert len(server.queries) == first + 1
    clock.now += 0.2
    await reader.read(server.url, want("d"), 120, TURN)
    assert len(server.queries) == first + 2, "an answer is never used when it is older than that"
    assert 'rollout=~"|d"' in server.queries[-1], "who had an answer for this turn is not asked for again"
    await reader.read(server.url, want("a"), 120, TURN)
    assert 'rollout=~"|a"' in server.queries[-1], "nor is it anybody's company when it is not its turn"


async def test_who_comes_while_its_answer_is_under_way_waits_for_it(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    reader, clock = reader_of(server, session, "ab")
    for name in "ab":
        await reader.read(server.url, want(name), 120, TURN)
    clock.now, asked, may_answer = TURN.after(clock.now), asyncio.Event(), asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        asked.set()
        await may_answer.wait()
        return await server.samples(request)

    server.answer = slowly
    first = len(server.queries)
    one = asyncio.create_task(reader.read(server.url, want("a"), 120, TURN))
    await asked.wait()
    other = asyncio.create_task(reader.read(server.url, want("b"), 120, TURN))
    asked.clear()
    clock.now += prometheus.SHARED_SECONDS + 0.1
    late = asyncio.create_task(reader.read(server.url, want("a"), 120, TURN))
    await asked.wait()
    may_answer.set()
    for task, name in ((one, "a"), (other, "b"), (late, "a")):
        assert counted(await task, name)
    assert len(server.queries) == first + 2, "one for both, and one for whom the first had become old"


async def test_a_failure_of_an_old_question_does_not_take_the_place_of_a_newer_answer(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    reader, clock = reader_of(server, session, "a")
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def fail(request: web.Request) -> web.StreamResponse:
        asked.set()
        await may_answer.wait()
        return web.Response(status=503)

    server.answer = fail
    old = asyncio.create_task(reader.read(server.url, want("a"), 120, TURN))
    await asked.wait()
    clock.now += 2.0
    server.answer = server.samples
    assert counted(await reader.read(server.url, want("a"), 120, TURN), "a")
    may_answer.set()
    assert isinstance((await old)[REQUESTS], Unavailable)
    count = len(server.queries)
    assert counted(await reader.read(server.url, want("a"), 120, TURN), "a")
    assert len(server.queries) == count


async def test_short_intervals_have_company_too(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    reader, clock = reader_of(server, session, "ab")
    for name in "ab":
        await reader.read(server.url, want(name), 120, Turn(name, 1.0))
        clock.now += 0.4
    count = len(server.queries)
    clock.now = 101.0
    await reader.read(server.url, want("a"), 120, Turn("a", 1.0))
    clock.now = 101.4
    await reader.read(server.url, want("b"), 120, Turn("b", 1.0))
    assert len(server.queries) == count + 1


async def test_who_asks_every_second_is_never_given_its_last_answer_again(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    reader, clock = reader_of(server, session, "a")
    for _ in range(4):
        await reader.read(server.url, want("a"), 120, Turn("a", 1.0))
        clock.now += 1.0
    assert len(server.queries) == 4


async def test_more_rollouts_than_go_into_a_query_are_all_answered(
    server: FakePrometheus, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "TOGETHER", 3)
    for number in range(8):
        server.series += series_of(1.0, value=number + 1, rollout=f"r{number}")
    reader = Prometheus(session)
    answers = await asyncio.gather(*(reader.read(server.url, want(f"r{n}"), 120, TURN) for n in range(8)))
    assert [counted(answer, f"r{n}")[-1][1] for n, answer in enumerate(answers)] == list(range(1, 9))
    assert len(server.queries) == 3


async def test_a_company_that_is_too_large_for_a_query_is_named_in_several(
    server: FakePrometheus, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "TOGETHER", 3)
    now = 100.0
    for number in range(8):
        server.series += series_of(1.0, value=number + 1, rollout=f"r{number}")
    reader = Prometheus(session, clock=lambda: now)
    for _ in range(2):
        first = len(server.queries)
        for number in range(8):
            found = await reader.read(server.url, want(f"r{number}"), 120, TURN)
            assert counted(found, f"r{number}")[-1][1] == number + 1
        now = TURN.after(now)
    assert len(server.queries) == first + 3


async def test_the_reader_holds_no_samples_and_forgets_who_stopped_asking(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    now = 100.0
    reader = Prometheus(session, clock=lambda: now)
    for index in range(300):
        now += 5.0
        await reader.read(server.url, want(f"r{index}", custom=(f"m{index}",)), 120, TURN)
    (known,) = reader._servers.values()
    assert len(known.questions) <= 2, "itself, and who was due as well"
    assert len(known.own) == 1
    assert len(known.regulars) < 150


async def test_names_that_look_like_patterns_match_themselves_only(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    query = query_for([Asked("a.b", "gw-1", frozenset({REQUESTS}))], 120)
    wanted = matchers(query)
    assert wanted["rollout"].fullmatch("a.b")
    assert wanted["rollout"].fullmatch(""), "a gateway's own gauges carry no rollout"
    assert not wanted["rollout"].fullmatch("axb")
    assert not wanted["__name__"].fullmatch(COST)


def test_the_window_always_covers_the_time_since_the_checkpoint() -> None:
    assert window_for(15) == 75
    assert window_for(16) == 95
    assert window_for(300) == 610
    assert window_for(1e9) == 21600
    for age in range(0, 21600 - 60):
        assert window_for(age) >= age + 60, "a sample may come a minute late"


@pytest.mark.parametrize("interval_seconds", [10, 20, 30, 60, 120, 240, 300, 600, 1800, 3600])
def test_a_pass_a_little_late_asks_for_the_window_it_always_asks_for(interval_seconds: int) -> None:
    assert window_for(interval_seconds + 2 * SLOT_SECONDS) == window_for(interval_seconds)


async def test_the_longer_the_window_the_fewer_go_into_one_query(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    """An hour of everybody at once would be more than a process should hold."""
    names = [f"r{number}" for number in range(20)]
    server.series = [row for name in names for row in series_of(1.0, value=7, rollout=name)]
    reader = Prometheus(session)
    answers = await asyncio.gather(*(reader.read(server.url, want(name), 3610, TURN) for name in names))
    assert [counted(answer, name)[-1] for answer, name in zip(answers, names, strict=True)] == [
        (1.0, 7.0)
    ] * 20
    named = [
        sum(bool(matchers(query)["rollout"].fullmatch(name)) for name in names) for query in server.queries
    ]
    assert sum(named) == 20
    assert max(named) * 3610 <= 300 * 75


async def test_an_answer_that_is_too_large_is_asked_for_in_parts(
    server: FakePrometheus, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"r{number}" for number in range(8)]
    for number, name in enumerate(names):
        server.series += series_of(1.0, value=number, rollout=name)
    alone = len(json.dumps(series_of(1.0, value=1, rollout="r0")))
    monkeypatch.setattr(prometheus, "ANSWER_LIMIT_BYTES", 4 * alone)
    reader = Prometheus(session)
    answers = await asyncio.gather(*(reader.read(server.url, want(name), 75, TURN) for name in names))
    assert len(server.queries) > 1
    assert [counted(answer, name)[-1][1] for answer, name in zip(answers, names, strict=True)] == list(
        range(8)
    )
    monkeypatch.setattr(prometheus, "ANSWER_LIMIT_BYTES", alone // 4)
    answers = [await Prometheus(session).read(server.url, want(names[0]), 75, TURN)]
    assert all(isinstance(answer, Unavailable) for answer in answers[0].values()), "one alone cannot be less"


# ---------------------------------------------------------------- what is made of the answers
def wish(url: str = "http://p", **changes: Any) -> Wish:
    return Wish(url=url, gateway="assessor", wanted=Wanted("r", "v1", edges=(2.0, 0.5)), **changes)


def series_of(now: float, value: Any = 5, rollout: str = "r", gateway: str = "assessor") -> list[Any]:
    own = {"gateway": gateway, "rollout": rollout, "arm": "candidate", "version": "v1", "instance": "a"}
    return [
        ({"__name__": ROUTE_GENERATION, "gateway": gateway, "instance": "a"}, [(now - 15, 1), (now, 1)]),
        ({"__name__": REQUESTS, **own, "outcome": "ok"}, [(now - 15, 0), (now, value)]),
    ]


async def read(server: FakePrometheus, session: aiohttp.ClientSession, ledger: Ledger = LEDGER) -> Read:
    return await read_evidence(Prometheus(session), wish(server.url), ledger, 60.0)


async def test_good_samples_are_counted(server: FakePrometheus, session: aiohttp.ClientSession) -> None:
    server.series = series_of(time.time())
    found = await read(server, session)
    assert found.metrics is None
    assert found.current.total("requests/candidate/ok") == 5
    assert found.scraped_replicas == 1
    assert found.requests_per_second == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("series", "kind", "words"),
    [
        (lambda now: [], "NoSeries", "does not scrape the gateway"),
        (lambda now: series_of(now, gateway="other"), "NoSeries", "does not scrape the gateway"),
        (lambda now: series_of(now, rollout="other"), "NoSeries", "no series"),
        (lambda now: series_of(now - 300), "Stale", "newest sample"),
        (lambda now: series_of(now, value="NaN"), "BadAnswer", "no counts"),
        (lambda now: series_of(now, value="+Inf"), "BadAnswer", "no counts"),
        (lambda now: series_of(now, value=-4), "BadAnswer", "no counts"),
    ],
)
async def test_what_was_not_seen_is_unavailable_never_zero(
    server: FakePrometheus,
    session: aiohttp.ClientSession,
    series: Callable[[float], list[Any]],
    kind: str,
    words: str,
) -> None:
    server.series = series(time.time())
    found = await read(server, session)
    assert found.metrics is not None
    assert (found.metrics.kind, found.current) == (kind, LEDGER)
    assert words in found.metrics.message


def test_labels_that_went_away_are_unavailable_and_labels_never_seen_are_not() -> None:
    now = 1000.0
    base: dict[str, Answer | Unavailable] = {
        labels["__name__"]: Answer((Series(labels, [(at, float(v)) for at, v in values]),), now)
        for labels, values in series_of(now)
    }
    base[LABELS_MATURED] = Answer((), now)
    assert digest(base, wish(), LEDGER).labels is None
    known = Ledger(uid="u", version="v1", started_at=0.0, totals={"labels/candidate/overall/right": 3.0})
    gone = digest(base, wish(), known)
    assert gone.labels is not None
    assert gone.metrics is None
    base[LABELS_MATURED] = Unavailable("HttpError", "answered 500")
    assert digest(base, wish(), LEDGER).labels == base[LABELS_MATURED]


def test_an_edge_matches_in_both_ways_of_writing_it() -> None:
    matcher = matchers(query_for([asked(wish())], 120))["le"]
    for edge in ("2", "2.0", "0.5", "+Inf", ""):
        assert matcher.fullmatch(edge), edge
    for edge in ("20", "20.0", "200", "0x5", "5"):
        assert not matcher.fullmatch(edge), edge


# ---------------------------------------------------------------- counters of a user's own
CUSTOM = ("appeals", 'appeals_total{kind="house"}', "claims_total")


def custom_of(now: float, bad: list[Any], total: list[Any]) -> list[Any]:
    """Samples 15 s apart, the last one now; a counter without samples is one that does not exist."""

    def row(name: str, values: list[Any]) -> list[Any]:
        at = [now - 15 * back for back in reversed(range(len(values)))]
        return [({"__name__": name, "job": "claims"}, list(zip(at, values, strict=True)))] if values else []

    return [*series_of(now), *row("appeals_total", bad), *row("claims_total", total)]


async def read_custom(
    server: FakePrometheus, session: aiohttp.ClientSession, ledger: Ledger | None = None
) -> Read:
    asking = Wish(url=server.url, gateway="assessor", wanted=Wanted("r", "v1", custom=(CUSTOM,)))
    begun = ledger or Ledger(uid="u", version="v1", started_at=time.time() - 20)
    return await read_evidence(Prometheus(session), asking, begun, 60.0)


async def test_counters_of_a_users_own_are_counted_through_resets(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    server.series = custom_of(time.time(), [70, 71, 2, 3], [900, 950, 40, 60])
    found = await read_custom(server, session, Ledger(uid="u", version="v1", started_at=time.time() - 40))
    assert found.custom == {}
    assert found.current.total("custom/appeals/bad") == 1 + 2 + 1
    assert found.current.total("custom/appeals/total") == 50 + 40 + 20
    assert CUSTOM[1] + "[130s]" in server.queries


@pytest.mark.parametrize(
    ("bad", "total", "kind", "words"),
    [
        ([], [1, 2], "NoSeries", "from zero"),
        ([0, 1], [], "NoSeries", "claims_total"),
        ([0, "NaN"], [1, 2], "BadAnswer", "bad: the newest"),
        ([0, 1], [1, "+Inf"], "BadAnswer", "total: the newest"),
        ([0, -1], [1, 2], "BadAnswer", "no counts"),
    ],
)
async def test_a_users_counter_that_says_nothing_is_unavailable_for_its_gate_alone(
    server: FakePrometheus,
    session: aiohttp.ClientSession,
    bad: list[Any],
    total: list[Any],
    kind: str,
    words: str,
) -> None:
    server.series = custom_of(time.time(), bad, total)
    found = await read_custom(server, session)
    assert found.metrics is None, "the gateway's own metrics are judged by themselves"
    assert found.custom["appeals"].kind == kind
    assert words in found.custom["appeals"].message
    assert not any(key.startswith("custom/") for key in found.current.totals), "neither half is counted"
    assert found.current.total("requests/candidate/ok") == 5


async def test_an_old_counter_and_a_refused_selector_are_unavailable_too(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    now = time.time()
    server.series = [*series_of(now), *custom_of(now - 300, [1, 2], [3, 4])[2:]]
    assert (await read_custom(server, session)).custom["appeals"].kind == "Stale"

    async def refuses(request: web.Request) -> web.StreamResponse:
        if server.queries[-1].startswith("appeals_total"):
            return web.Response(status=400, text='{"error":"parse error"}')
        return await server.samples(request)

    server.series, server.answer = custom_of(now, [1, 2], [3, 4]), refuses
    found = await read_custom(server, session)
    assert (found.metrics, found.custom["appeals"].kind) == (None, "QueryRefused")


async def test_what_came_while_a_users_counter_was_away_is_counted_when_it_is_back(
    server: FakePrometheus, session: aiohttp.ClientSession
) -> None:
    now = time.time()
    server.series = custom_of(now - 30, [0, 1], [0, 10])
    first = (await read_custom(server, session)).current
    server.series = custom_of(now, [0, "NaN"], [20, 30])
    away = (await read_custom(server, session, first)).current.stamped(now)
    assert away.total("custom/appeals/total") == first.total("custom/appeals/total")
    server.series = custom_of(now, [5, 6], [80, 90])
    back = (await read_custom(server, session, away)).current
    assert (back.total("custom/appeals/bad"), back.total("custom/appeals/total")) == (5, 80)


def test_only_the_breaker_of_the_control_tells_of_the_control() -> None:
    now = 1000.0

    def digested(arm: str) -> Read:
        base: dict[str, Answer | Unavailable] = {
            labels["__name__"]: Answer((Series(labels, [(at, float(v)) for at, v in values]),), now)
            for labels, values in series_of(now)
        }
        labels = {"gateway": "assessor", "arm": arm, "instance": "a"}
        base[BREAKER_OPEN] = Answer((Series(labels, [(now, 1.0)]),), now)
        return digest(base, wish(), LEDGER)

    assert digested("control").control_down
    assert not digested("candidate").control_down
