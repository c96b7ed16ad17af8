"""Ids that a client mints: UUIDv7 text, so that an orchestrator can tell an old request from a new one by its id."""

from __future__ import annotations

import time
from random import SystemRandom
from typing import Final
from uuid import UUID

from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import derived_uuid

_random: Final = SystemRandom()
#: The middle of every id of this process: version, 12 bits, variant, 14 bits, 16 bits, drawn once. Drawing them from the
#: system for each call would cost more than the call.
_MIDDLE: Final = f"-7{_random.getrandbits(12):03x}-{0x8000 | _random.getrandbits(14):04x}-{_random.getrandbits(16):04x}"
_counter = _random.getrandbits(32)


def new_request_id() -> str:
    """A new UUIDv7 as text: the time, this process, a counter."""
    global _counter  # noqa: PLW0603 - one counter a process is what makes the ids unique
    _counter = (_counter + 1) & 0xFFFFFFFF
    milliseconds = time.time_ns() // 1_000_000
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}{_MIDDLE}{_counter:08x}"


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
