"""One who waits for a run of another owner gets its end, whichever of the two owners dies, freezes or leaves."""

from __future__ import annotations

from typing import Any

import pytest

from onexflow.core.builder import workflow
from onexflow.core.errors import Overloaded
from onexflow.core.ids import RunKey
from onexflow.engine.admission import Admission
from onexflow.ports.client_link import ControlRequest
from onexflow.testing.clock import virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker
from support.engine_kit import Script, single
from unit.test_shard_ownership import three


async def waiting(cluster: MultiCluster, script: Script) -> tuple[RunKey, str, str]:
    """A run that waits for a run of another owner, whose effect is at work: its key, its owner, and the other one's."""
    conductor = Worker("conductor")

    @conductor.orchestrator("conduct")
    async def conduct(contract: Any, ctx: Context) -> Any:
        return await ctx.run("single", contract)

    leading = workflow("leading")
    leading.orchestrator("lead", handler="conduct")
    await three(cluster, script, leading, single("effect", "charge"))
    await cluster.add_worker(conductor, "conductor")
    script.gate("charge")
    calls = 0
    while True:
        parent = await cluster.start("leading", calls)
        calls += 1
        await script.called("charge", calls)
        own = await cluster.owner_of(cluster.number_of(parent))
        gateway = next(iter(cluster.members.values())).engine.gateway
        found, _ = await gateway.list_runs("default", "single")
        child = found[0].key  # the newest
        other = await cluster.owner_of(cluster.number_of(child))
        assert own is not None
        assert other is not None
        if own is not other:
            return parent, own.id, other.id


@pytest.mark.parametrize("whose", ["caller", "called"])
@pytest.mark.parametrize("end", ["kill", "stop", "freeze"])
@virtual_time
async def test_the_end_of_a_called_run_reaches_who_waits(end: str, whose: str) -> None:
    script = Script()
    async with MultiCluster(seed=3) as cluster:
        parent, own, other = await waiting(cluster, script)
        name = own if whose == "caller" else other
        if end == "freeze":
            cluster.freeze(name)
        else:
            await getattr(cluster, end)(name)
        charges = script.count("charge")
        script.gates["charge"].set()
        assert isinstance(await cluster.result(parent), int)
        assert script.count("charge") == charges  # what ran on was adopted
        if end == "freeze":
            cluster.thaw(name)


@pytest.mark.parametrize("whose", ["caller", "called"])
@virtual_time
async def test_a_called_run_is_cancelled_with_its_caller_whoever_dies_meanwhile(whose: str) -> None:
    script = Script()
    async with MultiCluster(seed=4) as cluster:
        parent, own, other = await waiting(cluster, script)
        await cluster.kill(own if whose == "caller" else other)
        await cluster.control(ControlRequest(key=parent, action="cancel", request_id="c"))
        assert (await cluster.wait(parent)).state == "cancelled"
        gateway = next(iter(cluster.members.values())).engine.gateway
        found, _ = await gateway.list_runs("default", "single")
        assert (await cluster.wait(found[0].key)).state == "cancelled"


@virtual_time
async def test_a_called_run_waits_for_room_where_clients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller has begun already: it neither fails nor is it run again because much is under way."""
    refused = begun = 0

    def refusal(self: Admission, now: float, waited: float = 0.0, behind: int = 0) -> Overloaded | None:
        nonlocal refused
        refused += 1
        return Overloaded("Enough.") if 1 < refused <= 5 else None  # the first is the caller's own start

    script = Script()
    async with MultiCluster(seed=5) as cluster:
        conductor = Worker("conductor")

        @conductor.orchestrator("conduct")
        async def conduct(contract: Any, ctx: Context) -> Any:
            nonlocal begun
            begun += 1
            return await ctx.run("single", contract)

        leading = workflow("leading")
        leading.orchestrator("lead", handler="conduct")
        await three(cluster, script, leading, single("effect", "charge"))
        await cluster.add_worker(conductor, "conductor")
        monkeypatch.setattr(Admission, "has_room", lambda self, behind=0: False)
        monkeypatch.setattr(Admission, "refusal", refusal)
        assert await cluster.result(await cluster.start("leading", 7)) == 7
        assert refused >= 6
        assert (begun, script.count("charge")) == (1, 1)
