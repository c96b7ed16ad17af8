"""The orchestrator's end of a client's stream, without a network."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from uuid import UUID

from onexflow.core.ids import RunKey
from onexflow.ports.client_link import RunOutcome
from onexflow.rpc.client_session import ClientStream, _Call
from onexflow.v1 import common_pb2, workflow_pb2


class Waiting:
    """A service whose runs end when the test says so, and whose waits know who waits, as the engine's do."""

    def __init__(self) -> None:
        self.reply: Callable[[RunOutcome], None] | None = None

    def wait_run(self, key: RunKey, reply: Callable[[RunOutcome], None]) -> Callable[[], None]:
        self.reply = reply

        def give_up() -> None:
            reply(RunOutcome(key=key, state="cancelled"))

        return give_up

    def end(self, key: RunKey) -> None:
        assert self.reply is not None
        reply, self.reply = self.reply, None
        reply(RunOutcome(key=key, state="completed"))


def open_calls() -> int:
    return sum(type(one) is _Call for one in gc.get_objects())


async def test_an_answered_wait_leaves_nothing_for_the_collector() -> None:
    context: Any = None
    service: Any = Waiting()
    stream = ClientStream(context, service)
    run = common_pb2.RunKey(workflow_type="w", instance_id="0192d3a0-0000-7000-8000-000000000000")
    gc.collect()
    gc.disable()
    try:
        before = open_calls()
        stream._on_batch(workflow_pb2.CallBatch(waits=[workflow_pb2.WaitCall(call_id=1, key=run)]))
        assert open_calls() == before + 1
        service.end(RunKey("default", "w", UUID(run.instance_id)))
        assert open_calls() == before
    finally:
        gc.enable()


async def test_a_client_that_is_not_read_is_told_once_what_was_taken() -> None:
    """It writes and does not read, so that nothing can be told: what waits to be written does not grow."""
    context: Any = None
    service: Any = Waiting()
    stream = ClientStream(context, service)
    stream._taken.wanted = True
    for _ in range(1000):
        stream._taken.took()
        stream._taken._say_now()
    assert len(stream._control) == 1
