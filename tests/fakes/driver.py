"""The people of the demo in one process: an app that asks without pause, and a surveyor who labels.

    python -m fakes.driver --port 8080 --gateway URL --assessments URL

The app uses the `openai` SDK with its default retries and counts what it saw; the surveyor knows the truth because the
pictures are drawn from a seed. Both are steered over HTTP: POST /seed, POST /app, POST /surveyor, GET /stats.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import os
import sys
import time
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
import yaml
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cutover.contract import HEADER_ARM, HEADER_ASSESSMENT_ID, HEADER_FALLBACK, HEADER_VERSION
from cutover.task import Task, read_answer

EXAMPLE = Path(
    os.environ.get("CUTOVER_EXAMPLE", Path(__file__).resolve().parents[2] / "examples/building-damage")
)
sys.path.insert(0, str(EXAMPLE))

SEED_PICTURES = 11
LIVE_PICTURES = 77
LIVE_POOL = 600


@dataclass(frozen=True, slots=True)
class Photo:
    """A drawn picture, what it really shows, and the key under which an app asks about it."""

    png: bytes
    truth: dict[str, str]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.png).hexdigest()


def photo(seed: int, index: int) -> Photo:
    """The picture number `index` of a seed; classes take turns."""
    from pictures import draw  # the example's generator, found through CUTOVER_EXAMPLE

    image, truth = draw(seed, index)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Photo(buffer.getvalue(), dict(truth))


@dataclass
class Seen:
    """What the app saw, from outside."""

    sent: int = 0
    answered: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    by_arm: Counter[str] = field(default_factory=Counter)
    by_version: Counter[str] = field(default_factory=Counter)
    right_by_version: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    invalid: int = 0
    latencies_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5000))
    labelled: int = 0
    label_errors: int = 0

    def to_json(self) -> dict[str, Any]:
        ordered = sorted(self.latencies_seconds)
        return {
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "failures": self.failures[:20],
            "byArm": dict(self.by_arm),
            "byVersion": dict(self.by_version),
            "rightByVersion": dict(self.right_by_version),
            "fallbacks": dict(self.fallbacks),
            "invalid": self.invalid,
            "p95Seconds": ordered[int(len(ordered) * 0.95)] if ordered else None,
            "labelled": self.labelled,
            "labelErrors": self.label_errors,
        }


class Driver:
    """App and surveyor; `rps` and `labelling` are set over HTTP."""

    def __init__(
        self, gateway: str, assessments: str, task: Task, surveyor_token: str, truth_sinks: list[str]
    ) -> None:
        self.task = task
        self.gateway = gateway
        self.assessments = assessments
        self.seen = Seen()
        self.rps = 0.0
        self.labelling = False
        self.truth_sinks = truth_sinks
        self._headers = {"authorization": f"Bearer {surveyor_token}"}
        self._pool: list[Photo] = []
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.openai = AsyncOpenAI(
            base_url=f"{self.gateway}/v1", api_key=os.environ.get("CUTOVER_CLIENT_TOKEN", "none")
        )
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20))
        self._pool = await asyncio.to_thread(lambda: [photo(LIVE_PICTURES, i) for i in range(LIVE_POOL)])
        await self._tell_truth(self._pool)
        self._spawn(self._app_loop())
        self._spawn(self._surveyor_loop())

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_truth(self, photos: list[Photo]) -> None:
        """The stand-ins must know what a picture shows before they are asked about it."""
        for sink in self.truth_sinks:
            for start in range(0, len(photos), 500):
                table = {p.sha256: p.truth for p in photos[start : start + 500]}
                while True:
                    try:
                        async with self.http.post(f"{sink}/admin/truth", json=table) as reply:
                            reply.raise_for_status()
                        break
                    except aiohttp.ClientError:
                        await asyncio.sleep(0.5)

    async def ask(self, shot: Photo, assessment_id: str) -> str | None:
        """One assessment through the SDK; the completion id, or None when it failed for good."""
        url = "data:image/png;base64," + base64.b64encode(shot.png).decode()
        self.seen.sent += 1
        start = time.monotonic()
        try:
            raw = await self.openai.chat.completions.with_raw_response.create(
                model="assessor",
                messages=[
                    {"role": "system", "content": self.task.system_prompt},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": self.task.user_prompt},
                            {"type": "image_url", "image_url": {"url": url}},
                        ],
                    },
                ],
                max_tokens=self.task.max_answer_tokens,
                temperature=0,
                extra_headers={HEADER_ASSESSMENT_ID: assessment_id},
            )
        except Exception as error:
            self.seen.failed += 1
            self.seen.failures.append(f"{assessment_id}: {type(error).__name__}: {error}"[:300])
            return None
        completion = raw.parse()
        self.seen.latencies_seconds.append(time.monotonic() - start)
        self.seen.answered += 1
        self.seen.by_arm[raw.headers.get(HEADER_ARM, "?")] += 1
        version = raw.headers.get(HEADER_VERSION, "?")
        self.seen.by_version[version] += 1
        if HEADER_FALLBACK in raw.headers:
            self.seen.fallbacks[raw.headers[HEADER_FALLBACK]] += 1
        answer = read_answer(completion.choices[0].message.content or "")
        if isinstance(answer, dict):
            decisive = self.task.decisive_field
            self.seen.right_by_version[version] += answer.get(decisive) == shot.truth[decisive]
        else:
            self.seen.invalid += 1
        return completion.id

    async def _app_loop(self) -> None:
        while True:
            if self.rps <= 0:
                await asyncio.sleep(0.1)
                continue
            index = self._next
            self._next += 1
            self._spawn(self._ask_live(index))
            await asyncio.sleep(1.0 / self.rps)

    async def _ask_live(self, index: int) -> None:
        await self.ask(self._pool[index % LIVE_POOL], f"app-{LIVE_PICTURES}-{index}")

    async def _surveyor_loop(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if not self.labelling:
                continue
            try:
                query = {"status": "toLabel", "limit": "200"}
                async with self.http.get(
                    f"{self.assessments}/api/assessments", params=query, headers=self._headers
                ) as reply:
                    reply.raise_for_status()
                    rows = (await reply.json())["assessments"]
            except (aiohttp.ClientError, TimeoutError):
                self.seen.label_errors += 1
                continue
            for row in rows:
                app, seed, index = row["assessmentId"].split("-")
                if app not in ("app", "seed"):
                    continue  # another application's: nobody here knows what its picture shows
                known = (
                    self._pool[int(index) % LIVE_POOL]
                    if int(seed) == LIVE_PICTURES
                    else photo(int(seed), int(index))
                )
                await self.label(row["id"], known.truth)

    async def label(self, request_id: str, truth: dict[str, str]) -> bool:
        """Say what the picture really shows. False when the service does not know the id (yet)."""
        body = {"labeller": "surveyor-1", "labels": truth}
        url = f"{self.assessments}/api/assessments/{request_id}/validation"
        try:
            async with self.http.post(url, json=body, headers=self._headers) as reply:
                if reply.status < 300:
                    self.seen.labelled += 1
                    return True
                if reply.status != 404:
                    self.seen.label_errors += 1
        except (aiohttp.ClientError, TimeoutError):
            self.seen.label_errors += 1
        return False

    async def seed(self, first: int, count: int, concurrency: int) -> dict[str, int]:
        """Ask about `count` new pictures from `first` on and validate every answer: the past a company already has."""
        photos = await asyncio.to_thread(lambda: [photo(SEED_PICTURES, first + i) for i in range(count)])
        await self._tell_truth(photos)
        gate = asyncio.Semaphore(concurrency)

        async def one(index: int) -> bool:
            async with gate:
                request_id = await self.ask(photos[index], f"seed-{SEED_PICTURES}-{first + index}")
                if request_id is None:
                    return False
                deadline = time.monotonic() + 60
                while not await self.label(request_id, photos[index].truth):
                    if time.monotonic() > deadline:
                        return False
                    await asyncio.sleep(0.2)
                return True

        done = await asyncio.gather(*(one(index) for index in range(count)))
        return {"asked": count, "validated": sum(done)}


def build(driver: Driver) -> Starlette:
    async def post_seed(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse(
            await driver.seed(int(body.get("first", 0)), int(body["count"]), int(body.get("concurrency", 16)))
        )

    async def post_app(request: Request) -> JSONResponse:
        body = await request.json()
        driver.rps = float(body["rps"])
        if body.get("reset"):
            driver.seen = Seen()
        return JSONResponse({"rps": driver.rps})

    async def post_surveyor(request: Request) -> JSONResponse:
        driver.labelling = bool((await request.json())["on"])
        return JSONResponse({"on": driver.labelling})

    async def get_stats(_: Request) -> JSONResponse:
        return JSONResponse(driver.seen.to_json())

    async def healthz(_: Request) -> JSONResponse:
        return JSONResponse({"ok": True})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        await driver.start()
        yield

    return Starlette(
        routes=[
            Route("/seed", post_seed, methods=["POST"]),
            Route("/app", post_app, methods=["POST"]),
            Route("/surveyor", post_surveyor, methods=["POST"]),
            Route("/stats", get_stats),
            Route("/healthz", healthz),
        ],
        lifespan=lifespan,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--assessments", required=True)
    parser.add_argument(
        "--truth-sink", action="append", default=[], help="base URL of a stand-in; may be repeated"
    )
    args = parser.parse_args()
    task = Task.model_validate(yaml.safe_load((EXAMPLE / "task.yaml").read_text()))
    driver = Driver(
        args.gateway, args.assessments, task, os.environ.get("CUTOVER_SURVEYOR_TOKEN", ""), args.truth_sink
    )
    print(json.dumps({"event": "driver", "port": args.port}), flush=True)
    uvicorn.run(build(driver), host="0.0.0.0", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
