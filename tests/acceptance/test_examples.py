"""The shipped examples, over gRPC, against independent computations."""

from __future__ import annotations

import asyncio
import csv
import lzma
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest

import onexflow
from onexflow.examples import flight_delays, greet, order_processing, order_watch
from onexflow.examples.ledger import Ledger
from support.grpc_cluster import grpc_cluster

JANUARY = Path(str(files("onexflow.examples") / "data" / "flights-2013-01.csv.xz"))


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("ONEXFLOW_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.delenv("ONEXFLOW_PROVIDER_DELAY", raising=False)
    return Ledger()


async def test_greet() -> None:
    async with grpc_cluster(greet.worker) as client:
        await client.register(greet.definition())
        assert await client.run("greet", {"name": "Ada"}) == "Hello, Ada!"


async def test_an_order_is_reserved_charged_and_summarised(ledger: Ledger) -> None:
    async with grpc_cluster(order_processing.worker) as client:
        await client.register(order_processing.definition())
        handle = await client.start("order-processing", order_processing.EXAMPLE_INPUT, instance_id="ORD-12345")
        summary = await handle.result(timeout=20)
        assert (summary["order_id"], summary["customer_id"], summary["amount"]) == ("ORD-12345", "CUST-67890", 99.99)
        assert summary["pieces"] == 3
        assert ledger.totals("charge").cents == 9999
        again = await client.start("order-processing", order_processing.EXAMPLE_INPUT, instance_id="ORD-12345")
        assert not again.created
        assert await again.result(timeout=20) == summary
        assert (ledger.totals("charge").entries, ledger.totals("reservation").entries) == (1, 1)
        assert {task.name: task.state for task in (await handle.state()).tasks} == dict.fromkeys(
            ("validate", "price", "reserve_stock", "charge", "summarise"), "completed"
        )
        history = await handle.history()
        assert [event.sequence for event in history] == list(range(1, len(history) + 1))
        assert [event.sequence async for event in handle.follow()] == [event.sequence for event in history]


async def test_orders_are_watched(ledger: Ledger) -> None:
    said: list[str] = []
    async with grpc_cluster(order_processing.worker) as client:
        await client.register(order_processing.definition())
        before = await client.start("order-processing", order_processing.EXAMPLE_INPUT)
        await before.result(timeout=20)
        bus = client.event_bus()
        await order_watch.watch(bus, said.append)
        after = await client.start("order-processing", {**order_processing.EXAMPLE_INPUT, "amount": 1.0})
        async with asyncio.timeout(20):
            while len(said) < 2:
                await asyncio.sleep(0.01)
        good, bad = (next(line for line in said if str(run.instance_id) in line) for run in (before, after))
        assert "workflow.completed" in good
        assert good.endswith("summarise")
        assert "workflow.failed: validate" in bad
        state = await bus.get_projection_state("order_status", "order-processing", before.instance_id)
        assert sorted(cast("list[str]", state["done"])) == ["charge", "price", "reserve_stock", "summarise", "validate"]


async def test_the_specifications_own_input_runs(ledger: Ledger) -> None:
    async with grpc_cluster(order_processing.worker) as client:
        await client.register(order_processing.definition())
        data = {"order_id": "ORD-12345", "customer_id": "CUST-67890", "amount": 99.99}
        assert (await client.run("order-processing", data))["amount"] == 99.99


@pytest.mark.parametrize(
    ("change", "task", "error"),
    [
        ({"amount": 1.0}, "price", "InvalidOrder"),
        ({"items": [{"sku": "NO-SUCH"}]}, "validate", "InvalidOrder"),
        ({"items": [{"sku": "LAST-ONE", "quantity": 2}], "amount": 10.0}, "reserve_stock", "OutOfStock"),
    ],
)
async def test_a_bad_order_fails_at_once_and_says_why(
    ledger: Ledger, change: dict[str, Any], task: str, error: str
) -> None:
    async with grpc_cluster(order_processing.worker) as client:
        await client.register(order_processing.definition())
        with pytest.raises(onexflow.RunFailed) as caught:
            await client.run("order-processing", {**order_processing.EXAMPLE_INPUT, **change}, wait_timeout=20)
        assert caught.value.context["error_type"] == error
        assert caught.value.context["task"] == task
        assert ledger.totals("charge").entries == 0


def test_the_ledger_applies_a_key_once(ledger: Ledger) -> None:
    first, second = ledger.charge("key", "A", 100), ledger.charge("key", "A", 100)
    assert (first.first, second.first) == (True, False)
    assert first.reference == second.reference
    assert (ledger.totals("charge").entries, ledger.totals("charge").calls) == (1, 2)


def test_many_at_once_may_open_a_new_ledger(tmp_path: Path) -> None:
    for number in range(20):
        ledger = Ledger(tmp_path / f"{number}.db")
        with ThreadPoolExecutor(8) as pool:
            entries = list(pool.map(lambda key, ledger=ledger: ledger.charge(str(key), "A", 1), range(8)))
        assert all(entry.first for entry in entries)
        assert ledger.totals("charge").entries == 8


def independent(path: Path) -> dict[str, Any]:
    """The same figures by one pass over the file, with nothing of the example's code."""
    by: dict[str, dict[str, list[int]]] = {"carrier": {}, "hour": {}}
    with lzma.open(path, "rt", newline="") as text:
        for row in csv.DictReader(text):
            for column, sums in by.items():
                departures, cancelled, minutes = sums.setdefault(row[column], [0, 0, 0])
                if row["dep_time"] == "NA":
                    sums[row[column]] = [departures, cancelled + 1, minutes]
                else:
                    sums[row[column]] = [departures + 1, cancelled, minutes + int(row["dep_delay"])]
    return by


def shown(figures: dict[str, Any]) -> dict[str, list[int]]:
    return {
        name: [figure["departures"], figure["cancelled"], figure["delay_minutes"]] for name, figure in figures.items()
    }


async def test_january_equals_an_independent_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEXFLOW_FLIGHTS", raising=False)
    expected = independent(JANUARY)
    async with grpc_cluster(flight_delays.worker) as client:
        await client.register(flight_delays.definition())
        result = await client.run("flight-delays", wait_timeout=25)
    assert shown(result["carriers"]) == expected["carrier"]
    assert shown(result["hours"]) == expected["hour"]
    assert result["departures"] + result["cancelled"] == 27_004
    united = result["carriers"]["UA"]
    assert united["name"] == "United Air Lines Inc."
    assert united["mean_delay"] == round(united["delay_minutes"] / united["departures"], 2)
    assert list(result["hours"]) == sorted(result["hours"], key=int)


@pytest.mark.timeout(120)
@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ONEXFLOW_FLIGHTS"), reason="ONEXFLOW_FLIGHTS names no file")
async def test_another_file_equals_an_independent_computation() -> None:
    path = Path(os.environ["ONEXFLOW_FLIGHTS"])
    expected = independent(path)
    async with grpc_cluster(flight_delays.worker) as client:
        await client.register(flight_delays.definition())
        result = await client.run("flight-delays", {"path": str(path), "chunk_rows": 5000}, wait_timeout=100)
    assert shown(result["carriers"]) == expected["carrier"]
    assert shown(result["hours"]) == expected["hour"]
