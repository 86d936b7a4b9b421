"""A stand-in for the assessments service: takes pictures and records, and can be away or refuse."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cutover.records import RecordBatch


@dataclass
class FakeAssessments:
    token: str = "internal"
    status: int = 200
    """Anything but 200 is what every call is answered with."""
    poison_assessments: frozenset[str] = frozenset()
    """Their records are named as refused in the reply."""
    poison_batches: frozenset[str] = frozenset()
    """A batch with a record of one of these is refused as a whole."""
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    shadows: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    deliveries: int = 0
    puts: int = 0
    """Pictures taken, the same one again included."""
    problems: list[str] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/internal/records", self._records, methods=["POST"]),
                Route("/internal/pictures/{digest}", self._picture, methods=["PUT"]),
            ]
        )

    def by_assessment(self, assessment_id: str) -> list[dict[str, Any]]:
        return [record for record in self.records.values() if record["assessmentId"] == assessment_id]

    def _denied(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"detail": "token"}, 401)
        return JSONResponse({"detail": "told to fail"}, self.status) if self.status != 200 else None

    async def _picture(self, request: Request) -> Response:
        body = await request.body()
        if denied := self._denied(request):
            return denied
        digest = request.path_params["digest"]
        if hashlib.sha256(body).hexdigest() != digest:
            return JSONResponse({"detail": "digest"}, 422)
        self.puts += 1
        self.pictures[digest] = body
        return Response(status_code=204)

    async def _records(self, request: Request) -> Response:
        document = await request.json()
        if denied := self._denied(request):
            return denied
        batch = RecordBatch.model_validate(document)
        if any(record.assessment_id in self.poison_batches for record in batch.records):
            return JSONResponse({"detail": "unfit"}, 422)
        refused = []
        for record in batch.records:
            if record.assessment_id in self.poison_assessments:
                refused.append({"id": record.id, "reason": "unfit"})
                continue
            self.deliveries += 1
            missing = [digest for digest in record.pictures if digest not in self.pictures]
            if missing:
                self.problems.append(f"record {record.id} came before its pictures")
            self.records[record.id] = record.to_wire()
        for shadow in batch.shadows:
            if shadow.id not in self.records:
                self.problems.append(f"shadow {shadow.id} came before its record")
            self.shadows[shadow.id] = shadow.to_wire()
        return JSONResponse({"refused": refused})
