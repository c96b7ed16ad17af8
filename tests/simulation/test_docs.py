"""The examples of docs/testing.md, as they stand there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from onexflow.core.builder import workflow
from onexflow.worker.handlers import Worker

PAGE = Path(__file__).parents[2] / "docs/testing.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that the examples test."""
    worker = Worker("shop")

    @worker.effect("pay")
    async def pay_for(order: Any) -> Any:
        return order["amount"]

    @worker.effect("ship", idempotent=True)
    async def ship(order: Any) -> Any:
        return order["order_id"]

    flow = workflow("order")
    pay = flow.effect("pay", input="input")
    flow.effect("ship", input="input", after=pay)
    module: Any = ModuleType("shop")
    module.worker, module.flow = worker, flow
    monkeypatch.setitem(sys.modules, "shop", module)


@pytest.mark.parametrize("block", BLOCKS, ids=["Cluster", "simulate"])
@pytest.mark.usefixtures("shop")
def test_an_example(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(block, names)
    [test] = [made for name, made in names.items() if name.startswith("test_")]
    test()
    assert "simulate" not in block or " 20 rounds" in capsys.readouterr().out
