"""Follows the route's ConfigMap in the cluster, or a file outside one, and hands each new text on.

The watch lists once, then reads events from the version it knows; bookmarks keep that version fresh. A version the
server has forgotten (410) means a new list; any other end means a new watch, after a growing pause if it was an error.
A watch is short, so that one whose connection died unnoticed blinds the gateway for seconds, not for ever. The pod's
token is read anew for each call: it is replaced while the pod lives.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from cutover.contract import ROUTE_KEY

log = logging.getLogger(__name__)
Take = Callable[[str | None], Awaitable[bool]]
WATCH_SECONDS = 30
_GRACE_SECONDS = 10
_WATCHES_PER_LIST = 20
"""Every ten minutes the list is the truth again, whatever a watch may have lost."""
_LINE_BYTES = 8_000_000
_BREATH_SECONDS = 0.1
"""Between two watches, so that a server that ends each at once is not hammered."""
_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
POLL_SECONDS = 0.2


class _Expired(Exception):
    """The resource version is too old; list again."""


class _ApiProblem(Exception):
    pass


@dataclass(slots=True)
class ConfigMapWatch:
    session: aiohttp.ClientSession
    api_url: str
    """https://host:port of the API server."""
    account_folder: Path
    """The pod's service account: token, ca.crt, namespace."""
    namespace: str
    name: str
    take: Take
    chance: Callable[[], float]
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the source was asked, whether it answered or not."""

    async def run(self) -> None:
        """Until cancelled."""
        version: str | None = None
        failures = watches = 0
        while True:
            try:
                if version is None:
                    version = await self._list()
                    self.heard.set()
                async for reached in self._events(version):
                    version, failures = reached, 0
                watches += 1
                if watches % _WATCHES_PER_LIST == 0:
                    version = None
                await asyncio.sleep(_BREATH_SECONDS)
                continue
            except _Expired:
                version = None
                await asyncio.sleep(_BREATH_SECONDS)
                continue
            except (_ApiProblem, aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
                failures += 1
                if failures == 1 or failures % 20 == 0:
                    log.warning("route watch: %s: %s", type(problem).__name__, problem)
                version = None  # a list after errors: a restored etcd may have gone back to lower versions
            self.heard.set()
            pause = _PAUSES_SECONDS[min(failures, len(_PAUSES_SECONDS)) - 1]
            await asyncio.sleep(pause * (0.5 + self.chance()))

    async def _list(self) -> str:
        async with self._get({}, sock_read=10.0) as response:
            document = orjson.loads(await response.read())
        items = document.get("items") or []
        await self.take(_route_text(items[0]) if items else None)
        return str(document["metadata"]["resourceVersion"])

    async def _events(self, version: str) -> AsyncIterator[str]:
        """Takes each event and yields the version it leads to."""
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with self._get(query, sock_read=float(WATCH_SECONDS + _GRACE_SECONDS)) as response:
            yield version
            async for line in _lines(response.content):
                event = orjson.loads(line)
                item = event.get("object") or {}
                if event.get("type") == "ERROR":
                    if item.get("code") == 410:
                        raise _Expired
                    raise _ApiProblem(f"the watch reports {item.get('code')}")
                if event.get("type") in ("ADDED", "MODIFIED"):
                    await self.take(_route_text(item))
                elif event.get("type") == "DELETED":
                    await self.take(None)
                yield str(item["metadata"]["resourceVersion"])

    def _get(self, query: dict[str, str], sock_read: float) -> _Checked:
        token = (self.account_folder / "token").read_text(encoding="ascii").strip()
        authority = self.account_folder / "ca.crt"
        return _Checked(
            self.session.get(
                f"{self.api_url}/api/v1/namespaces/{self.namespace}/configmaps",
                params={"fieldSelector": f"metadata.name={self.name}", **query},
                headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
                ssl=ssl.create_default_context(cafile=str(authority)) if authority.exists() else True,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=sock_read),
                allow_redirects=False,
            )
        )


@dataclass(slots=True)
class _Checked:
    """A response whose status is 200, or an error."""

    context: Any

    async def __aenter__(self) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse = await self.context.__aenter__()
        if response.status == 410:
            await self.context.__aexit__(None, None, None)
            raise _Expired
        if response.status != 200:
            await self.context.__aexit__(None, None, None)
            raise _ApiProblem(f"the API server answered {response.status}")
        return response

    async def __aexit__(self, *error: Any) -> None:
        await self.context.__aexit__(*error)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in stream.iter_any():
        rest += chunk
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > _LINE_BYTES:
            raise ValueError("an event of the watch is too long")


def _route_text(config_map: dict[str, Any]) -> str | None:
    text = (config_map.get("data") or {}).get(ROUTE_KEY)
    return text if isinstance(text, str) else None


@dataclass(slots=True)
class FileWatch:
    """Polls a file by name, so that an atomic rename and a swapped symlink are both seen."""

    path: Path
    take: Take
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until cancelled."""
        seen: tuple[int, int, int] | None = (0, 0, 0)
        while True:
            try:
                status = self.path.stat()
                mark: tuple[int, int, int] | None = (status.st_ino, status.st_mtime_ns, status.st_size)
            except OSError:
                mark = None
            if mark != seen:
                seen = mark
                await self.take(await asyncio.to_thread(_read, self.path))
            self.heard.set()
            await asyncio.sleep(POLL_SECONDS)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
    except UnicodeDecodeError:
        return ""  # refused, with a message, as any other text that is no route
