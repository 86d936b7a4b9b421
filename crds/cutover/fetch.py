"""The guarded fetcher: opens URLs that users gave, and nothing inside the cluster.

Promises: http and https only; no user name or password in the URL; every address a name resolves to must be public,
and the connection goes to exactly the addresses that were checked (resolved once, no second look-up to poison); each
redirect is checked like a first URL; bytes, time and redirects are bounded; headers that carry a secret reach only the
origin that was named for them. Origins in `allowed_origins` (a deployment's own services) may be private.

`FetchRefused` is final: the same URL is refused again. `FetchFailed` may be tried again. Neither message holds the
query of a URL, where signatures live.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

MAX_URL_CHARACTERS = 8192
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAY_PASS = frozenset({408, 425, 429})
"""Refusals of a server that another time may lift; every other 4xx is final."""

_IPV6_GLOBAL = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT; holds a cloud's metadata service too
        "168.63.129.16/32",  # a cloud's host agent behind a public-looking address
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "2001::/23",  # Teredo and other protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4 carries any IPv4 address
        "3fff::/20",
    )
)


class FetchRefused(ValueError):
    """The URL or what it answered breaks the policy. Never retried."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{_shown(url)}: {reason}")
        self.url = _shown(url)
        self.reason = reason


class FetchFailed(RuntimeError):
    """The server or the way to it failed. Another try may succeed."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{_shown(url)}: {reason}")
        self.url = _shown(url)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched."""

    allowed_origins: tuple[str, ...] = ()
    """`scheme://host[:port]` of services that may be private and that get `headers`."""
    allowed_hosts: tuple[str, ...] | None = None
    """Host names, or `*.example.org` for every name below; None means any public host, empty none at all."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent to `allowed_origins` only, and dropped once a redirect changes the origin."""
    max_bytes: int = 10_000_000
    timeout_seconds: float = 20.0
    """For the whole fetch, redirects included."""
    max_redirects: int = 3


@dataclass(frozen=True, slots=True)
class Fetched:
    body: bytes
    content_type: str
    """Media type in lower case without parameters; empty when the server names none."""
    url: str
    """Where the body came from, after redirects."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet's, with no other address hidden inside it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _IPV6_GLOBAL:
        return False  # also mapped, compatible and NAT64 forms, link-local and unique local
    if any(ip in network for network in _NOT_PUBLIC if network.version == ip.version):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def fetch_bytes(url: str, policy: FetchPolicy, session: aiohttp.ClientSession | None = None) -> Fetched:
    """The body behind a URL. A session, if given, must come from `guarded_session(policy)`."""
    if session is None:
        async with guarded_session(policy) as own:
            return await fetch_bytes(url, policy, own)
    connector = session.connector
    if not isinstance(connector, _GuardedConnector) or connector.policy != policy:
        raise TypeError("fetch_bytes: session must come from guarded_session() with the same policy")
    try:
        async with asyncio.timeout(policy.timeout_seconds):
            return await _follow(url, policy, session)
    except TimeoutError as error:
        raise FetchFailed(url, f"no complete answer within {policy.timeout_seconds:g} s") from error


@asynccontextmanager
async def guarded_session(policy: FetchPolicy, limit: int = 16) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that many fetches of one policy share; it keeps connections, never cookies."""
    async with aiohttp.ClientSession(
        connector=_GuardedConnector(policy, limit),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=False,
    ) as session:
        yield session


