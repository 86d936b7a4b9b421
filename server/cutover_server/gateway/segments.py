"""How records and their pictures stand in a segment file. Pure.

A record is a line: eight hexadecimal digits of CRC-32, a space, the payload without line breaks, a line break. A picture
is a line that tells its digest and length, with a checksum of its own, then the bytes, then a line break; its digest is
the checksum of the bytes, and whoever takes them compares. The end of a file may be torn by a crash: it was never
acknowledged and is dropped. Any other line that does not match its checksum is damage and is handed back as it stands;
reading goes on at the next line that does.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from mmap import mmap

_PICTURE = b"P"


@dataclass(frozen=True, slots=True)
class SegmentContent:
    payloads: tuple[bytes, ...]
    damaged: tuple[bytes, ...]
    torn: bool
    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where each picture's bytes stand: offset and length, by digest."""


def frame(payload: bytes) -> bytes:
    if b"\n" in payload:
        raise ValueError("payload: a line break would tear the line")
    return b"%08x %s\n" % (binascii.crc32(payload), payload)


def frame_picture(digest: str, body: bytes) -> tuple[bytes, bytes, bytes]:
    """In parts, so that the picture is not copied."""
    told = b"%s %d" % (digest.encode("ascii"), len(body))
    return b"%s%08x %s\n" % (_PICTURE, binascii.crc32(told), told), body, b"\n"


def read_segment(data: bytes | mmap) -> SegmentContent:
    payloads: list[bytes] = []
    damaged: list[bytes] = []
    pictures: dict[str, tuple[int, int]] = {}
    at, lost = 0, False
    while at < len(data):
        end = data.find(b"\n", at)
        if end < 0:
            break
        line = data[at:end]
        head = _picture_head(line)
        if head is not None:
            digest, length = head
            if end + length + 2 > len(data):
                break
            pictures[digest] = (end + 1, length)
            at, lost = end + length + 2, False
            continue
        payload = line[9:]
        if line[:9] == b"%08x " % binascii.crc32(payload):
            payloads.append(payload)
            lost = False
        elif not lost:
            damaged.append(line)
            # What follows a picture's damaged head are its bytes, not lines.
            lost = line[:1] == _PICTURE
        at = end + 1
    return SegmentContent(tuple(payloads), tuple(damaged), at < len(data), pictures)


def _picture_head(line: bytes) -> tuple[str, int] | None:
    if line[:1] != _PICTURE or line[1:10] != b"%08x " % binascii.crc32(line[10:]):
        return None
    digest, _, length = line[10:].partition(b" ")
    return digest.decode("ascii"), int(length)
