"""The Kubernetes API over one kept aiohttp session: the verbs of `port.Kube`, dicts in and out.

Promises: every request has a deadline; a 429, a 5xx or a broken connection is tried again with back-off where trying
twice is the same as trying once (everything but `create`); 409 becomes Conflict, 400 and 422 become Invalid.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from urllib.parse import quote, urlencode

import aiohttp
import orjson

from cutover.api.base import FIELD_MANAGER
from cutover_operator.access import Access
from cutover_operator.port import Conflict, Invalid, KubeError, Object, Resource, resource_of

Objects = list[Object]
"""The verb `list` hides the type of that name inside the class."""
APPLY_TYPE = "application/apply-patch+yaml"
PAGE = 500
NAMES_PAGE = 50
REQUEST_SECONDS = 4.5
"""Of a write with its repeats, within the five seconds between the Lease's renew deadline and its end: no write outlives
leadership. A read may take twice as long."""
TRIES = 4
BACK_OFF_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 5.0
AGAIN = frozenset({429, 500, 502, 503, 504})
EXPIRED = 410
LISTINGS = 3
CONNECTIONS = 16
"""Each TLS connection of asyncio's holds a buffer of 256 KiB."""


class KubeClient:
    """`port.Kube` for a real API server. Close it, or use it as an async context."""

    def __init__(self, access: Access, *, request_seconds: float = REQUEST_SECONDS) -> None:
        self._access = access
        self._seconds = request_seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -------------------------------------------------------------- verbs
    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        try:
            return _read(await self._json("GET", _path(resource, namespace, name)))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, resource: Resource, namespace: str | None, label_selector: str = "") -> Objects:
        for left in reversed(range(LISTINGS)):
            try:
                return await self._pages(resource, namespace, label_selector)
            except KubeError as error:
                # A listing that outlived its snapshot starts again from its first page.
                if error.status != EXPIRED or not left:
                    raise
        raise AssertionError("unreachable")

    async def _pages(self, resource: Resource, namespace: str | None, label_selector: str) -> Objects:
        found: Objects = []
        query = {"limit": str(PAGE)}
        if label_selector:
            query["labelSelector"] = label_selector
        while True:
            page = await self._json("GET", f"{_path(resource, namespace)}?{urlencode(query)}")
            # The items of a list come without apiVersion and kind.
            found += (
                _read({"apiVersion": resource.api_version, "kind": resource.kind, **item})
                for item in page["items"]
            )
            token = page["metadata"].get("continue")
            if not token:
                return found
            query["continue"] = token

    async def names(self, resource: Resource, namespace: str | None) -> AsyncIterator[tuple[str, str]]:
        """(namespace, name) of every object, page by page: the objects themselves are never in memory together. Names
        come twice when the listing outlived its snapshot and began again."""
        query, begun_again = {"limit": str(NAMES_PAGE)}, 0
        while True:
            try:
                page = await self._json("GET", f"{_path(resource, namespace)}?{urlencode(query)}")
            except KubeError as error:
                begun_again += 1
                if error.status != EXPIRED or begun_again >= LISTINGS:
                    raise
                query.pop("continue", None)
                continue
            for item in page["items"]:
                yield item["metadata"]["namespace"], item["metadata"]["name"]
            token = page["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def create(self, obj: Object) -> Object:
        path = f"{_path(resource_of(obj), obj['metadata'].get('namespace'))}?fieldManager={FIELD_MANAGER}"
        return await self._json("POST", path, obj, again=False)

    async def replace(self, obj: Object) -> Object:
        if not obj["metadata"].get("resourceVersion"):
            raise ValueError("replace without a resourceVersion would overwrite whatever is there")
        return _read(await self._json("PUT", f"{_path_of(obj)}?fieldManager={FIELD_MANAGER}", obj))

    async def apply(self, obj: Object) -> Object:
        path = f"{_path_of(obj)}?fieldManager={FIELD_MANAGER}&force=true"
        return await self._json("PATCH", path, obj, content_type=APPLY_TYPE)

    async def apply_status(self, obj: Object) -> Object:
        if not obj["metadata"].get("resourceVersion"):
            raise ValueError("apply_status without a resourceVersion would overwrite whatever is there")
        path = f"{_path_of(obj)}/status?fieldManager={FIELD_MANAGER}&force=true"
        return _read(await self._json("PATCH", path, obj, content_type=APPLY_TYPE))

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> None:
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._json("DELETE", _path(resource, namespace, name), body)
        except KubeError as error:
            if error.status != 404:
                raise

    async def pod_log(self, namespace: str, pod: str, tail_lines: int) -> str:
        path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/log?tailLines={tail_lines}&limitBytes=65536"
        return (await self._request("GET", path)).decode(errors="replace")

    # -------------------------------------------------------------- transport
    async def _json(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content_type: str = "",
        again: bool = True,
    ) -> Object:
        text = await self._request(method, path, body, content_type=content_type, again=again)
        try:
            answer: object = orjson.loads(text)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            # Not the API server, but something in front of it.
            raise KubeError(0, f"{method} {path}: the answer is no JSON object: {_start(text)!r}")
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content_type: str = "",
        again: bool = True,
    ) -> bytes:
        data = None if body is None else orjson.dumps(body)
        tries = TRIES if again else 1
        seconds = 2 * self._seconds if method == "GET" else self._seconds
        deadline = asyncio.get_running_loop().time() + seconds
        for attempt in range(1, tries + 1):
            wait = _back_off(attempt)
            try:
                status, answer, retry_after = await self._once(method, path, data, content_type, seconds / 2)
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = KubeError(0, f"{method} {path}: {type(error).__name__}: {error}")
            else:
                if status < 300:
                    return answer
                failure = _failure(status, f"{method} {path}: {_message(answer)}")
                if status == 401:
                    self._access.token_refused()
                elif status not in AGAIN:
                    raise failure
                wait = max(wait, retry_after)
            if attempt == tries or asyncio.get_running_loop().time() + wait >= deadline:
                raise failure
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, path: str, data: bytes | None, content_type: str, seconds: float
    ) -> tuple[int, bytes, float]:
        headers = {"Accept": "application/json", **self._access.headers()}
        if data is not None:
            headers["Content-Type"] = content_type or "application/json"
        async with self._open().request(
            method,
            self._access.server + path,
            data=data,
            headers=headers,
            ssl=self._access.tls or True,
            timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=2.0),
        ) as response:
            return response.status, await response.read(), _seconds(response.headers.get("Retry-After"))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                headers={"User-Agent": FIELD_MANAGER},
            )
        return self._session


