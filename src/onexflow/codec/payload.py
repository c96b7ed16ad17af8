"""Payloads as JSON: values in and out, contracts for handlers, typed contracts.

What has no JSON form (NaN, infinities, lone surrogates, objects of unknown classes) is refused with its place, rather
than changed on the way. Integers have no bounds. Dataclasses, msgspec structs, enums, UUIDs, dates and decimals are
encoded the way msgspec does, pydantic models the way they say; decoding gives plain values unless a type is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from onexflow.core.errors import Coded, InvalidArgument
from onexflow.core.payload import JSON, Payload

T = TypeVar("T")

#: What msgspec raises for bytes that it cannot decode: of text that is no UTF-8, and of a nesting that is too deep, it raises
#: Python's own errors, which are none of its own.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_AT: Final = re.compile(r"(?P<reason>.*?)(?: - at `(?P<place>.*)`)?", re.DOTALL)
_DEPTH_NAMED: Final = 50


class Contract(dict[str, Any]):
    """A JSON object whose fields are attributes as well: `contract.order_id` is `contract["order_id"]`.

    It is a dict in every other way. So a field that is called like a method of dict (`items`, `keys`, `values`, `get`,
    `pop`, `copy`, `update`, `clear`) is reached as `contract["items"]` only.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(self._missing(name), name=name, obj=self) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(self._missing(name), name=name, obj=self) from None

    def _missing(self, name: str) -> str:
        fields = ", ".join(list(self)[:30]) or "none"
        return f"the contract has no field {name!r}; it has: {fields}"


_NESTED: Final = frozenset({dict, list})


def to_contract(value: Any) -> Any:
    """`value` with every object in it, also inside lists, as a Contract. `value` itself is not changed."""
    if type(value) is dict and _NESTED.isdisjoint(map(type, value.values())):
        return Contract(value)
    root = [value]
    boxes: list[Any] = [root]
    while boxes:
        box = boxes.pop()
        places: Iterable[tuple[Any, Any]] = box.items() if isinstance(box, dict) else enumerate(box)
        for place, inner in places:
            kind = type(inner)
            if kind is dict or kind is list:
                box[place] = copy = Contract(inner) if kind is dict else inner.copy()
                boxes.append(copy)
    return root[0]


class JsonCodec:
    """`core.payload.PayloadCodec` for JSON."""

    def decode(self, payload: Payload) -> Any:
        """The value of `payload`. Raises InvalidArgument when it is not JSON."""
        if payload.encoding != JSON:
            raise InvalidArgument(_encoded(payload))
        try:
            return msgspec.json.decode(payload.data)
        except (*UNREADABLE, ValueError) as error:
            raise InvalidArgument(_unreadable(error)) from error

    def encode(self, value: Any) -> Payload:
        """A payload of `value`. Raises InvalidArgument, with the place as `field`, when it has no JSON form."""
        try:
            data = _encode(value)
        except (TypeError, UnicodeError, OverflowError, ValueError, RecursionError) as error:
            place = "$" if isinstance(error, RecursionError) else _place(value, _fails)
            raise InvalidArgument(f"{place}: {_unwritable(error)}", field=place) from error
        # msgspec writes NaN and infinities as null, so only a text with a null in it can hide one. (`find` takes half of
        # the time that `in` does.)
        if data.find(b"null") >= 0 and _has_nonfinite(plain := msgspec.to_builtins(value, enc_hook=_plain)):
            place = _place(plain, _has_nonfinite)
            raise InvalidArgument(f"{place}: JSON has no NaN and no infinity", field=place)
        return Payload(data)


def _plain(value: Any) -> Any:
    """What msgspec does not know: pydantic models, which need not be installed."""
    if hasattr(type(value), "__pydantic_serializer__"):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | frozenset):  # msgspec knows them, so this one is a key
        raise TypeError("Only dicts with str-like or number-like keys are supported")
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_encode: Final = msgspec.json.Encoder(enc_hook=_plain).encode

#: The codec of everybody: it has no state.
CODEC: Final = JsonCodec()


def told(payload: Payload) -> Any:
    """The JSON value of a payload; of one that is no JSON, what can be said about it."""
    try:
        return decode_value(payload)
    except Coded:
        return {"encoding": payload.encoding, "bytes": len(payload.data)}


def encode_value(value: Any) -> Payload:
    """A JSON payload of `value`; a Payload goes through as it is. Raises InvalidArgument."""
    return value if isinstance(value, Payload) else CODEC.encode(value)


def decode_value(payload: Payload) -> Any:
    """The plain value of a JSON payload. Raises InvalidArgument."""
    return CODEC.decode(payload)


def convert(payload: Payload, type_: type[T]) -> T:
    """The value of a JSON payload as a dataclass, a msgspec struct, a TypedDict or any type that msgspec knows.

    Raises InvalidArgument with the path (`$.items[2].price`) of the first wrong field as `field`.
    """
    if payload.encoding != JSON:
        raise InvalidArgument(_encoded(payload))
    wanted: Any = type_
    try:
        value: T = _decoder(wanted).decode(payload.data)
    except msgspec.ValidationError as error:
        found = _AT.fullmatch(str(error))
        place = (found and found["place"]) or "$"
        reason = found["reason"] if found else str(error)
        raise InvalidArgument(f"{place}: {reason[:1].lower()}{reason[1:]}", field=place) from error
    except (*UNREADABLE, ValueError) as error:
        raise InvalidArgument(_unreadable(error)) from error
    return value


@lru_cache(maxsize=1024)
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)


def _encoded(payload: Payload) -> str:
    return f"the payload is encoded as {payload.encoding!r}, not as JSON"


def _unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"the JSON is not UTF-8: {error.reason}"
    return f"not JSON: {error}"


def _unwritable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the value is nested too deeply, or contains itself"
    if isinstance(error, UnicodeError):
        return "the text has a lone surrogate, which UTF-8 cannot express"
    return str(error)


# ---- finding the culprit: only when something was refused


def _place(value: Any, bad: Callable[[Any], bool]) -> str:
    place = "$"
    for _ in range(_DEPTH_NAMED):
        for step, inner in _children(value):
            if bad(inner):
                place, value = place + step, inner
                break
        else:
            break
    return place


def _children(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return [
            (f".{_printable(key)}" if isinstance(key, str) else f"[{key!r}]", inner) for key, inner in value.items()
        ]
    if isinstance(value, list | tuple):
        return [(f"[{index}]", inner) for index, inner in enumerate(value)]
    fields = getattr(value, "__struct_fields__", None) or getattr(value, "__dataclass_fields__", None) or ()
    if isinstance(value, type):
        return []
    return [(f".{name}", getattr(value, name)) for name in fields if hasattr(value, name)]


def _printable(key: str) -> str:
    return key.encode(errors="replace").decode()


def _fails(value: Any) -> bool:
    try:
        _encode(value)
    except (TypeError, UnicodeError, OverflowError, ValueError, RecursionError):
        return True
    return False


def _has_nonfinite(value: Any) -> bool:
    boxes = [value]
    while boxes:
        one = boxes.pop()
        if isinstance(one, float):
            if not math.isfinite(one):
                return True
        elif isinstance(one, dict):
            boxes.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            boxes.extend(one)
    return False
