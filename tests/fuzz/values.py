"""Random messages of any type of ours: edges, nonsense, and words that mean something to the orchestrator."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

#: Begins the names of what no input may speak of, since it must go on.
CANARY: Final = "canary"
WORKFLOWS: Final = ("fuzz-a", "fuzz-b")
#: Ids of runs, tasks, workers: few, so that calls meet each other's.
IDS: Final = ("00000000-0000-4000-8000-000000000001", "01a22e19-e977-7063-bdbd-5f9389f6c536")
#: What calls speak of. A workflow or a worker of the canary's is not among them.
WORDS: Final = (
    *WORKFLOWS, *IDS, "default", "fuzz-worker", "fuzz-queue", "fuzz.topic", "fuzz-group", "effect", "compute", "reducer",
    "orchestrator", "completed", "running", "paused", "round_robin", "work", "node", "INVALID", "0", "1", "true", "*", "fuzz.*",
)  # fmt: skip
NONSENSE: Final = ("", " ", "\x00", "\n", "a/b", "../..", "%s%n", "'; DROP TABLE runs; --", "ﷺ" * 40, "\U0001f4a5", "x" * 5000, "{}", "-1", "nan")  # fmt: skip
DEFINITIONS: Final = (
    {"workflow_type": "fuzz-a", "tasks": [{"name": "work", "role": "effect"}]},
    {"workflow_type": "fuzz-b", "version": 2, "tasks": [
        {"name": "list", "role": "compute"},
        {"name": "each", "role": "compute", "depends_on": ["list"], "map": "tasks.list", "max_parallel": 2},
        {"name": "all", "role": "reducer", "depends_on": ["each"], "input": {"items": "tasks.each"}, "when": "input.x > `1`"},
    ]},
)  # fmt: skip
#: What a field of that name would hold in a call that means something.
_LIKELY: Final[dict[str, tuple[str, ...]]] = {
    "namespace": ("", "default"), "workflow_type": WORKFLOWS, "instance_id": IDS, "request_id": ("", *IDS), "task_id": IDS,
    "event_id": IDS, "worker_id": ("fuzz-worker",), "node_id": ("fuzz-worker",), "topic": ("fuzz.topic",),
    "group": ("fuzz-group",), "name": ("fuzz-queue", "work", "fuzz-a"), "encoding": ("",), "page_token": ("",),
    "namespace_id": ("",), "correlation_id": ("", *IDS), "causation_id": ("", *IDS), "queue": ("fuzz-queue",),
    "role": ("effect", "compute", "reducer"), "capability": ("",), "type": ("fuzz.happened",), "incarnation": ("",),
}  # fmt: skip
_IS_LIKELY: Final = 0.75
_PLAIN: Final[tuple[Any, ...]] = (None, True, 0, -1, 1.5, 2**63, 1e308, "", "input", [], {}, [[]], {"": 0})
_LARGEST: Final = 1 << 21  #: bytes, seldom
_DEEPEST: Final = 4
_REMEMBERED: Final = 50  #: messages of a type
_SAID_AGAIN: Final = 0.4
_FLOATS: Final = (0.0, -1.0, 0.5, 1e-9, 1e18, 1e308, float("inf"), float("nan"))


def _whole(bits: int, lowest: int) -> tuple[int, ...]:
    highest = (1 << bits) - 1 + lowest
    return tuple(number for number in (0, 0, 1, 1, 2, 3, 10, 1000, -1, lowest, highest) if lowest <= number <= highest)


_NUMBERS: Final[dict[int, tuple[int, ...]]] = {
    FieldDescriptor.CPPTYPE_INT32: _whole(32, -(1 << 31)),
    FieldDescriptor.CPPTYPE_INT64: _whole(64, -(1 << 63)),
    FieldDescriptor.CPPTYPE_UINT32: _whole(32, 0),
    FieldDescriptor.CPPTYPE_UINT64: _whole(64, 0),
}


class Maker:
    """Everything is drawn from one generator: the same seed, the same input."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        #: What was heard of each type of message: it is said again, as it was or as another's part.
        self._heard: dict[str, list[Message]] = {}

    def hear(self, message: Message) -> None:
        """Remember an answer with all of its parts, but nothing of the canary's."""
        if CANARY not in str(message):
            heard = self._heard.setdefault(message.DESCRIPTOR.full_name, [])
            if len(heard) >= _REMEMBERED:
                heard.pop(self.chance.randrange(_REMEMBERED))
            heard.append(message)
        for field, value in message.ListFields():
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                for part in value if field.is_repeated else (value,):
                    self.hear(part)

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """One of that type. Some fields are set, none is promised."""
        if (heard := self._heard.get(kind.full_name)) and self.chance.random() < _SAID_AGAIN:
            return self.chance.choice(heard)
        made = GetMessageClass(kind)()
        often = self.chance.choice((0.3, 0.7, 0.95))
        for field in kind.fields:
            if self.chance.random() < often and depth < _DEEPEST:
                self._fill(made, field, depth)
        return made

    def damaged(self, data: bytes) -> bytes:
        """Some bytes changed, cut, doubled or put in."""
        made = bytearray(data)
        for _ in range(self.chance.randint(1, 4)):
            at = self.chance.randint(0, len(made))
            cut, put = self.chance.choice(
                (
                    (1, self.chance.randbytes(1)),
                    (self.chance.randint(1, 8), b""),
                    (0, bytes(made[at : at + 16])),
                    (0, self.chance.randbytes(4)),
                )
            )
            made[at : at + cut] = put
        return bytes(made)

    def definition(self) -> Any:
        """A definition, as it is or with something in it replaced, taken away or put in."""
        made = deepcopy(self.chance.choice(DEFINITIONS))
        for _ in range(self.chance.choice((0, 0, 1, 1, 2, 5))):
            self._replace_in(made)
        return made

    def text(self) -> str:
        return self.chance.choice(WORDS if self.chance.random() < 0.8 else NONSENSE)

    def data(self) -> bytes:
        """Payloads: JSON, what looks like it, and anything."""
        draw = self.chance.random()
        if draw < 0.3:
            return json.dumps(self.definition()).encode()
        if draw < 0.6:
            return json.dumps(self.chance.choice(_PLAIN)).encode()
        if draw < 0.8:
            return b"5"
        if draw < 0.995:
            return self.chance.choice(
                (b"", b"{", b"[" * 2000, b'"\\ud800"', b"1e999", b"\xff", self.chance.randbytes(20))
            )
        return bytes(_LARGEST)

    def _replace_in(self, made: Any) -> None:
        keys: list[Any] = list(made) if isinstance(made, dict) else list(range(len(made)))
        if not keys:
            return
        key = self.chance.choice(keys)
        if isinstance(made[key], dict | list) and self.chance.random() < 0.6:
            self._replace_in(made[key])
            return
        draw = self.chance.random()
        if draw < 0.6:
            made[key] = deepcopy(self.chance.choice((*_PLAIN, self.text(), self.text())))
        elif draw < 0.8:
            del made[key]
        elif isinstance(made, dict):
            made[self.text()] = deepcopy(self.chance.choice(_PLAIN))
        else:
            made.append(deepcopy(made[key]))

    def _fill(self, made: Message, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(self.chance.randint(0, 3)):
                self._put(getattr(made, field.name), field.message_type, depth)
        elif field.is_repeated:
            for _ in range(self.chance.choice((0, 1, 1, 2, 5))):
                if field.message_type is not None:
                    getattr(made, field.name).add().CopyFrom(self.message(field.message_type, depth + 1))
                else:
                    getattr(made, field.name).append(self._scalar(field))
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(self.message(field.message_type, depth + 1))
        else:
            setattr(made, field.name, self._scalar(field))

    def _put(self, mapped: Any, entry: Descriptor, depth: int) -> None:
        key = self._scalar(entry.fields_by_name["key"])
        value = entry.fields_by_name["value"]
        if value.message_type is not None:
            mapped[key].CopyFrom(self.message(value.message_type, depth + 1))
        else:
            mapped[key] = self._scalar(value)

    def _scalar(self, field: FieldDescriptor) -> Any:
        kind = field.cpp_type
        if field.name in _LIKELY and kind == FieldDescriptor.CPPTYPE_STRING and self.chance.random() < _IS_LIKELY:
            return self.chance.choice(_LIKELY[field.name])
        if kind in _NUMBERS:
            return self.chance.choice(_NUMBERS[kind])
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            known = field.enum_type.values_by_number if field.enum_type is not None else ()
            return self.chance.choice((*known, 99))
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self.chance.random() < 0.5
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return self.chance.choice(_FLOATS)
        return self.data() if field.type == FieldDescriptor.TYPE_BYTES else self.text()
