"""What the three processes say to each other: msgpack arrays in gRPC messages of raw bytes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

#: Tasks or results in one message.
BATCH: Final = 64
CLIENT: Final = "/probe/Client"
WORKER: Final = "/probe/Worker"

#: (run id, tasks, inputs): one input is that of every task of a chain, several are the items of a fan-out, which a reducer
#: follows.
Start = tuple[bytes, int, list[bytes]]
#: Number of the run on this server, step or item, input.
Task = tuple[int, int, bytes]
#: Number of the run, step or item, result.
Result = tuple[int, int, bytes]

#: Kinds of events in the log.
CREATED, SCHEDULED, STARTED, COMPLETED, FINISHED = range(5)
#: Event: (kind, step or item, payload).
Event = tuple[int, int, bytes]

encode: Final = msgspec.msgpack.Encoder().encode
starts: Final = msgspec.msgpack.Decoder(list[Start])
tasks: Final = msgspec.msgpack.Decoder(list[Task])
results: Final = msgspec.msgpack.Decoder(list[Result])
events: Final = msgspec.msgpack.Decoder(list[Event])
#: What the server tells the client: the runs whose start is durable, and those that have ended, with their result.
told: Final = msgspec.msgpack.Decoder(tuple[list[bytes], list[tuple[bytes, bytes]]])


def parts(entries: list[Any]) -> list[list[Any]]:
    """Cut into messages."""
    if len(entries) <= BATCH:
        return [entries]
    return [entries[first : first + BATCH] for first in range(0, len(entries), BATCH)]
