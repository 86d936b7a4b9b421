"""How records stand in a segment file: one line each, with a checksum. Pure.

A line is eight hexadecimal digits of CRC-32, a space, the payload without line breaks, a line break. The last line of a
file may be torn by a crash: it was never acknowledged and is dropped. Any other line that does not match its checksum
is damage and is handed back as it stands.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SegmentContent:
    payloads: tuple[bytes, ...]
    damaged: tuple[bytes, ...]
    torn: bool


def frame(payload: bytes) -> bytes:
    if b"\n" in payload:
        raise ValueError("payload: a line break would tear the line")
    return b"%08x %s\n" % (binascii.crc32(payload), payload)


def read_segment(data: bytes) -> SegmentContent:
    lines = data.split(b"\n")
    tail = lines.pop()
    payloads, damaged = [], []
    for line in lines:
        payload = line[9:]
        if line[:9] == b"%08x " % binascii.crc32(payload):
            payloads.append(payload)
        else:
            damaged.append(line)
    return SegmentContent(tuple(payloads), tuple(damaged), bool(tail))
