"""Class nodes on the worker binary: their life as callers see it, and orchestrations that call through a connection."""

from __future__ import annotations

import asyncio
import signal
import textwrap
from pathlib import Path

import pytest

import onexflow
from onexflow import onex
from support.programs import finished, serving

pytestmark = pytest.mark.slow

NODES = """
    import asyncio

    from onexflow import Worker
    from onexflow.nodes import BaseComputeNode, BaseEffectNode, BaseOrchestratorNode


    class Send(BaseEffectNode):
        async def initialize(self):
            self.sent = []

        async def execute_effect(self, contract):
            self.sent.append(contract)
            return self.sent


    class Double(BaseComputeNode):
        async def execute(self, input_data):
            return input_data * 2


    class Lead(BaseOrchestratorNode):
        async def execute_orchestration(self, contract, ctx=None):
            double = await ctx.node("double", "compute")
            numbers = await asyncio.gather(*(double.execute_compute(n) for n in contract))
            return await (await ctx.node("send")).execute_effect(sum(numbers))


    worker = Worker("nodes")
    for node in (Send(), Double(), Lead()):
        worker.add_node(node)
"""

BROKEN = """
    import asyncio

    from onexflow import Worker
    from onexflow.nodes import BaseEffectNode


    class Broken(BaseEffectNode):
        async def initialize(self):
            raise OSError("the database is away")

        async def execute_effect(self, contract):
            return contract


    worker = Worker("broken")
    worker.add_node(Broken())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "some_nodes.py").write_text(textwrap.dedent(NODES))
    (tmp_path / "broken_node.py").write_text(textwrap.dedent(BROKEN))
    return tmp_path


async def connected(client: onexflow.Client, handler: str) -> None:
    """Return when a worker with that handler is connected."""
    async with asyncio.timeout(10):
        while not any(node.connected for node in await client.nodes() if handler in node.handlers):
            await asyncio.sleep(0.02)


async def test_an_orchestrator_node_calls_through_the_workers_own_connection_and_ends_with_it(folder: Path) -> None:
    with serving("onex-orchestrator", "--listen=127.0.0.1:0", cwd=folder) as (_, line):
        address = line.rpartition(" on ")[2]
        worker_flags = ("some_nodes", f"--orchestrators={address}", "--worker-id=w")
        async with await onexflow.connect(address) as client:
            with serving("onex-worker", *worker_flags, cwd=folder) as (worker, ready):
                assert ready.endswith(" serves effect,compute,orchestrator-node")
                await connected(client, "lead")
                lead = await client.node("lead")
                assert isinstance(lead, onex.OrchestratorNode)
                assert await lead.execute_orchestration([1, 2, 3]) == [12]
                send = await client.node("send")
                assert isinstance(send, onex.EffectNode)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(15) == 0
            async with asyncio.timeout(10):
                while {node.status for node in await client.nodes() if node.node_id == "w"} != {"shutdown"}:
                    await asyncio.sleep(0.02)
            with pytest.raises(onex.InvalidProtocolStateError) as refused:
                await send.execute_effect(1)
            assert refused.value.context["current_state"] == "shutdown"
            assert refused.value.context["required_state"] == "ready"
            with serving("onex-worker", *worker_flags, cwd=folder):
                await connected(client, "send")
                assert await send.execute_effect(1) == [1]


async def test_a_node_that_cannot_be_initialised_ends_the_worker_with_its_error_and_is_refused(folder: Path) -> None:
    with serving("onex-orchestrator", "--listen=127.0.0.1:0", cwd=folder) as (_, line):
        address = line.rpartition(" on ")[2]
        done = await asyncio.to_thread(finished, "onex-worker", "broken_node", f"--orchestrators={address}", cwd=folder)
        assert done.returncode != 0
        assert "initialize() of node 'broken' failed: the database is away" in done.stderr
        assert "Traceback" not in done.stderr
        async with await onexflow.connect(address) as client:
            node = await client.node("broken")
            assert isinstance(node, onex.EffectNode)
            with pytest.raises(onex.InvalidProtocolStateError) as refused:
                await node.execute_effect(1)
            assert refused.value.context["current_state"] == "failed"
