"""Ids that a client mints: UUIDv7 text, so that an orchestrator can tell an old request from a new one by its id."""

from __future__ import annotations

import time
from random import SystemRandom
from typing import Final
from uuid import UUID

from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import derived_uuid

_random: Final = SystemRandom()
#: High bits drawn once a process: drawing all 74 from the system for each call would cost more than the call.
_salt = _random.getrandbits(40)
_counter = _random.getrandbits(20)


def new_request_id() -> str:
    """A new UUIDv7 as text."""
    global _counter  # noqa: PLW0603 - one counter a process is what makes the ids unique
    _counter += 1
    low = (_salt << 22) | (_counter & 0x3FFFFF)
    milliseconds = time.time_ns() // 1_000_000
    middle = (_counter >> 22) & 0xFFF
    text = f"{milliseconds:012x}7{middle:03x}{0x8000000000000000 | low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def instance_uuid(value: UUID | str) -> UUID:
    """The UUID of a run's id. Text that is no UUID gets one derived from it: the same everywhere and for ever."""
    if isinstance(value, UUID):
        return value
    if not value or len(value) > 255:
        raise InvalidArgument("instance_id: 1 to 255 characters are needed", field="instance_id")
    try:
        return UUID(value)
    except ValueError:
        return derived_uuid(value)
