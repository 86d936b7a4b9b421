"""Reads raw samples from Prometheus: one instant query `selector[window]` for all rollouts, kept for a moment.

I/O only: it judges nothing about the numbers. Every failure becomes an `Unavailable` with the reason in words. The
window is wider than what is needed and samples already counted are skipped by timestamp, so it does not matter that
Prometheus 2.x includes the window's left end and 3.x does not. For what is now no `time` is sent: the server's own clock
rules.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from cutover_operator.evidence.samples import Answer, Series, Unavailable

WINDOWS_SECONDS = (120, 300, 600, 900, 1800, 3600, 7200, 21600)
"""Windows asked for; few of them, so that rollouts share queries. Beyond the last, resets in the gap stay unseen."""
SLACK_SECONDS = 60.0
ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
KEPT_ANSWERS = 256


def window_for(age_seconds: float) -> int:
    """The smallest window that surely holds everything since `age_seconds` ago."""
    for window in WINDOWS_SECONDS:
        if age_seconds + SLACK_SECONDS <= window:
            return window
    return WINDOWS_SECONDS[-1]


@dataclass(slots=True)
class _Kept:
    result: Answer | Unavailable
    window_seconds: int
    at_monotonic: float


class Prometheus:
    """One reader for all rollouts of an operator."""

    def __init__(self, session: aiohttp.ClientSession, timeout_seconds: float = 5.0) -> None:
        self._session = session
        self._timeout_seconds = timeout_seconds
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def read(
        self, url: str, selector: str, window_seconds: int, max_age_seconds: float = 1.0
    ) -> Answer | Unavailable:
        """The samples of the last `window_seconds`; an answer at most `max_age_seconds` old is used again."""
        key = (url.rstrip("/"), selector)
        async with self._locks.setdefault(key, asyncio.Lock()):
            kept = self._kept.get(key)
            fresh = kept is not None and time.monotonic() - kept.at_monotonic <= max_age_seconds
            if kept is not None and fresh and kept.window_seconds >= window_seconds:
                return kept.result
            result = await self._ask(key[0], f"{selector}[{window_seconds}s]")
            self._kept[key] = _Kept(result, window_seconds, time.monotonic())
        self._forget()
        return result

    async def read_past(
        self, url: str, selector: str, window_seconds: int, at: float
    ) -> Answer | Unavailable:
        """The samples of the `window_seconds` before a moment in the past (Unix seconds); nothing is kept."""
        return await self._ask(url.rstrip("/"), f"{selector}[{window_seconds}s]", at)

    def _forget(self) -> None:
        if len(self._kept) <= KEPT_ANSWERS:
            return
        for key in sorted(self._kept, key=lambda k: self._kept[k].at_monotonic)[: KEPT_ANSWERS // 2]:
            if not self._locks[key].locked():
                del self._kept[key], self._locks[key]

    async def _ask(self, url: str, query: str, at: float | None = None) -> Answer | Unavailable:
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
            return Unavailable(
                "BadAnswer", f"Prometheus at {url} answered more than {ANSWER_LIMIT_BYTES} bytes"
            )
        if status in (400, 422):
            return Unavailable("QueryRefused", f"Prometheus at {url} refused {query}: {_error_text(body)}")
        if status != 200:
            return Unavailable("HttpError", f"Prometheus at {url} answered {status}: {_error_text(body)}")
        try:
            return samples_of(json.loads(body), served_at)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Unavailable(
                "BadAnswer", f"Prometheus at {url} answered something else than samples: {error}"[:512]
            )


def _served_at(date: str | None) -> float:
    if date:
        try:
            return parsedate_to_datetime(date).timestamp()
        except ValueError:
            pass
    return time.time()


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])[:256]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:128].decode("utf-8", "replace")


def samples_of(document: Any, served_at: float) -> Answer:
    """The raw samples in an answer of Prometheus. Raises ValueError, KeyError, TypeError or AttributeError."""
    if document["status"] != "success":
        raise ValueError(f"status {document['status']!r}: {document.get('error', '')}")
    data = document["data"]
    if data["resultType"] != "matrix":
        raise ValueError(
            f"a {data['resultType']}, not raw samples; name a counter without a function around it"
        )
    found = []
    for row in data["result"]:
        labels = {str(k): str(v) for k, v in row["metric"].items()}
        found.append(Series(labels, tuple((float(at), float(value)) for at, value in row.get("values", []))))
    return Answer(tuple(found), served_at)
