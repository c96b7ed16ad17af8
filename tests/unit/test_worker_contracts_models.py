"""Contracts by pydantic models and TypedDicts: inputs, results, and the failure of what does not fit."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NotRequired, TypedDict

import pydantic
import pytest

from onexflow.codec.payload import CODEC, encode_value
from onexflow.core.builder import workflow
from onexflow.core.errors import InvalidArgument, RunFailed
from onexflow.core.payload import Payload
from onexflow.testing import Cluster, virtual_time
from onexflow.worker import Worker
from onexflow.worker.contracts import Loader, dumper_for, loader_for
from onexflow.worker.errors import ContractError, failure_of


class Line(pydantic.BaseModel):
    sku: str
    count: int = pydantic.Field(ge=1)


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    order_id: str
    lines: list[Line]

    @pydantic.field_validator("order_id")
    @classmethod
    def _known(cls, value: str) -> str:
        return {"A1": "A1", "B2": "B2"}[value]


class Receipt(pydantic.BaseModel):
    total: float
    note: str | None = None


class Parcel(TypedDict):
    weight: float
    to: NotRequired[str]


@pydantic.dataclasses.dataclass
class Point:
    x: int


def model(order: Order) -> None: ...
def models(orders: list[Order]) -> None: ...
def maybe(order: Order | None) -> None: ...
def point(point: Point) -> None: ...
def parcel(parcel: Parcel) -> None: ...


def loader(function: Any) -> Loader:
    worker = Worker("w")
    worker.effect("h")(function)
    return loader_for(worker.handlers[0], CODEC)


def load(function: Any, text: str) -> Any:
    return loader(function)(Payload(text.encode()))


def dump(value: Any) -> Payload:
    worker = Worker("w")
    worker.effect("h")(model)
    return dumper_for(worker.handlers[0], CODEC)(value)


GOOD = '{"order_id": "A1", "lines": [{"sku": "tea", "count": 2}]}'


def test_models_and_what_is_made_of_them() -> None:
    order = Order(order_id="A1", lines=[Line(sku="tea", count=2)])
    assert load(model, GOOD) == order
    assert load(models, f"[{GOOD}]") == [order]
    assert load(maybe, "null") is None
    assert load(maybe, GOOD) == order
    assert load(point, '{"x": 1}') == Point(1)


def test_typed_dicts() -> None:
    assert load(parcel, '{"weight": 2.5}') == {"weight": 2.5}
    assert load(parcel, '{"weight": 1, "to": "Ada"}') == {"weight": 1.0, "to": "Ada"}
    with pytest.raises(ContractError, match=r"effect 'h': \$\.weight: expected `float`, got `str`"):
        load(parcel, '{"weight": "heavy"}')
    with pytest.raises(ContractError, match="missing required field `weight`"):
        load(parcel, "{}")


@pytest.mark.parametrize(
    ("function", "text", "place"),
    [
        (model, '{"order_id": "A1", "lines": [{"sku": "tea", "count": 0}]}', r"\$\.lines\[0\]\.count: input should be"),
        (model, '{"order_id": "A1"}', r"\$\.lines: field required"),
        (model, '{"lines": [], "order_id": 7, "more": 1}', r"\$\.order_id: .*; \$\.more: extra inputs"),
        (models, f'[{GOOD}, {{"order_id": "A1"}}]', r"\$\[1\]\.lines: field required"),
        (model, '{"order_id": "C3", "lines": []}', "KeyError"),
        (model, "{", r"\$: invalid JSON"),
        (models, "[" + ",".join(["{}"] * 5) + "]", "and 5 more"),
    ],
)
def test_what_does_not_fit_names_its_place_and_is_not_tried_again(function: Any, text: str, place: str) -> None:
    with pytest.raises(ContractError, match=f"the input does not fit effect 'h': .*{place}") as caught:
        load(function, text)
    assert failure_of(caught.value).retryable is False


def test_a_payload_that_is_no_json_is_refused() -> None:
    with pytest.raises(ContractError, match="encoded as 'raw'"):
        loader(model)(Payload(GOOD.encode(), "raw"))


def test_models_as_results_and_inputs() -> None:
    assert dump(Receipt(total=2.5)).data == b'{"total":2.5,"note":null}'
    assert dump({"all": [Receipt(total=1)]}).data == b'{"all":[{"total":1.0,"note":null}]}'
    assert encode_value(Receipt(total=1)).data == b'{"total":1.0,"note":null}'
    with pytest.raises(ContractError, match="has no JSON form"):
        dump(Receipt(total=float("nan")))
    with pytest.raises(InvalidArgument, match=r"\$\.odd: Encoding objects of type object is unsupported"):
        encode_value({"odd": object()})


@virtual_time
async def test_a_run_of_typed_handlers() -> None:
    worker, tries = Worker("w"), []

    @worker.effect("price", idempotent=True)
    async def price(order: Order) -> Receipt:
        tries.append(order.order_id)
        return Receipt(total=sum(line.count for line in order.lines))

    @worker.compute("note")
    def note(receipt: Receipt) -> Receipt:
        return receipt.model_copy(update={"note": "paid"})

    flow = workflow("shop")
    flow.compute("note", depends_on=[flow.effect("price")])
    async with Cluster() as cluster:
        await cluster.register(flow.build())
        await cluster.add_worker(worker)
        order = Order(order_id="A1", lines=[Line(sku="tea", count=2)])
        assert await cluster.run("shop", order) == {"total": 2.0, "note": "paid"}
        with pytest.raises(RunFailed, match=r"\$\.lines\[0\]\.count") as failed:
            await cluster.run("shop", {"order_id": "A1", "lines": [{"sku": "tea", "count": "x"}]})
        assert failed.value.context["error"] == "ContractError"
        assert tries == ["A1"]  # no attempt, no retry


def test_pydantic_is_not_imported_by_those_who_do_not_use_it() -> None:
    program = (
        "import sys, onexflow, onexflow.codec.payload, onexflow.worker.contracts as c\n"
        "w = onexflow.Worker('w')\n"
        "w.effect('h')(lambda contract: contract)\n"
        "c.loader_for(w.handlers[0], onexflow.codec.payload.CODEC)\n"
        "sys.exit('pydantic' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
