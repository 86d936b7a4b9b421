"""Pictures embedded in a request's body, taken out before the body is parsed. Pure but for the secret in its markers.

A JSON parser spends more on 200 KB of base64 than on everything around it, and makes copies. A string that begins with
`"data:image/` and holds no escape is its own JSON, so it can be cut out, and put into an arm's body, as it stands.
"""

from __future__ import annotations

import re
import secrets

_MARK = b'"cutover-picture-%b:' % secrets.token_hex(8).encode()
"""No caller knows it: written with an escape, it would not be seen in the body and still be taken for a marker."""
_START = b'"data:image/'
_HEAD = re.compile(rb'"data:image/[A-Za-z0-9.+-]{1,64};base64,')
_LEAST_BYTES = 4096
"""Smaller pictures are parsed with the rest."""


def cut_out(body: bytes) -> tuple[bytes, list[memoryview]]:
    """The body with a marker (`marker(n)`, as JSON) in place of each large embedded picture, and their data URLs.

    If the body is JSON, so is the rest, and the other way round but for what stands inside the URLs: whoever decodes
    them finds that they are base64 or refuses them. Nothing is cut where the rest would not tell markers from text.
    The URLs are views of the body: a picture is not copied to be sent on.
    """
    if len(body) < _LEAST_BYTES:
        return body, []
    rest: list[bytes] = []
    urls: list[memoryview] = []
    whole = memoryview(body)
    at = begun = 0
    while (start := body.find(_START, at)) >= 0:
        end = body.find(b'"', start + 1)
        # In JSON, a quote with a backslash before it is inside a string.
        if end - start < _LEAST_BYTES or body[start - 1 : start] == b"\\" or not _HEAD.match(body, start):
            at = start + len(_START)
            continue
        if body.find(b"\\", start, end) >= 0:
            at = start + len(_START)
            continue
        rest += (body[begun:start], b'%b%d"' % (_MARK, len(urls)))
        urls.append(whole[start + 1 : end])
        at = begun = end + 1
    rest.append(body[begun:])
    told = b"".join(rest)
    return (told, urls) if told.count(_MARK) == len(urls) else (body, [])


def marker(number: int) -> str:
    """What stands in the parsed rest for the picture with this number, from 0."""
    return f"{_MARK[1:].decode()}{number}"
