"""Values as JSON for people and programs outside: what `-o json` prints, and what leaves through the bridge."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from onexflow.codec.payload import decode_value
from onexflow.core.ids import RunKey
from onexflow.core.payload import JSON, Payload


def plain(value: Any) -> Any:
    """`value` as JSON shows it: the names of its fields, times as RFC 3339 (null when not yet), payloads decoded, a
    run's key as three fields."""
    if isinstance(value, Payload):
        return payload(value)
    if isinstance(value, RunKey):
        return {
            "namespace": value.namespace,
            "workflow_type": value.workflow_type,
            "instance_id": str(value.instance_id),
        }
    if isinstance(value, msgspec.Struct):
        shown: dict[str, Any] = {}
        for name in value.__struct_fields__:
            part = getattr(value, name)
            if isinstance(part, RunKey):
                shown.update(plain(part))
            elif name.endswith("_at") or name == "timestamp":
                shown[name] = rfc3339(part)
            else:
                shown[name] = plain(part)
        return shown
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, UUID) else value


def payload(value: Payload) -> Any:
    """What a payload holds; of an encoding that is not JSON, its bytes."""
    if value.encoding == JSON:
        return decode_value(value)
    return {"encoding": value.encoding, "base64": base64.b64encode(value.data).decode()}


def rfc3339(nanoseconds: int) -> str | None:
    if not nanoseconds:
        return None
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
