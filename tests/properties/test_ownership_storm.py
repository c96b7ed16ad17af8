"""Storms of orchestrators that die, freeze, leave and come over one store: every run ends, no effect of a live worker is
run twice, no append is accepted out of turn, and the log is consistent (audited by the cluster itself)."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.testing.clock import run_virtual
from onexflow.testing.multi_cluster import MultiCluster
from support.engine_kit import Script

ACTIONS = st.tuples(
    st.sampled_from(["kill", "stop", "add", "freeze", "thaw", "start", "start"]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.01, 0.3, 1.1, 7.0, 12.0]),
)


def steps() -> WorkflowBuilder:
    flow = workflow("steps")
    flow.effect("first", handler="charge")
    flow.compute("second", handler="calc", after="first")
    flow.effect("third", handler="charge", after="second")
    return flow


#: A run that was read back while it was in memory, went on and left it again, came back as it had been.
READ_TOO_EARLY = [
    ("kill", 0, 0.3), ("kill", 1, 0.0), *[("kill", 0, 0.0)] * 4, ("kill", 0, 12.0), ("add", 0, 0.0),
    *[("kill", 0, 0.0)] * 2, ("start", 3, 0.01), ("start", 0, 0.0), ("stop", 2, 12.0), ("thaw", 2, 12.0),
]  # fmt: skip


#: A run was read back as it had been before what was decided while the read waited: its effect was given out again.
READ_AFTER_A_WAIT = [
    ("start", 0, 1.1), ("freeze", 2, 0.0), ("freeze", 0, 1.1), ("kill", 0, 1.1), ("kill", 0, 1.1), ("start", 0, 0.3),
    ("start", 0, 0.0), ("start", 0, 1.1), ("start", 0, 1.1), ("add", 0, 0.0),
]  # fmt: skip


@settings(max_examples=25, deadline=None)
@example(65536, READ_TOO_EARLY)
@example(51704, READ_AFTER_A_WAIT)
@given(st.integers(0, 1 << 16), st.lists(ACTIONS, min_size=3, max_size=14))
def test_storms_of_orchestrators_lose_nothing_and_run_no_effect_twice(
    seed: int, actions: list[tuple[str, int, float]]
) -> None:
    run_virtual(_storm(seed, actions))


async def _storm(seed: int, actions: list[tuple[str, int, float]]) -> None:
    script = Script()
    async with MultiCluster(seed=seed, slowest=0.05 * (seed % 3)) as cluster:
        count = 3
        for number in range(count):
            await cluster.add_orchestrator(f"o{number}")
        await cluster.register(steps().build())
        for worker in ("w1", "w2"):
            await cluster.add_worker(script.worker(worker), worker)
        await cluster.settled()
        starts = [asyncio.ensure_future(cluster.start("steps", 1)) for _ in range(10)]
        for action, which, pause in actions:
            running = [name for name, member in cluster.members.items() if member.state == "running"]
            frozen = [name for name, member in cluster.members.items() if member.state == "frozen"]
            if action == "add" and len(cluster.members) < 4:
                await cluster.add_orchestrator(f"o{count}")
                count += 1
            elif action == "thaw" and frozen:
                cluster.thaw(frozen[which % len(frozen)])
            elif action == "start":
                starts += [asyncio.ensure_future(cluster.start("steps", 1)) for _ in range(5)]
            elif action in {"kill", "stop", "freeze"} and len(running) > 1:
                name = running[which % len(running)]
                if action == "kill":
                    await cluster.kill(name)
                elif action == "stop":
                    await cluster.stop(name)
                else:
                    cluster.freeze(name)
            await cluster.clock.sleep(pause)
        for name, member in list(cluster.members.items()):
            if member.state == "frozen":
                cluster.thaw(name)
        keys = await asyncio.gather(*starts)
        for key in keys:
            assert await cluster.result(key) == 1
        effects = Counter((call.task, call.token) for call in script.calls if call.handler == "charge")
        assert set(effects.values()) <= {1}
        assert sum(effects.values()) == 2 * len(keys)
