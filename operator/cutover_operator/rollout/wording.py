"""How times, spans, shares and money are said to people. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]*@")
_QUERY = re.compile(r"(?P<url>\w+://[^\s?|)\"']+)\?[^\s|)\"']*")


def span(seconds: float) -> str:
    """`42s`, `5m`, `3h12m`, `2d4h`: the two largest units, the smaller only while it tells something."""
    left = max(0, int(seconds))
    for index, (unit, size) in enumerate(_UNITS):
        if left >= size:
            text = f"{left // size}{unit}"
            rest = left % size
            if index in (0, 1) and rest >= _UNITS[index + 1][1]:
                text += f"{rest // _UNITS[index + 1][1]}{_UNITS[index + 1][0]}"
            return text
    return "0s"


def number(value: float | None) -> str:
    """Four significant digits, none after the point that say nothing."""
    return "-" if value is None else f"{value:.4g}"


def clock(at: datetime) -> str:
    """`2026-11-24 09:30:00 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def percent(share: float | None) -> str:
    """A share of 1 in percent, three significant digits."""
    return "-" if share is None else f"{100 * share:.3g} %"


def without_credentials(text: str) -> str:
    """The text with the user part and the query of every URL taken out."""
    return _QUERY.sub(r"\g<url>", _CREDENTIALS.sub("", text))


def cell(text: str, longest: int = 400) -> str:
    """Text that cannot break out of a table cell."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= longest else flat[: longest - 3].rstrip("\\") + "..."
