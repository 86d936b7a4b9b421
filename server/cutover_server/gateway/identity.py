"""Request ids: UUIDv7 (RFC 9562), so that ids sort by time. Pure: the time and the chance are arguments."""

from __future__ import annotations


def uuid7(unix_milliseconds: int, chance: bytes) -> str:
    """The id for an instant and ten random bytes."""
    if len(chance) != 10:
        raise ValueError(f"chance: ten bytes are needed, got {len(chance)}")
    value = (unix_milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(chance, "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    told = f"{value:032x}"
    return f"{told[:8]}-{told[8:12]}-{told[12:16]}-{told[16:20]}-{told[20:]}"
