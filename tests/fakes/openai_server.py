"""A stand-in for a hosted vision model: an OpenAI-compatible server whose knowledge and faults are set at run time.

    python -m fakes.openai_server --port 8001 --task task.yaml --truth truth.json --model gpt-4o

It knows the truth of a picture by the SHA-256 of its bytes: from `--truth` (JSON, `{sha256: {field: value}}`), from
`--pictures-module` (a module with `truth() -> dict`), or posted to `POST /admin/truth`. `POST /admin/behaviour` sets any
field of `Behaviour`, `GET /admin/stats` counts what happened, `POST /admin/reset` forgets it. What it answers depends on
the seed, the picture and the behaviour only, so that two runs tell the same story.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import hashlib
import importlib
import json
import math
import statistics
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cutover.contract import HEADER_BUSY_SECONDS
from cutover.task import Task


@dataclass
class Behaviour:
    """How well and how badly it serves; shares are between 0 and 1."""

    seed: str = "0"
    accuracy: float = 1.0
    """Share of pictures all of whose fields are right; a wrong answer is wrong in the first field at least."""
    field_accuracy: dict[str, float] = field(default_factory=dict)
    """Per field, instead of `accuracy`: each field is right or wrong by itself."""
    latency_mean_seconds: float = 0.0
    latency_p95_seconds: float = 0.0
    """Above the mean it makes the latency log-normal."""
    error_share: float = 0.0
    error_status: int = 500
    overload_share: float = 0.0
    """429 with Retry-After."""
    refusal_share: float = 0.0
    """400, as for a picture it cannot read."""
    prose_share: float = 0.0
    fenced_share: float = 0.0
    truncated_share: float = 0.0
    """Cut JSON with finish_reason length."""
    hang_share: float = 0.0
    """Never answers."""
    reset_share: float = 0.0
    """Closes the connection in mid-answer."""
    stall_share: float = 0.0
    """Falls silent in mid-answer."""
    error_in_200_share: float = 0.0
    prompt_tokens: int = 1000
    completion_tokens: int = 40
    busy_seconds: float | None = None
    """Sent in the busy-seconds header."""
    confidence_right: float = 0.95
    confidence_wrong: float = 0.6
    """Probability of the decisive value's token, when log-probabilities are asked for."""


@dataclass
class Model:
    task: Task
    name: str
    key: str | None = None
    behaviour: Behaviour = field(default_factory=Behaviour)
    truth: dict[str, dict[str, Any]] = field(default_factory=dict)
    stats: Counter[str] = field(default_factory=Counter)
    seen: list[dict[str, Any]] = field(default_factory=list)
    """The last requests: model, digests, whether log-probabilities and a stream were asked for."""
    in_flight: int = 0

    def draw(self, digest: str, what: str) -> float:
        """A number in [0, 1) that this seed, picture and question always give."""
        told = hashlib.sha256(f"{self.behaviour.seed}\x1f{what}\x1f{digest}".encode()).digest()
        return int.from_bytes(told[:8], "big") / 2**64

    def answer(self, digest: str) -> tuple[dict[str, Any], bool]:
        """The answer for a picture, and whether its decisive field is right."""
        truth = dict(self.truth.get(digest) or self._made_up(digest))
        answer = _fill(self.task, truth)
        all_right = self.draw(digest, "right") < self.behaviour.accuracy
        for at, name in enumerate(self.task.scored_fields):
            share = self.behaviour.field_accuracy.get(name)
            if share is not None:
                right = self.draw(digest, f"right {name}") < share
            else:
                right = all_right or (at > 0 and self.draw(digest, f"right {name}") < 0.5)
            if not right:
                others = [value for value in self.task.classes(name) if value != str(truth.get(name))]
                if others:
                    answer[name] = others[int(self.draw(digest, f"wrong {name}") * len(others))]
        decisive = self.task.decisive_field
        return answer, answer.get(decisive) == truth.get(decisive)

    def _made_up(self, digest: str) -> dict[str, Any]:
        """A truth for a picture nobody told of."""
        return {
            name: self.task.classes(name)[
                int(self.draw(digest, f"truth {name}") * len(self.task.classes(name)))
            ]
            for name in self.task.scored_fields
        }

    def latency_seconds(self, digest: str, turn: int) -> float:
        mean, p95 = self.behaviour.latency_mean_seconds, self.behaviour.latency_p95_seconds
        if mean <= 0 or p95 <= mean:
            return max(mean, 0.0)
        # Log-normal with this mean and 95th percentile: sigma solves ln(p95/mean) = 1.645 sigma - sigma^2 / 2.
        root = 1.645**2 - 2 * math.log(p95 / mean)
        sigma = 1.645 - math.sqrt(root) if root > 0 else 1.645
        normal = statistics.NormalDist().inv_cdf(
            min(max(self.draw(digest, f"latency {turn}"), 1e-6), 1 - 1e-6)
        )
        return math.exp(math.log(mean) - sigma**2 / 2 + sigma * normal)


