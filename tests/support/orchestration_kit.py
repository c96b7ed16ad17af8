"""What the tests of orchestrations share: a worker whose code the test says, and the runs that it calls."""

from __future__ import annotations

from typing import Any

from onexflow.core.builder import workflow
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.ids import RunKey
from onexflow.ports.worker_link import Role
from onexflow.testing import Cluster
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker
from support.engine_kit import Script, single

SLOTS: dict[Role, int] = {"effect": 8, "compute": 8, "reducer": 8, "orchestrator": 8}


class Conductor:
    """An orchestration by a test's word, counted."""

    def __init__(self) -> None:
        self.begun = 0
        self.code: Any = None

    def worker(self, name: str = "conductor") -> Worker:
        worker = Worker(name)

        @worker.orchestrator("conduct")
        async def conduct(contract: Any, ctx: Context) -> Any:
            self.begun += 1
            return await self.code(contract, ctx)

        return worker


def flow(**options: Any) -> WorkflowDefinition:
    made = workflow("flow")
    made.orchestrator("lead", "conduct", **options)
    return made.build()


async def begin(cluster: Cluster, script: Script, conductor: Conductor, **options: Any) -> None:
    await cluster.add_worker(script.worker("hands"), "hands", slots=SLOTS)
    await cluster.add_worker(conductor.worker(), "conductor", slots=SLOTS)
    await cluster.register(flow(**options))
    await cluster.register(single("compute", "calc").build())


async def children(cluster: Cluster, of: RunKey) -> list[Any]:
    """The runs that a run has called."""
    found, _ = await cluster.engine.list_runs("default")
    views = [await cluster.state(run.key) for run in found]
    return [view for view in views if (await cluster.history(view.key))[0].data.get("causation_id") == str(of)]
