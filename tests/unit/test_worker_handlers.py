"""Registering handlers: what is accepted, what is refused and with which words."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from onexflow.core.errors import InvalidConfiguration, RoleNotSupported
from onexflow.ports.worker_link import HandlerInfo
from onexflow.worker import Context, Worker


def test_decorators_bare_and_with_options_leave_the_function_callable() -> None:
    worker = Worker("shop")

    @worker.effect("charge", idempotent=True)
    async def pay(contract: Any, ctx: Context) -> str:
        return "paid"

    @worker.effect
    def notify(contract: Any) -> str:
        return "told"

    @worker.compute()
    def price(contract: Any) -> int:
        return 2 * int(contract)

    @worker.reducer
    def total(contract: Any) -> int:
        return sum(contract)

    assert [handler.info for handler in worker.handlers] == [
        HandlerInfo("effect", "charge", idempotent=True),
        HandlerInfo("effect", "notify", idempotent=False),
        HandlerInfo("compute", "price", idempotent=True),
        HandlerInfo("reducer", "total", idempotent=True),
    ]
    assert [handler.is_async for handler in worker.handlers] == [True, False, False, False]
    assert [handler.takes_context for handler in worker.handlers] == [True, False, False, False]
    assert notify({}) == "told"
    assert price(4) == 8
    assert total([1, 2]) == 3


def test_one_name_may_serve_two_roles_but_not_two_handlers() -> None:
    worker = Worker("shop")
    worker.effect("sum")(lambda contract: contract)
    worker.compute("sum")(lambda contract: contract)
    with pytest.raises(InvalidConfiguration, match="already has effect 'sum'"):
        worker.effect("sum")(lambda contract: contract)


def no_parameters() -> None: ...


def three_parameters(contract: Any, ctx: Any, more: Any) -> None: ...


def keyword_needed(contract: Any, *, more: Any) -> None: ...


@pytest.mark.parametrize("function", [no_parameters, three_parameters, keyword_needed])
def test_wrong_signatures_are_refused_and_shown(function: Any) -> None:
    with pytest.raises(InvalidConfiguration, match=r"has the signature \(.*\): a handler takes \(contract\)"):
        Worker("shop").effect(function)


def test_a_default_is_no_context_and_a_second_parameter_called_ctx_is() -> None:
    worker = Worker("shop")
    worker.effect("a")(lambda contract, factor=2: factor)
    worker.effect("b")(lambda contract, ctx=None: ctx)
    worker.effect("c")(functools.partial(lambda contract, ctx: ctx, ctx=1))
    assert [handler.takes_context for handler in worker.handlers] == [False, True, False]


def test_generators_and_nameless_functions_are_refused() -> None:
    worker = Worker("shop")

    def stream(contract: Any) -> Any:
        yield contract

    with pytest.raises(InvalidConfiguration, match="is a generator"):
        worker.compute(stream)
    with pytest.raises(InvalidConfiguration, match="has no name to serve it by"):
        worker.compute(lambda contract: contract)


class PriceNode:
    node_id = "price-node"
    node_type = "COMPUTE:retail"

    async def execute_compute(self, contract: Any) -> Any:
        return contract


class Everything(PriceNode):
    """Has methods of several roles; its node_type says which it is."""

    node_id = "everything"
    node_type = "effect"

    async def execute_effect(self, contract: Any) -> Any:
        return contract


class Orchestrating:
    node_id = "boss"
    node_type = "orchestrator"

    async def execute_orchestration(self, contract: Any) -> Any:
        return contract


def test_class_nodes_are_registered_as_they_are() -> None:
    worker = Worker("shop")
    worker.add_node(PriceNode())
    worker.add_node(Everything(), name="pay", idempotent=True)
    assert [handler.info for handler in worker.handlers] == [
        HandlerInfo("compute", "price-node", idempotent=True),
        HandlerInfo("effect", "pay", idempotent=True),
    ]


def test_an_orchestrator_node_is_registered_and_must_be_async() -> None:
    worker = Worker("shop")
    worker.add_node(Orchestrating())
    assert [handler.info for handler in worker.handlers] == [HandlerInfo("orchestrator", "boss", idempotent=True)]
    blocking = type("Blocking", (Orchestrating,), {"execute_orchestration": lambda self, contract: contract})()
    with pytest.raises(RoleNotSupported, match="'boss' is not async"):
        Worker("shop").add_node(blocking)


def test_a_node_of_the_published_package_is_called_by_its_execute() -> None:
    class Published:
        node_id = "published"
        node_type = "COMPUTE"

        async def execute(self, input_data: Any) -> Any:
            return input_data

    worker = Worker("shop")
    worker.add_node(Published())
    assert [handler.info for handler in worker.handlers] == [HandlerInfo("compute", "published", idempotent=True)]


def test_what_is_no_node_is_refused() -> None:
    worker = Worker("shop")
    with pytest.raises(InvalidConfiguration, match="`node_id` is not a string"):
        worker.add_node(object())
    nothing = type("Nothing", (), {"node_id": "n", "node_type": "effect"})()
    with pytest.raises(InvalidConfiguration, match="none of the methods execute_effect"):
        worker.add_node(nothing)
    odd = type("Odd", (Everything,), {"node_type": "gateway"})()
    with pytest.raises(InvalidConfiguration, match="node_type 'gateway', but methods of effect, compute"):
        worker.add_node(odd)