@asynccontextmanager
async def open_stream(
    url: str,
    policy: FetchPolicy,
    session: aiohttp.ClientSession,
    headers: Mapping[str, str],
    silence_seconds: float = 60.0,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer of the service behind a URL, unread, whatever its status; `headers` are sent to it.

    Checked like any URL and never redirected; it fails when nothing arrives for `silence_seconds`, bounding size and
    the whole time is the caller's. `session` must come from `guarded_session(policy)`.
    """
    target = _checked(url, policy)
    patience = aiohttp.ClientTimeout(total=None, sock_connect=silence_seconds, sock_read=silence_seconds)
    try:
        async with session.get(
            target, headers=dict(headers), allow_redirects=False, timeout=patience
        ) as response:
            yield response
    except _Unsafe as error:
        raise FetchRefused(url, str(error)) from error
    except ssl.SSLError as error:
        raise FetchFailed(url, f"TLS: {error.reason or error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise FetchFailed(url, f"{type(error).__name__}: {_cause(error)}") from error


def read_data_url(url: str, max_bytes: int = 10_000_000) -> Fetched:
    """The bytes of a `data:` URL (RFC 2397). Raises `FetchRefused` with the reason."""
    shown = url[:40]
    if url[:5].lower() != "data:":
        raise FetchRefused(shown, "not a data: URL")
    head, comma, payload = url[5:].partition(",")
    if not comma or len(head) > 256:
        raise FetchRefused(shown, "a data: URL needs a comma between its media type and its data")
    media_type, *parameters = head.split(";")
    encoded = bool(parameters) and parameters[-1].strip().lower() == "base64"
    # Three characters of base64 or of percent encoding give at most 3 and 1 bytes: bounded before anything is copied.
    if len(payload) > 4 * max_bytes + 16:
        raise FetchRefused(shown, f"more than {max_bytes} bytes")
    try:
        raw = unquote_to_bytes(payload) if "%" in payload else payload.encode("ascii")
        body = base64.b64decode(raw, validate=True) if encoded else raw
    except UnicodeEncodeError as error:
        raise FetchRefused(shown, "the data holds characters outside ASCII") from error
    except binascii.Error as error:
        raise FetchRefused(shown, f"the data is not base64: {error}") from error
    if len(body) > max_bytes:
        raise FetchRefused(shown, f"more than {max_bytes} bytes")
    kind = media_type.strip().lower() or "text/plain"
    return Fetched(body=body, content_type=kind, url=f"data:{kind}")


# ------------------------------------------------------------------ the guard


class _Unsafe(Exception):
    """Raised inside the connector, where the URL is not known; not an OSError, which aiohttp would wrap."""


class _GuardedResolver(AbstractResolver):
    """Resolves a name once and hands on addresses only if every one of them is public."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._private_allowed = {
            (origin.raw_host, origin.port) for origin in map(_origin_of, policy.allowed_origins)
        }

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = await asyncio.get_running_loop().getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM
        )
        found = list(dict.fromkeys((answer[0], str(answer[4][0])) for answer in answers))
        if (host, port) not in self._private_allowed:
            for _, address in found:
                if not is_public(address):
                    raise _Unsafe(f"{host} resolves to {address}, which is not a public address")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, address in found
        ]

    async def close(self) -> None:
        return None


class _GuardedConnector(aiohttp.TCPConnector):
    def __init__(self, policy: FetchPolicy, limit: int) -> None:
        # No DNS cache: a connection is opened to what was checked for it, and to nothing else.
        super().__init__(resolver=_GuardedResolver(policy), use_dns_cache=False, limit=limit)
        self.policy = policy


