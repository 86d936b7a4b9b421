"""The JSON API: gateways deliver, surveyors label, administrators export and delete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cutover.contract import PATH_ACCURACY_STATS, PATH_EXPORT, PATH_PICTURES, PATH_RECORDS
from cutover_server.assessments.audit import Actor, trail
from cutover_server.assessments.auth import Identity, Role, protect
from cutover_server.assessments.body import (
    FeedbackBody,
    LabelFeedbackBody,
    ValidationBody,
    read_body,
    read_object,
)
from cutover_server.assessments.erasure import erase
from cutover_server.assessments.export import export_rows
from cutover_server.assessments.intake import take
from cutover_server.assessments.labelling import UnknownAssessment, give_feedback, validate
from cutover_server.assessments.listing import MAX_ROWS, list_assessments, one_assessment
from cutover_server.assessments.maturity import check_labels
from cutover_server.assessments.pictures import DigestMismatch, content_type_of, put_picture
from cutover_server.assessments.reply import JsonReply, error
from cutover_server.assessments.service import Service

MAX_BATCH_BYTES = 64_000_000
MAX_EXPORT_ROWS = 10_000_000


class Api:
    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        def route(path: str, role: Role, handler: Any, method: str = "GET") -> Route:
            return Route(path, protect(self._service.gatekeeper, role, handler), methods=[method])

        return [
            route(PATH_RECORDS, "internal", self.records, "POST"),
            route(PATH_PICTURES + "/{digest}", "internal", self.put_picture, "PUT"),
            route("/api/assessments", "surveyor", self.assessments),
            route("/api/assessments/{id:path}/validation", "surveyor", self.validation, "POST"),
            route("/api/assessments/{id:path}", "surveyor", self.assessment),
            route("/api/feedback", "surveyor", self.feedback, "POST"),
            route("/v1/feedback", "surveyor", self.feedback, "POST"),
            route("/api/admin/audit/{id:path}", "admin", self.audit),
            route("/api/pictures/{digest}", "surveyor", self.picture),
            route("/api/admin/assessments/{assessment_id:path}", "admin", self.delete, "DELETE"),
            route(PATH_EXPORT, "admin", self.export),
            route(PATH_ACCURACY_STATS, "admin", self.accuracy),
        ]

    # ------------------------------------------------------------------ gateways

    async def records(self, request: Request) -> Response:
        service = self._service
        batch = await read_object(request, MAX_BATCH_BYTES)
        try:
            intake = await take(service.database, batch, service.clock())
        except ValueError as problem:
            return error(400, str(problem))
        return JsonReply(intake.to_wire())

    async def put_picture(self, request: Request) -> Response:
        service, digest = self._service, request.path_params["digest"].lower()
        if not _is_digest(digest):
            return error(400, f"{digest[:80]!r} is not a SHA-256 in hex")
        body = await read_body(request, service.settings.max_picture_bytes)
        try:
            await put_picture(service.database, service.store, digest, body, service.clock())
        except DigestMismatch as problem:
            return error(422, str(problem))
        return Response(status_code=204)

    # ------------------------------------------------------------------ surveyors

    async def assessments(self, request: Request) -> Response:
        service, query = self._service, request.query_params
        try:
            page = await list_assessments(
                service.database,
                status=query.get("status", "toLabel"),
                limit=_whole(query.get("limit", "50"), "limit", MAX_ROWS),
                cursor=query.get("cursor", ""),
                now=service.clock(),
                blind=self._blind(request),
                reader=_reader(request),
            )
        except ValueError as problem:
            return error(400, str(problem))
        return JsonReply({"assessments": page.rows, "nextCursor": page.next_cursor})

    async def assessment(self, request: Request) -> Response:
        identity = request.path_params["id"]
        row = await one_assessment(
            self._service.database,
            identity,
            blind=self._blind(request),
            now=self._service.clock(),
            reader=_reader(request),
        )
        return JsonReply(row) if row is not None else error(404, f"no assessment {identity[:128]!r}")

    async def validation(self, request: Request) -> Response:
        body = ValidationBody.model_validate(await read_object(request))
        return await self._validate(request, request.path_params["id"], body)

    async def _validate(self, request: Request, identity: str, body: ValidationBody) -> Response:
        service = self._service
        who: Identity = request.state.identity
        labeller = who.user or body.labeller
        if not labeller:
            return error(422, "labeller is missing; name the person who labels", field="labeller")
        row = await one_assessment(service.database, identity, blind=True)
        if row is None:
            return error(404, f"no assessment {identity[:128]!r}")
        if row["task"] not in service.settings.tasks:
            return error(
                422, f"task {row['task']!r} is not one of {sorted(service.settings.tasks)}", field="task"
            )
        problems = check_labels(service.settings.tasks[row["task"]], body.labels)
        if problems:
            return error(422, problems[0]["message"], problems=problems)
        try:
            done = await validate(
                service.database,
                service.clock,
                identity,
                service.settings.tasks[row["task"]],
                Actor(labeller, who.role, who.via),
                body.labels,
                body.comment,
            )
        except UnknownAssessment:
            return error(404, f"no assessment {identity[:128]!r}")
        return JsonReply({"id": identity, "truth": done.truth, "changed": done.changed, "late": done.late})

    async def feedback(self, request: Request) -> Response:
        """A thumb, or a person's label, as what the body says."""
        document = await read_object(request)
        if "labels" in document:
            told = LabelFeedbackBody.model_validate(document)
            label = ValidationBody(labeller=told.labeller, labels=told.labels, comment=told.comment)
            return await self._validate(request, told.id, label)
        service = self._service
        who: Identity = request.state.identity
        body = FeedbackBody.model_validate(document)
        actor = Actor(who.user or body.client or "default", who.role, who.via)
        new = await give_feedback(service.database, service.clock(), body.id, actor, body.score, body.comment)
        return JsonReply({"id": body.id, "counted": new})

    async def picture(self, request: Request) -> Response:
        digest = request.path_params["digest"].lower()
        body = await self._service.store.get(digest) if _is_digest(digest) else None
        if body is None:
            return error(404, "no such picture")
        kind = content_type_of(body)
        headers = {
            "Cache-Control": "private, max-age=86400, immutable",
            "Content-Security-Policy": "default-src 'none'; sandbox",
        }
        if not kind.startswith("image/"):
            headers["Content-Disposition"] = "attachment"
        return Response(body, media_type=kind, headers=headers)

    # ------------------------------------------------------------------ administrators

    async def delete(self, request: Request) -> Response:
        service = self._service
        erased = await erase(
            service.database,
            service.store,
            service.settings.tasks,
            request.path_params["assessment_id"],
            service.clock(),
        )
        return JsonReply({"requests": erased.requests, "pictures": erased.pictures})

    async def audit(self, request: Request) -> Response:
        return JsonReply({"audit": await trail(self._service.database, request.path_params["id"])})

    async def export(self, request: Request) -> Response:
        service, query = self._service, request.query_params
        try:
            if query.get("format", "jsonl") != "jsonl":
                raise ValueError(f"format is {query['format']!r}; use jsonl")
            limit = _whole(query["limit"], "limit", MAX_EXPORT_ROWS) if query.get("limit") else None
            since = _moment(query["since"]) if query.get("since") else None
            if query.get("validated", "false") not in ("true", "false"):
                raise ValueError(f"validated is {query['validated']!r}; use true or false")
        except ValueError as problem:
            return error(400, str(problem))
        async with service.database.read():
            pass  # a database that is away answers 503 here, not with a broken stream
        rows = export_rows(
            service.database,
            service.settings.tasks,
            service.settings.public_url or str(request.base_url).rstrip("/"),
            limit=limit,
            since=since,
            validated_only=query.get("validated") == "true",
        )
        return StreamingResponse(rows, media_type="application/jsonl")

    async def accuracy(self, request: Request) -> Response:
        counts = await self._service.accuracy()
        return JsonReply(counts.to_wire())

    def _blind(self, request: Request) -> bool:
        who: Identity = request.state.identity
        if who.role != "admin":
            return self._service.settings.blind_surveyors
        return request.query_params.get("blind") == "true"


def _reader(request: Request) -> str:
    """Who asks: the person signed in, else the one a program asks for."""
    who: Identity = request.state.identity
    return who.user or request.query_params.get("labeller", "")


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _whole(text: str, name: str, largest: int) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:12]) <= largest:
        raise ValueError(f"{name} is {text[:20]!r}; give a whole number from 1 to {largest}")
    return int(text)


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a bare + in a query arrives as a space
    except ValueError as problem:
        raise ValueError(f"since is {text[:40]!r}; give RFC 3339, such as 2026-01-31T12:00:00Z") from problem
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def validation_problem(problem: ValidationError) -> JsonReply:
    first = problem.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return error(422, f"{where}: {first['msg']}", field=where)
