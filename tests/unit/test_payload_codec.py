"""Payloads as JSON: what goes through unchanged, and what is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onexflow.codec.payload import (
    CODEC,
    Contract,
    convert,
    decode_value,
    encode_value,
    to_contract,
)
from onexflow.core.errors import InvalidArgument
from onexflow.core.payload import Payload

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@dataclasses.dataclass
class Line:
    sku: str
    price: float


class Order(msgspec.Struct):
    amount: int
    lines: list[Line] = []


@given(JSON_VALUES)
def test_json_values_come_back_as_they_were(value: Any) -> None:
    assert decode_value(encode_value(value)) == value
    assert to_contract(decode_value(encode_value(value))) == value


def itself() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "field", "said"),
    [
        (float("nan"), "$", "JSON has no NaN"),
        ({"a": [1, {"b": float("inf")}], "n": None}, "$.a[1].b", "JSON has no NaN and no infinity"),
        (Order(1, [Line("x", float("-inf"))]), "$.lines[0].price", "JSON has no NaN"),
        ({"k": "\ud800"}, "$.k", "lone surrogate"),
        ({"\ud800": 1}, "$", "lone surrogate"),
        ({"a": [1, object()]}, "$.a[1]", "Encoding objects of type object is unsupported"),
        (Order(1, [Line("x", object())]), "$.lines[0].price", "unsupported"),
        ({(1, 2): 3}, "$", "Only dicts with str-like"),
        (itself(), "$", "nested too deeply, or contains itself"),
        ([10**5000], "$[0]", "digits"),
        ({"f": print}, "$.f", "unsupported"),
    ],
)
def test_what_json_cannot_say_is_refused_with_its_place(value: Any, field: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        encode_value(value)
    assert caught.value.context["field"] == field
    assert str(caught.value).startswith(f"{field}: ")
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "not JSON"), (b"{", "not JSON"), (b'"\xff"', "not UTF-8: invalid start byte"), (b"NaN", "not JSON"), (b"1e999", "not JSON"),
     (b"[" * 100_000, "nested too deeply"), (b"1" * 5000, "not JSON"), (b'"\\ud800"', "not JSON")],
)  # fmt: skip
def test_what_is_no_json_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        decode_value(Payload(data))


@pytest.mark.parametrize(
    "data", [b"", b"[", b'["\xff"]', b"[NaN]", b"[1e999]", b"[" + b"1" * 5000 + b"]", b"[[" * 50_000]
)
def test_typed_reading_refuses_what_is_no_json(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        convert(Payload(data), list[Any])


def test_other_encodings_are_named() -> None:
    with pytest.raises(InvalidArgument, match="encoded as 'raw', not as JSON"):
        decode_value(Payload(b"x", "raw"))
    assert encode_value(raw := Payload(b"x", "raw")) is raw


def test_common_classes_have_a_json_form() -> None:
    value = {"id": UUID(int=5), "line": Line("a", 1.5), "order": Order(2), "set": {1}, "tuple": (1, 2), "n": None}
    assert json.loads(encode_value(value).data) == {
        "id": "00000000-0000-0000-0000-000000000005", "line": {"sku": "a", "price": 1.5},
        "order": {"amount": 2, "lines": []}, "set": [1], "tuple": [1, 2], "n": None,
    }  # fmt: skip


def test_contract_by_attribute_and_item_at_every_depth() -> None:
    value = {"order": {"id": 7, "lines": [{"sku": "a"}, [{"x": 1}]]}, "items": [1]}
    contract = to_contract(value)
    assert contract.order.id == contract["order"]["id"] == 7
    assert contract.order.lines[0].sku == "a"
    assert contract.order.lines[1][0].x == 1
    assert contract["items"] == [1]
    assert to_contract([{"a": 1}])[0].a == 1
    assert contract == value
    assert type(value["order"]) is dict


def test_contract_stays_a_contract_when_copied_and_written() -> None:
    contract = to_contract({"a": {"b": 1}})
    assert copy.deepcopy(contract).a.b == 1
    assert json.loads(json.dumps(contract)) == {"a": {"b": 1}}
    assert encode_value(contract).data == b'{"a":{"b":1}}'
    contract.c = 5
    del contract.a
    assert contract == {"c": 5}


def test_missing_field_names_those_that_exist() -> None:
    contract = Contract(order_id=1, total=2)
    with pytest.raises(AttributeError, match="the contract has no field 'ordr_id'; it has: order_id, total"):
        _ = contract.ordr_id
    with pytest.raises(AttributeError, match="it has: none"):
        del Contract().x
    assert getattr(contract, "x", "default") == "default"


def test_deep_values_become_contracts() -> None:
    value: Any = {"x": 1}
    for _ in range(100_000):
        value = [value]
    contract = to_contract(value)
    for _ in range(100_000):
        contract = contract[0]
    assert contract.x == 1


@pytest.mark.parametrize(
    ("data", "field", "said"),
    [
        (b'{"amount": "x"}', "$.amount", "expected `int`, got `str`"),
        (b'{"amount": 1, "lines": [{"sku": "a", "price": 1}, {"sku": 5}]}', "$.lines[1].sku", "expected `str`, got `int`"),
        (b"{}", "$", "object missing required field `amount`"),
        (b"[]", "$", "expected `object`, got `array`"),
    ],
)  # fmt: skip
def test_typed_contract_errors_name_the_path(data: bytes, field: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        convert(Payload(data), Order)
    assert caught.value.context["field"] == field
    assert str(caught.value) == f"{field}: {said}"


def test_typed_contracts() -> None:
    data = Payload(b'{"amount": 1, "lines": [{"sku": "a", "price": 2}]}')
    assert convert(data, Order) == Order(1, [Line("a", 2.0)])
    assert convert(Payload(b'{"sku": "a", "price": 2}'), Line) == Line("a", 2.0)
    assert convert(Payload(b"[1]"), list[int]) == [1]


def test_codec_serves_the_core() -> None:
    assert CODEC.decode(CODEC.encode([1])) == [1]
