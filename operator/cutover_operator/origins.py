"""Which URLs of a spec may be opened: compared by origin and path segments, never by the start of a string.

`http://assessments:8080` allows that scheme, host and port alone: not `http://assessments:8080.evil.org`, not
`http://assessments:8080@evil.org`. A path in an allowed URL allows that folder and what is below it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}


@lru_cache(maxsize=1024)
def origin_of(url: str) -> str | None:
    """`scheme://host:port`, the port always there; None for what is no plain http(s) URL or carries credentials."""
    if "\\" in url or any(character.isspace() or ord(character) < 32 for character in url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    host = parts.hostname.rstrip(".")
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{port if port is not None else DEFAULT_PORTS[parts.scheme]}"


def is_allowed(url: str, allowed: Iterable[str]) -> bool:
    """Whether one of the allowed URLs covers `url`."""
    origin = origin_of(url)
    if origin is None:
        return False
    segments = _segments(url)
    if segments is None:
        return False
    for prefix in allowed:
        wanted = _segments(prefix)
        if origin_of(prefix) == origin and wanted is not None and segments[: len(wanted)] == wanted:
            return True
    return False


def _segments(url: str) -> list[str] | None:
    """None when the path climbs: what a server makes of `..` is not ours to guess."""
    path = unquote(urlsplit(url).path)
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    return None if ".." in segments or "\\" in path else segments