def _fill(task: Task, truth: Mapping[str, Any]) -> dict[str, Any]:
    """An answer the schema accepts: the truth, and something of the right type for every other required property."""
    properties = task.answer_schema.get("properties", {})
    wanted = task.answer_schema.get("required", list(properties))
    answer = {name: truth[name] if name in truth else _example(properties.get(name, {})) for name in wanted}
    return {**answer, **{name: value for name, value in truth.items() if name in properties}}


def _example(schema: Mapping[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind in ("number", "integer"):
        return schema.get("minimum", 0)
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _example(properties.get(name, {})) for name in schema.get("required", [])}
    examples = {"boolean": False, "array": [], "null": None}
    return examples.get(kind, "seen on the photo"[: schema.get("maxLength", 100)])


def pictures_in(messages: list[dict[str, Any]]) -> list[str]:
    """Digests of the `data:` pictures; http pictures are not opened."""
    digests = []
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if part.get("type") == "image_url":
                told = part["image_url"]
                url = told["url"] if isinstance(told, dict) else told
                head, _, payload = url.partition(",")
                body = base64.b64decode(payload) if head.endswith("base64") else url.encode()
                digests.append(hashlib.sha256(body).hexdigest())
    return digests


def _logprobs(text: str, value: str, probability: float, top: int) -> dict[str, Any]:
    """Log-probabilities as an engine gives them: the decisive value is one token, the rest is nearly certain."""
    at = text.find(f'"{value}"') + 1
    pieces = [text[:at], value, text[at + len(value) :]] if at > 0 else [text]
    content = []
    for piece in pieces:
        logprob = math.log(probability) if piece == value and at > 0 else -0.0001
        one = {"token": piece, "logprob": logprob, "bytes": list(piece.encode())}
        content.append({**one, "top_logprobs": [one][:top]})
    return {"content": content, "refusal": None}


def _error(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status, headers=headers)


class FakeOpenAI:
    """The HTTP face of a `Model`."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
                Route("/admin/behaviour", self.set_behaviour, methods=["POST"]),
                Route("/admin/behaviour", self.get_behaviour, methods=["GET"]),
                Route("/admin/truth", self.set_truth, methods=["POST"]),
                Route("/admin/stats", self.get_stats),
                Route("/admin/reset", self.reset, methods=["POST"]),
            ]
        )

    async def chat(self, request: Request) -> Response:
        model, behaviour = self.model, self.model.behaviour
        model.stats["requests"] += 1
        if model.key is not None and request.headers.get("authorization") != f"Bearer {model.key}":
            model.stats["unauthorized"] += 1
            return _error(401, "Incorrect API key provided.", "invalid_request_error")
        body = await request.json()
        digests = pictures_in(body.get("messages", []))
        digest = digests[0] if digests else hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        model.seen.append(
            {
                "model": body.get("model"),
                "digests": digests,
                "logprobs": body.get("logprobs"),
                "stream": body.get("stream"),
                "keys": sorted(body),
            }
        )
        del model.seen[:-200]
        turn = model.stats[f"turn {digest}"] = model.stats[f"turn {digest}"] + 1
        model.in_flight += 1
        try:
            return await self._chat(body, digest, turn, behaviour)
        finally:
            model.in_flight -= 1

    async def _chat(self, body: dict[str, Any], digest: str, turn: int, behaviour: Behaviour) -> Response:
        model = self.model

        def strikes(what: str, share: float) -> bool:
            return share > 0 and model.draw(digest, f"{what} {turn}") < share

        if strikes("hang", behaviour.hang_share):
            model.stats["hung"] += 1
            await asyncio.sleep(3600)
        await asyncio.sleep(model.latency_seconds(digest, turn))
        if strikes("overload", behaviour.overload_share):
            model.stats["overloaded"] += 1
            return _error(429, "Rate limit reached.", "rate_limit_error", {"retry-after": "1"})
        if strikes("error", behaviour.error_share):
            model.stats["errors"] += 1
            return _error(behaviour.error_status, "The server had an error.", "server_error")
        if strikes("refusal", behaviour.refusal_share):
            model.stats["refused"] += 1
            return _error(400, "The image cannot be processed.", "invalid_request_error")
        if strikes("error in 200", behaviour.error_in_200_share):
            model.stats["errors in 200"] += 1
            return JSONResponse({"error": {"message": "engine died", "type": "server_error"}})
        answer, right = model.answer(digest)
        text = json.dumps(answer)
        finish = "stop"
        if strikes("prose", behaviour.prose_share):
            text = f"Looking at the photo, I would say: {text}"
        elif strikes("fenced", behaviour.fenced_share):
            text = f"```json\n{text}\n```"
        elif strikes("truncated", behaviour.truncated_share):
            text, finish = text[: len(text) // 2], "length"
        model.stats["answers"] += 1
        model.stats["right" if right else "wrong"] += 1
        probability = behaviour.confidence_right if right else behaviour.confidence_wrong
        decisive = str(answer[model.task.decisive_field])
        completion = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": 1,
            "model": body.get("model") or model.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": _logprobs(text, decisive, probability, int(body.get("top_logprobs") or 0))
                    if body.get("logprobs")
                    else None,
                    "finish_reason": finish,
                }
            ],
            "usage": {
                "prompt_tokens": behaviour.prompt_tokens,
                "completion_tokens": behaviour.completion_tokens,
                "total_tokens": behaviour.prompt_tokens + behaviour.completion_tokens,
            },
        }
        headers = {}
        if behaviour.busy_seconds is not None:
            headers[HEADER_BUSY_SECONDS] = str(behaviour.busy_seconds)
        for fault, share in (("reset", behaviour.reset_share), ("stall", behaviour.stall_share)):
            if strikes(fault, share):
                model.stats[fault] += 1
                return StreamingResponse(_broken_off(json.dumps(completion).encode(), stall=fault == "stall"))
        if body.get("stream"):
            return StreamingResponse(_events(completion), media_type="text/event-stream", headers=headers)
        return JSONResponse(completion, headers=headers)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": self.model.name, "object": "model"}]})

    async def health(self, request: Request) -> Response:
        return Response("ok\n")

    async def set_behaviour(self, request: Request) -> Response:
        change = await request.json()
        known = {one.name for one in dataclasses.fields(Behaviour)}
        if unknown := sorted(set(change) - known):
            return JSONResponse({"error": f"unknown {unknown}; known {sorted(known)}"}, 400)
        self.model.behaviour = dataclasses.replace(self.model.behaviour, **change)
        return JSONResponse(dataclasses.asdict(self.model.behaviour))

    async def get_behaviour(self, request: Request) -> Response:
        return JSONResponse(dataclasses.asdict(self.model.behaviour))

    async def set_truth(self, request: Request) -> Response:
        self.model.truth.update(await request.json())
        return JSONResponse({"pictures": len(self.model.truth)})

    async def get_stats(self, request: Request) -> Response:
        counts = {name: count for name, count in self.model.stats.items() if not name.startswith("turn ")}
        return JSONResponse({**counts, "in_flight": self.model.in_flight, "seen": self.model.seen})

    async def reset(self, request: Request) -> Response:
        self.model.stats.clear()
        self.model.seen.clear()
        return JSONResponse({})


async def _broken_off(body: bytes, stall: bool) -> Any:
    yield body[: len(body) // 2]
    if stall:
        await asyncio.sleep(3600)
    raise ConnectionResetError("told to break the connection")


async def _events(completion: dict[str, Any]) -> Any:
    head = {key: completion[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choice = completion["choices"][0]
    for delta, finish in (
        ({"role": "assistant", "content": choice["message"]["content"]}, None),
        ({}, "stop"),
    ):
        one = {"index": 0, "delta": delta, "finish_reason": finish}
        yield f"data: {json.dumps({**head, 'choices': [one]})}\n\n"
    yield "data: [DONE]\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for a hosted vision model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--task", type=Path, required=True, help="task.yaml")
    parser.add_argument("--model", default="gpt-4o")
    parser.add_argument("--key", help="the API key it wants; none: any")
    parser.add_argument("--truth", type=Path, help="JSON: {sha256: {field: value}}")
    parser.add_argument("--pictures-module", help="module with truth() -> {sha256: {field: value}}")
    parser.add_argument("--behaviour", default="{}", help="JSON with fields of Behaviour")
    options = parser.parse_args()
    task = Task.model_validate(yaml.safe_load(options.task.read_text()))
    model = Model(task, options.model, options.key, Behaviour(**json.loads(options.behaviour)))
    if options.truth:
        model.truth.update(json.loads(options.truth.read_text()))
    if options.pictures_module:
        model.truth.update(importlib.import_module(options.pictures_module).truth())
    uvicorn.run(
        FakeOpenAI(model).app, host=options.host, port=options.port, log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main()
