"""Order processing: check and price an order, reserve its stock, charge its customer, summarise.

    validate (compute) ─┬─▶ price (compute) ──────┬─▶ charge (effect) ─▶ summarise (reducer)
                        └─▶ reserve_stock (effect)┘

Both effects write to a real ledger (`onexflow.examples.ledger`; the file of `ONEXFLOW_LEDGER`). The input is the
specification's example, `order_id`, `customer_id` and `amount`, with the order's `items` beside it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, Final

import onexflow
from onexflow.examples.ledger import CATALOGUE, Ledger

TYPE: Final = "order-processing"
EXAMPLE_INPUT: Final[dict[str, Any]] = {
    "order_id": "ORD-12345",
    "customer_id": "CUST-67890",
    "amount": 99.99,
    "items": [{"sku": "KEYBOARD", "quantity": 1}, {"sku": "MOUSE", "quantity": 2}],
}

worker = onexflow.Worker(TYPE)


class InvalidOrder(ValueError):
    """The order itself is wrong: another attempt is of no use."""


@dataclass
class Item:
    sku: str
    quantity: int = 1


@dataclass
class Order:
    order_id: str
    customer_id: str
    amount: float
    items: list[Item] = field(default_factory=list)


@worker.compute("validate")
async def validate(order: Order) -> dict[str, Any]:
    """The order in the form that the other tasks read: known goods, whole cents."""
    for item in order.items:
        if item.sku not in CATALOGUE:
            raise InvalidOrder(f"order {order.order_id}: unknown goods {item.sku!r}")
        if item.quantity < 1:
            raise InvalidOrder(f"order {order.order_id}: {item.quantity} pieces of {item.sku}")
    return {
        "order_id": order.order_id,
        "customer_id": order.customer_id,
        "cents": round(order.amount * 100),
        "items": [{"sku": item.sku, "quantity": item.quantity} for item in order.items],
    }


@worker.compute("price")
async def price(order: Any) -> dict[str, Any]:
    """What the goods cost. An order that names goods must offer just that amount."""
    lines = [(item.sku, item.quantity, item.quantity * CATALOGUE[item.sku][1]) for item in order["items"]]
    total = sum(cents for _, _, cents in lines) if lines else order.cents
    if total != order.cents:
        raise InvalidOrder(f"order {order.order_id}: offers {order.cents} cents for goods of {total} cents")
    return {"order_id": order.order_id, "cents": total, "lines": lines}


# idempotent=True is a promise to the orchestrator: when the worker dies and nobody knows whether the ledger was written,
# the task may run again. It holds because both effects write under ctx.idempotency_key, which is the same in every
# attempt, and the ledger refuses a second row with the same key. Without such a target, leave the default (False):
# the task then waits in `waiting_for_input` until its own late result comes or a person decides it (`run resolve`).
@worker.effect("reserve_stock", idempotent=True)
def reserve_stock(order: Any, ctx: Any) -> dict[str, Any]:
    items = [(item.sku, item.quantity) for item in order["items"]]
    entry = Ledger().reserve(ctx.idempotency_key, order.order_id, items)
    return {"reservation": entry.reference, "first": entry.first}


@worker.effect("charge", idempotent=True)
def charge(bill: Any, ctx: Any) -> dict[str, Any]:
    # A worker may die before the money moves and after it, when only the answer is missing: the delay has both.
    time.sleep(_provider_delay() / 2)
    entry = Ledger().charge(ctx.idempotency_key, bill.order_id, bill.cents)
    time.sleep(_provider_delay() / 2)
    return {"payment": entry.reference, "cents": entry.cents, "first": entry.first}


@worker.reducer("summarise")
async def summarise(parts: Any) -> dict[str, Any]:
    return {
        "order_id": parts.order.order_id,
        "customer_id": parts.order.customer_id,
        "amount": parts.payment.cents / 100,
        "pieces": sum(item.quantity for item in parts.order["items"]),
        "reservation": parts.reservation.reservation,
        "payment": parts.payment.payment,
    }


def definition() -> onexflow.WorkflowDefinition:
    flow = onexflow.workflow(TYPE, description="Check, price, reserve, charge and summarise an order.")
    # The order's own faults fail at once; a busy ledger is tried again.
    retry = onexflow.RetryPolicy(
        policy="exponential",
        max_attempts=5,
        initial_delay=0.2,
        max_delay=5.0,
        non_retryable=("InvalidOrder", "OutOfStock"),
    )
    checked = flow.compute("validate", retry=retry)
    priced = flow.compute("price", depends_on=[checked], retry=retry)
    reserved = flow.effect("reserve_stock", depends_on=[checked], retry=retry)
    charged = flow.effect("charge", depends_on=[priced, reserved], input="tasks.price", retry=retry)
    flow.reducer(
        "summarise",
        depends_on=[checked, reserved, charged],
        input={"order": "tasks.validate", "reservation": "tasks.reserve_stock", "payment": "tasks.charge"},
    )
    return flow.build(output="tasks.summarise")


def _provider_delay() -> float:
    """Seconds that the payment provider takes, so that the demo can show one interrupted."""
    return float(os.environ.get("ONEXFLOW_PROVIDER_DELAY") or 0)
