"""What a handler gets and what becomes of its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from onexflow.codec.payload import JsonCodec
from onexflow.core.payload import Payload
from onexflow.worker import Worker
from onexflow.worker.contracts import dumper_for, loader_for
from onexflow.worker.errors import ContractError
from onexflow.worker.handlers import Handler


@dataclass
class Line:
    sku: str
    count: int


class Order(msgspec.Struct):
    lines: list[Line]


def handler(function: Any) -> Handler:
    worker = Worker("w")
    worker.effect("h")(function)
    return worker.handlers[0]


def load(function: Any, text: str) -> Any:
    return loader_for(handler(function), JsonCodec())(Payload(text.encode()))


def dump(value: Any) -> Payload:
    return dumper_for(handler(plain), JsonCodec())(value)


def plain(contract): ...
def anything(contract: Any) -> None: ...
def struct(order: Order) -> None: ...
def mapping(order: dict[str, int]) -> None: ...
def lines(order: list[Line], ctx: Any) -> None: ...
def number(n: int) -> None: ...


class CallMe:
    def __call__(self, order: Order) -> None: ...


@pytest.mark.parametrize("function", [plain, anything])
def test_by_default_by_attribute_and_by_item(function: Any) -> None:
    contract = load(function, '{"customer": {"name": "Ada"}, "lines": [{"sku": "tea"}]}')
    assert contract.customer.name == contract["customer"]["name"] == "Ada"
    assert contract.lines[0].sku == "tea"


def test_by_annotation() -> None:
    assert load(struct, '{"lines": [{"sku": "tea", "count": 2}]}') == Order([Line("tea", 2)])
    assert load(CallMe(), '{"lines": []}') == Order([])
    assert load(mapping, '{"a": 1}') == {"a": 1}
    assert load(lines, '[{"sku": "tea", "count": 2}]') == [Line("tea", 2)]
    assert load(number, "17") == 17


@pytest.mark.parametrize(
    ("function", "text", "place"),
    [
        (struct, '{"lines": [{"sku": "tea", "count": "two"}]}', r"effect 'h': \$\.lines\[0\]\.count: expected `int`"),
        (struct, '{"lines": [{"sku": "tea"}]}', r"\$\.lines\[0\]: object missing required field `count`"),
        (number, '"x"', r"\$: expected `int`, got `str`"),
        (plain, "{", "not JSON"),
    ],
)
def test_what_does_not_fit_names_its_place(function: Any, text: str, place: str) -> None:
    with pytest.raises(ContractError, match=place):
        load(function, text)


def test_results() -> None:
    assert dump({"line": Line("tea", 2)}).data == b'{"line":{"sku":"tea","count":2}}'
    assert dump(None).data == b"null"
    raw = Payload(b"\x00", "raw")
    assert dump(raw) is raw
    with pytest.raises(ContractError, match=r"result of effect 'h' has no JSON form: \$\.odd"):
        dump({"odd": object()})
    with pytest.raises(ContractError, match=r"3,000,002 bytes; the limit of a payload is 2,097,152"):
        dump("x" * 3_000_000)
