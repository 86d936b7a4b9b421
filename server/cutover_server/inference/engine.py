"""The engine's life: loading, ready, draining, failed; and from a request's bytes to a waiting job.

Owns two threads: the worker, which alone touches the model, and the preparer, which reads pictures and builds
prompts while the worker generates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jsonschema_rs
import orjson

from cutover_server.inference.batching import Batcher
from cutover_server.inference.chat import ChatRequest, Sampling, read_request
from cutover_server.inference.generation import OnStep, Row, RowRun
from cutover_server.inference.lines import log
from cutover_server.inference.loading import Served, load
from cutover_server.inference.picture import open_picture
from cutover_server.inference.prompt import template_form
from cutover_server.inference.refusal import Refusal
from cutover_server.inference.settings import ServeSettings
from cutover_server.inference.telemetry import Telemetry

State = Literal["loading", "ready", "draining", "failed"]
FAILURES_UNTIL_UNHEALTHY = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that can run."""

    request: ChatRequest
    row: Row
    prompt_tokens: int
    validator: Any


class Engine:
    def __init__(self, settings: ServeSettings, *, loader: Callable[[ServeSettings], Served] = load) -> None:
        self.settings = settings
        self.telemetry = Telemetry()
        self.batcher = Batcher(self._run, max_queue=settings.max_queue, max_batch=settings.max_batch)
        self.preparer = ThreadPoolExecutor(1, thread_name_prefix="preparer")
        self.served: Served | None = None
        self.error: BaseException | None = None
        self._loader = loader
        self._draining = False
        self.telemetry.watch(
            lambda: self.batcher.queued, lambda: self.batcher.running, lambda: float(self.state == "ready")
        )

    @property
    def state(self) -> State:
        if self.error is not None or self.batcher.failures_in_a_row >= FAILURES_UNTIL_UNHEALTHY:
            return "failed"
        if self._draining:
            return "draining"
        return "loading" if self.served is None else "ready"

    def start(self, on_failed: Callable[[BaseException], None]) -> None:
        """Begin to load; `on_failed` is called from the worker thread when that does not work."""

        def live() -> None:
            try:
                self.served = self._loader(self.settings)
            except BaseException as error:
                self.error = error
                on_failed(error)
                return
            self.batcher.work()

        threading.Thread(target=live, name="worker", daemon=True).start()

    def drain(self) -> None:
        """Take nothing new; what was admitted goes on."""
        self._draining = True

    def _run(self, rows: Sequence[Row], sampling: Sampling, on_step: OnStep) -> list[RowRun]:
        assert self.served is not None
        return self.served.run(rows, sampling, on_step)

    def check_open(self) -> None:
        state = self.state
        if state != "ready":
            text = {
                "loading": "the model is still being loaded",
                "draining": "this engine is shutting down; ask another",
                "failed": "the model cannot answer; see the log",
            }[state]
            raise Refusal(503, text, kind="server_error", code=f"engine_{state}", retry_after_seconds=1)

    def prepare(self, body: bytes) -> Prepared:
        """Read, check and encode a request. Raises Refusal. Runs in the preparer thread."""
        served = self.served
        assert served is not None
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
        request = read_request(document, max_pictures=self.settings.max_pictures)
        if request.model != self.settings.served_name:
            raise Refusal(
                404,
                f"the model {request.model[:100]!r} is not served here; this engine serves "
                f"{self.settings.served_name!r}",
                param="model",
                code="model_not_found",
            )
        validator = _validator(request.schema)
        pictures = [open_picture(picture.content) for picture in request.pictures]
        inputs = served.prompts.inputs(template_form(request.messages), pictures)
        prompt_tokens = int(inputs["input_ids"].shape[1])
        room = served.base.max_positions - prompt_tokens
        wanted = request.max_tokens
        if wanted is not None and wanted > room:
            raise Refusal(
                400,
                f"the prompt has {prompt_tokens} tokens and max_tokens is {wanted}; together at most "
                f"{served.base.max_positions}: ask for at most {room}",
                param="max_tokens",
                code="context_length_exceeded",
            )
        most = min(room, self.settings.max_new_tokens, wanted or room)
        return Prepared(request, Row(inputs, most, request.top_logprobs), prompt_tokens, validator)

    def check_schema(self, validator: Any, text: str) -> None:
        """Count whether the answer keeps the schema asked for. The answer goes out either way."""
        if validator is None:
            return
        try:
            valid = bool(validator.is_valid(orjson.loads(text)))
        except orjson.JSONDecodeError:
            valid = False
        self.telemetry.schema_checks.labels("valid" if valid else "invalid").inc()
        if not valid:
            log("schema_not_kept", level="warning", characters=len(text))


def _validator(schema: dict[str, Any] | None) -> Any:
    if schema is None:
        return None
    try:
        return jsonschema_rs.validator_for(schema)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise Refusal(
            400,
            f"response_format.json_schema.schema is not a JSON schema: {error}"[:500],
            param="response_format",
        ) from None
