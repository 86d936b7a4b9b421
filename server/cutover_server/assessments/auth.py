"""Who is asking: tokens, the browser's session, an OIDC proxy's header; and the proof that a form is our own.

Three roles: `internal` (gateways) delivers and does nothing else; `surveyor` labels; `admin` does what a surveyor does,
and exports, deletes and sees the figures. Tokens are compared in constant time. The session is a signed cookie, so every
replica knows it; a new admin token ends all sessions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cutover_server.assessments.body import BodyTooLarge
from cutover_server.assessments.database import Clock
from cutover_server.assessments.reply import error
from cutover_server.assessments.settings import Settings

Role = Literal["internal", "surveyor", "admin"]
Handler = Callable[[Request], Awaitable[Response]]

COOKIE = "cutover_session"
SESSION_SECONDS = 12 * 3600
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"
MAX_FORM_BYTES = 65536
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Identity:
    role: Role
    user: str
    """Name of the person; empty for a bearer token."""
    via: Literal["bearer", "session", "proxy"]
    session: str = ""

    def may(self, role: Role) -> bool:
        return self.role == role or (self.role == "admin" and role == "surveyor")


class Gatekeeper:
    def __init__(self, settings: Settings, clock: Clock) -> None:
        tokens: dict[Role, str] = {
            "admin": settings.admin_token,
            "internal": settings.internal_token,
            "surveyor": settings.surveyor_token,
        }
        self._tokens = [(role, _digest(token)) for role, token in tokens.items() if token]
        self._key = hmac.digest(settings.admin_token.encode(), b"cutover session key 1", "sha256")
        self._proxy_header = settings.proxy_user_header
        self._proxy_admins = settings.proxy_admins
        self._clock = clock

    def role_of(self, token: str) -> Role | None:
        given, found = _digest(token), None
        for role, known in self._tokens:  # all of them, whichever matches: the time tells nothing
            if hmac.compare_digest(given, known):
                found = role
        return found

    def identify(self, request: Request) -> Identity | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            role = self.role_of(token.strip())
            return Identity(role, "", "bearer") if role else None
        if cookie := request.cookies.get(COOKIE):
            identity = self.read_session(cookie)
            if identity is not None:
                return identity
        if self._proxy_header and (user := request.headers.get(self._proxy_header, "").strip()):
            return Identity("admin" if user in self._proxy_admins else "surveyor", user[:128], "proxy")
        return None

    def new_session(self, role: Role, user: str) -> str:
        body = {
            "role": role,
            "user": user,
            "until": self._clock() + SESSION_SECONDS,
            "id": secrets.token_hex(8),
        }
        payload = base64.urlsafe_b64encode(json.dumps(body).encode()).decode()
        return f"{payload}.{self._sign('session', payload)}"

    def read_session(self, cookie: str) -> Identity | None:
        payload, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", payload).encode()):
            return None
        try:
            body = json.loads(base64.urlsafe_b64decode(payload))
        except (ValueError, binascii.Error):
            return None
        if body["until"] < self._clock():
            return None
        return Identity(body["role"], body["user"], "session", body["id"])

    def csrf_token(self, identity: Identity) -> str:
        return self._sign("csrf", f"{identity.via}\x1f{identity.user}\x1f{identity.session}")

    def csrf_holds(self, identity: Identity, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.csrf_token(identity).encode())

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}\x1f{text}".encode(), "sha256").hexdigest()


def protect(gatekeeper: Gatekeeper, role: Role, handler: Handler, *, page: bool = False) -> Handler:
    """The handler behind its door. Pages send strangers to /login; the API answers 401 or 403.

    A browser adds its cookie (or the proxy its header) to requests of any origin, so everything that changes something
    needs the form's token as well, unless a bearer token came along.
    """

    async def guarded(request: Request) -> Response:
        identity = gatekeeper.identify(request)
        if identity is None:
            if page:
                return RedirectResponse(f"/login?next={quote(request.url.path)}", status_code=303)
            return error(401, "no valid token; send Authorization: Bearer <token>")
        if not identity.may(role):
            return error(403, f"the role {identity.role} may not do this; it takes {role}")
        if request.method not in _SAFE and identity.via != "bearer":
            given = request.headers.get(CSRF_HEADER, "")
            if not given and page:
                form = await read_form(request)
                given = str(form.get(CSRF_FIELD, ""))
            if not same_origin(request) or not gatekeeper.csrf_holds(identity, given):
                return error(403, "the form is not this site's or is out of date; open the page again")
        request.state.identity = identity
        return await handler(request)

    return guarded


async def read_form(request: Request) -> FormData:
    """The fields of a form, bounded; read once however often it is asked for."""
    announced = request.headers.get("content-length", "")
    if not announced.isdigit() or int(announced) > MAX_FORM_BYTES:
        raise BodyTooLarge(f"a form says its length and has at most {MAX_FORM_BYTES} bytes")
    return await request.form(max_files=0, max_fields=50)


def same_origin(request: Request) -> bool:
    """False when the browser says that another site sent this."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host", "")


def came_by_https(request: Request) -> bool:
    """Whether the browser's own connection is encrypted, as far as the request tells.

    Any proxy's word is taken, for it can only make a cookie stricter: who invents it loses a session of his own.
    """
    told = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower()
    forwarded = (
        request.headers.get("forwarded", "").partition(",")[0].lower().replace(" ", "").replace('"', "")
    )
    return request.url.scheme == "https" or told == "https" or "proto=https" in forwarded.split(";")


def local_path(path: str, default: str) -> str:
    """A path of this site, or the default: never a way out to another one."""
    if path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable():
        return path
    return default


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