def _read(obj: Object) -> Object:
    """Without who wrote which field: as much text again, and nobody here looks at it."""
    obj["metadata"].pop("managedFields", None)
    return obj


def _path(resource: Resource, namespace: str | None, name: str | None = None) -> str:
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    tail = f"/{quote(name, safe='')}" if name else ""
    return f"{resource.root}{inside}/{resource.plural}{tail}"


def _path_of(obj: Object) -> str:
    return _path(resource_of(obj), obj["metadata"].get("namespace"), obj["metadata"]["name"])


def _back_off(attempt: int) -> float:
    return float(BACK_OFF_SECONDS * 2 ** (attempt - 1) * (0.5 + random.random()))  # noqa: S311


def _seconds(text: str | None) -> float:
    return min(float(text), LONGEST_WAIT_SECONDS) if text and text.isdecimal() else 0.0


def _failure(status: int, message: str) -> KubeError:
    if status == 409:
        return Conflict(status, message)
    return Invalid(status, message) if status in (400, 422) else KubeError(status, message)


def _message(answer: bytes) -> str:
    """The sentence of a Status object, else the start of the body."""
    try:
        return str(orjson.loads(answer)["message"])[:1000]
    except (ValueError, KeyError, TypeError):
        return _start(answer)


def _start(answer: bytes) -> str:
    return answer[:300].decode(errors="replace")