async def _follow(url: str, policy: FetchPolicy, session: aiohttp.ClientSession) -> Fetched:
    current = _checked(url, policy)
    first_origin = current.origin()
    allowed = {_origin_of(origin) for origin in policy.allowed_origins}
    for _ in range(policy.max_redirects + 1):
        trusted = current.origin() in allowed and current.origin() == first_origin
        headers = {"Accept-Encoding": "identity", **(policy.headers if trusted else {})}
        try:
            async with session.get(current, headers=headers, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await _read(response, current, policy)
                location = response.headers.get("Location", "")
        except _Unsafe as error:
            raise FetchRefused(str(current), str(error)) from error
        except ssl.SSLError as error:
            raise FetchFailed(str(current), f"TLS: {error.reason or error}") from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise FetchFailed(str(current), f"{type(error).__name__}: {_cause(error)}") from error
        current = _redirected(current, location, policy)
    raise FetchRefused(url, f"more than {policy.max_redirects} redirects")


async def _read(response: aiohttp.ClientResponse, url: URL, policy: FetchPolicy) -> Fetched:
    if response.status >= 500 or response.status in _MAY_PASS:
        raise FetchFailed(str(url), f"the server answered {response.status}")
    if response.status != 200:
        raise FetchRefused(str(url), f"the server answered {response.status}")
    too_large = FetchRefused(str(url), f"more than {policy.max_bytes} bytes")
    if response.content_length is not None and response.content_length > policy.max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > policy.max_bytes:
            raise too_large
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return Fetched(body=bytes(body), content_type=kind, url=str(url))


def _redirected(current: URL, location: str, policy: FetchPolicy) -> URL:
    if not location:
        raise FetchRefused(str(current), "a redirect without a Location")
    _check_characters(location)
    try:
        target = current.join(URL(location, encoded=True))
    except ValueError as error:
        raise FetchRefused(location, f"not a URL: {error}") from error
    checked = _checked(str(target), policy)
    if current.scheme == "https" and checked.scheme != "https":
        raise FetchRefused(str(current), "redirects from https to http")
    return checked


def _checked(url: str, policy: FetchPolicy) -> URL:
    """The parsed URL, which is also the one connected to: one parser, no second opinion."""
    _check_characters(url)
    try:
        parsed = URL(url, encoded=url.isascii())  # as it stands: a signed URL survives no second quoting
        host, port = parsed.raw_host, parsed.port
    except ValueError as error:
        raise FetchRefused(url, f"not a URL: {error}") from error
    if parsed.scheme not in ("http", "https"):
        raise FetchRefused(url, f"scheme {parsed.scheme!r}; use http or https")
    if parsed.raw_user is not None or parsed.raw_password is not None or "@" in parsed.raw_authority:
        raise FetchRefused(url, "a user name or password in the URL")
    if not host or port is None or port == 0:
        raise FetchRefused(url, "no host or port")
    if parsed.origin() in {_origin_of(origin) for origin in policy.allowed_origins}:
        return parsed
    _check_host(url, host, policy)
    return parsed


def _check_host(url: str, host: str, policy: FetchPolicy) -> None:
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        raise FetchRefused(url, "localhost is not a public host")
    if "%" in name:
        raise FetchRefused(url, "a zone or an escape in the host")
    if policy.allowed_hosts is not None and not any(
        _matches(name, pattern) for pattern in policy.allowed_hosts
    ):
        raise FetchRefused(url, f"host {name} is not one of the allowed hosts")
    try:
        literal = str(ipaddress.ip_address(name))
    except ValueError:
        last_label = name.rpartition(".")[2]
        # 2130706433, 0x7f000001, 127.1, 0177.0.0.1: readers disagree on what they mean, so nobody gets to guess.
        if last_label.isdigit() or last_label.startswith("0x") or ":" in name:
            raise FetchRefused(url, "an IP address in an unusual form") from None
        return
    if not is_public(literal):
        raise FetchRefused(url, f"{literal} is not a public address")


def _matches(name: str, pattern: str) -> bool:
    wanted = pattern.rstrip(".").lower()
    if wanted.startswith("*."):
        return name.endswith(wanted[1:]) and len(name) > len(wanted) - 1
    return name == wanted


def _check_characters(url: str) -> None:
    if len(url) > MAX_URL_CHARACTERS:
        raise FetchRefused(url[:80], f"longer than {MAX_URL_CHARACTERS} characters")
    if "\\" in url or any(character <= " " or character == "\x7f" for character in url):
        raise FetchRefused(url, "a space, control character or backslash in the URL")


def _origin_of(text: str) -> URL:
    try:
        origin = URL(text).origin()
    except ValueError as error:
        raise ValueError(f"allowed_origins: {text!r} is not scheme://host[:port]: {error}") from error
    if origin.scheme not in ("http", "https") or not origin.raw_host:
        raise ValueError(f"allowed_origins: {text!r} is not scheme://host[:port]")
    return origin


def _shown(url: str) -> str:
    """A URL fit for a log line: no query, no fragment, no credentials."""
    bare = url.partition("?")[0].partition("#")[0]
    scheme, separator, rest = bare.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        bare = f"{scheme}://{rest.partition('@')[2]}"
    return repr(bare[:200])[1:-1]


def _cause(error: BaseException) -> str:
    """What happened, without the URL that aiohttp puts into some messages."""
    inner = getattr(error, "os_error", None)
    if inner is not None:
        return str(inner)
    return error.strerror or "" if isinstance(error, OSError) else ""
