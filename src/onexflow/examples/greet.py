"""The smallest workflow: one compute task.

`onexflow dev --example greet`, and in another terminal `onexflow run start greet --input '{"name": "Ada"}' --wait`.
"""

from __future__ import annotations

from typing import Any, Final

import onexflow

EXAMPLE_INPUT: Final = {"name": "Ada"}

worker = onexflow.Worker("greet")


@worker.compute("greet")
async def greet(contract: Any) -> str:
    return f"Hello, {contract.name}!"


def definition() -> onexflow.WorkflowDefinition:
    flow = onexflow.workflow("greet", description="Say hello to `name`.")
    flow.compute("greet")
    return flow.build()
