"""The routes of the pages: signing in, the list to label from, the performance page, the style sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from cutover_server.assessments.audit import Actor
from cutover_server.assessments.auth import (
    COOKIE,
    CSRF_FIELD,
    SESSION_SECONDS,
    Identity,
    Role,
    came_by_https,
    local_path,
    protect,
    read_form,
    same_origin,
)
from cutover_server.assessments.labelling import UnknownAssessment, validate
from cutover_server.assessments.listing import STATUSES, list_assessments, one_assessment, queue_length
from cutover_server.assessments.maturity import check_labels
from cutover_server.assessments.reply import sound_text
from cutover_server.assessments.service import Service
from cutover_server.assessments.traffic import HOUR_SECONDS
from cutover_server.web.performance import charts, read_satisfaction, read_traffic, traffic_rows

PERFORMANCE_PATH = "/admin/model-performance"
PAGE_ROWS = 20
TRAFFIC_DAYS = 30
_STATIC = Path(__file__).parent / "static"
_STATIC_FILES = {"style.css": "text/css", "icon.svg": "image/svg+xml"}


class Pages:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._path = service.settings.assessments_path
        self._templates = Environment(
            loader=PackageLoader("cutover_server.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.1f} %"
        self._templates.filters["pretty"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._static = {name: (kind, (_STATIC / name).read_text()) for name, kind in _STATIC_FILES.items()}

    def routes(self) -> list[Route]:
        def page(path: str, role: Role, handler: Any, method: str = "GET") -> Route:
            return Route(path, protect(self._service.gatekeeper, role, handler, page=True), methods=[method])

        return [
            page("/", "surveyor", self.start),
            Route("/login", self.login_form, methods=["GET"]),
            Route("/login", self.login, methods=["POST"]),
            page("/logout", "surveyor", self.logout, "POST"),
            page(self._path, "surveyor", self.assessments),
            page(self._path + "/{id:path}", "surveyor", self.save, "POST"),
            page(PERFORMANCE_PATH, "admin", self.performance),
            Route("/static/{name}", self.static, methods=["GET"]),
        ]

    async def start(self, _: Request) -> Response:
        return RedirectResponse(self._path, status_code=303)

    async def static(self, request: Request) -> Response:
        kind, text = self._static.get(request.path_params["name"], ("", ""))
        if not kind:
            raise HTTPException(404, "no such file")
        return Response(text, media_type=kind, headers={"Cache-Control": "max-age=3600"})

    # ------------------------------------------------------------------ signing in

    async def login_form(self, request: Request) -> Response:
        return self._login_page(request, local_path(request.query_params.get("next", ""), self._path), "")

    async def login(self, request: Request) -> Response:
        form = await read_form(request)
        onward = local_path(str(form.get("next", "")), self._path)
        if not same_origin(request):
            return self._login_page(request, onward, "The form came from another site. Try again here.", 403)
        role = self._service.gatekeeper.role_of(str(form.get("token", "")).strip())
        name = str(form.get("name", "")).strip()[:128]
        if role not in ("surveyor", "admin"):
            return self._login_page(request, onward, "This token is not known. Ask for a new one.", 401)
        if not name or not name.isprintable():
            return self._login_page(request, onward, "Give your name: your labels are kept under it.", 422)
        response = RedirectResponse(onward, status_code=303)
        response.set_cookie(
            COOKIE,
            self._service.gatekeeper.new_session(role, name),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=self._secure(request),
        )
        return response

    async def logout(self, request: Request) -> Response:
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=self._secure(request))
        return response

    def _secure(self, request: Request) -> bool:
        """Whether the cookie may travel encrypted only."""
        return came_by_https(request) or self._service.settings.public_url.startswith("https:")

    # ------------------------------------------------------------------ labelling

    async def assessments(self, request: Request) -> Response:
        return await self._list(request, {})

    async def save(self, request: Request) -> Response:
        service, identity = self._service, request.path_params["id"]
        form = await read_form(request)
        row = await one_assessment(service.database, identity, blind=True)
        task = service.settings.tasks.get(row["task"]) if row is not None else None
        if task is None:
            return await self._list(request, {"": "This assessment is no longer there."}, 404)
        given = {name: str(form.get(f"label-{name}", "")) for name in task.scored_fields}
        values = {name: value for name, value in given.items() if value}
        comment = str(form.get("comment", "")).replace("\x00", "")[:2000]
        who: Identity = request.state.identity
        if problems := check_labels(task, values):
            return await self._list(request, {identity: problems[0]["message"]}, 422)
        try:
            # The page's own users have names; a bearer token that posts the form has not.
            actor = Actor(who.user or "unnamed", who.role, who.via)
            await validate(service.database, service.clock, identity, task, actor, values, comment)
        except UnknownAssessment:
            return await self._list(request, {"": "This assessment is no longer there."}, 404)
        query = urlencode({"status": _status(request), "saved": identity})
        return RedirectResponse(f"{self._path}?{query}", status_code=303)

    async def _list(self, request: Request, problems: Mapping[str, str], status_code: int = 200) -> Response:
        service, status = self._service, _status(request)
        who: Identity = request.state.identity
        try:
            page = await list_assessments(
                service.database,
                status=status,
                limit=PAGE_ROWS,
                cursor=request.query_params.get("cursor", ""),
                now=service.clock(),
                blind=who.role != "admin" and service.settings.blind_surveyors,
                reader=who.user or "",
            )
        except ValueError as problem:
            return self._render(request, "problem.html", {"message": str(problem)}, 400)
        rows = [
            {
                **row,
                "mine": next((e for e in reversed(row["labels"]) if e["labeller"] == who.user), None),
                "action": f"{self._path}/{quote(row['id'], safe='')}?{urlencode({'status': status})}",
                "problem": problems.get(row["id"], ""),
                "choices": self._choices(row["task"]),
            }
            for row in page.rows
        ]
        return self._render(
            request,
            "assessments.html",
            {
                "rows": rows,
                "status": status,
                "statuses": {"toLabel": "To label", "unlabelled": "Without label", "all": "All"},
                "next": f"{self._path}?{urlencode({'status': status, 'cursor': page.next_cursor})}"
                if page.next_cursor
                else "",
                "saved": request.query_params.get("saved", "") if request.method == "GET" else "",
                "problem": problems.get("", ""),
            },
            status_code,
        )

    def _choices(self, task_name: str) -> dict[str, list[str]]:
        task = self._service.settings.tasks.get(task_name)
        return {name: task.classes(name) for name in task.scored_fields} if task else {}

    # ------------------------------------------------------------------ figures

    async def performance(self, request: Request) -> Response:
        service, now = self._service, self._service.clock()
        counts = await service.accuracy()
        traffic = await read_traffic(service.database, int(now // HOUR_SECONDS) - 24 * TRAFFIC_DAYS)
        satisfaction = await read_satisfaction(service.database)
        return self._render(
            request,
            "performance.html",
            {
                **counts.to_wire(),
                "traffic": traffic_rows(traffic, satisfaction),
                "charts": charts(counts, traffic),
                "waiting": await queue_length(service.database, now),
                "days": TRAFFIC_DAYS,
            },
        )

    # ------------------------------------------------------------------ rendering

    def _login_page(self, request: Request, onward: str, problem: str, status_code: int = 200) -> Response:
        return self._render(request, "login.html", {"next": onward, "problem": problem}, status_code)

    def _render(
        self, request: Request, name: str, values: Mapping[str, Any], status_code: int = 200
    ) -> HTMLResponse:
        who: Identity | None = getattr(request.state, "identity", None)
        text = self._templates.get_template(name).render(
            {
                "who": who,
                "csrf": self._service.gatekeeper.csrf_token(who) if who else "",
                "csrf_field": CSRF_FIELD,
                "list_path": self._path,
                "performance_path": PERFORMANCE_PATH,
                **values,
            }
        )
        return HTMLResponse(sound_text(text), status_code=status_code)


def _status(request: Request) -> str:
    status = request.query_params.get("status", "toLabel")
    return status if status in STATUSES else "toLabel"
