"""The client against an orchestrator of generated stubs: batches, errors, losses, reconnection."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import onexflow
from integration.fake_orchestrator import RUN, FakeOrchestrator, echo, error, failed
from onexflow.core.errors import Draining, InvalidArgument, ProtocolViolation, StoreUnavailable, Unavailable
from onexflow.telemetry import tracing
from onexflow.v1 import workflow_pb2 as pb


@pytest.fixture
def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"127.0.0.1:{port}"


async def test_start_run_and_result() -> None:
    async with FakeOrchestrator() as fake, await onexflow.connect(fake.address) as client:
        handle = await client.start("greet", {"name": "Ada"}, instance_id=RUN)
        assert (handle.workflow_type, handle.instance_id, handle.created, handle.version) == ("greet", RUN, True, 1)
        assert await handle.result(timeout=5) == "waited"
        assert await client.run("greet", {"name": "Ada"}) == {"name": "Ada"}
        assert await client.run("greet") is None
        assert (await handle.outcome()).state == "completed"


async def test_concurrent_calls_share_messages() -> None:
    async with FakeOrchestrator() as fake, await onexflow.connect(fake.address) as client:
        results = await asyncio.gather(*(client.run("greet", n) for n in range(200)))
        assert results == list(range(200))
        assert len(fake.batches) <= 8
        assert max(len(batch.starts) for batch in fake.batches) == 64
        assert len(set(fake.request_ids)) == 200


async def test_a_failed_run_raises_with_its_story() -> None:
    async with FakeOrchestrator(lambda _: failed()) as fake, await onexflow.connect(fake.address) as client:
        with pytest.raises(onexflow.RunFailed, match="in task charge: ValueError: no luck") as caught:
            await client.run("greet")
        context = caught.value.context
        assert context["state"] == "failed"
        assert context["error_type"] == "ValueError"
        assert context["task"] == "charge"
        assert context["instance_id"] == str(RUN)
        assert context["error_context"] == {"attempt": 3}


async def test_an_error_of_a_call_is_only_that_calls() -> None:
    def script(call: pb.StartWorkflowRequest) -> pb.Answer:
        if call.workflow_type == "nope":
            return error(onexflow.UnknownWorkflowType("no workflow type nope", {"workflow_type": "nope"}))
        return echo(call)

    async with FakeOrchestrator(script) as fake, await onexflow.connect(fake.address) as client:
        outcomes = await asyncio.gather(client.run("nope"), client.run("greet", 1), return_exceptions=True)
        bad: Any = outcomes[0]
        assert outcomes[1] == 1
        assert type(bad) is onexflow.UnknownWorkflowType
        assert bad.context == {"workflow_type": "nope"}


async def test_a_cut_stream_is_mended_under_the_same_request_id() -> None:
    silent = True
    async with FakeOrchestrator(lambda call: None if silent else echo(call)) as fake:
        async with await onexflow.connect(fake.address) as client:
            running = asyncio.ensure_future(client.run("greet", "kept"))
            await fake.unanswered.wait()
            silent = False
            fake.cut_streams()
            async with asyncio.timeout(10):
                assert await running == "kept"
        assert fake.streams == 2
        assert len(fake.request_ids) == 2
        assert len(set(fake.request_ids)) == 1


async def test_the_orchestrator_comes_back_at_the_same_address(free_address: str) -> None:
    fake = FakeOrchestrator()
    await fake.listen(free_address)
    async with await onexflow.connect(free_address) as client:
        assert await client.run("greet", 1) == 1
        await fake.stop()
        running = asyncio.ensure_future(client.run("greet", 2))
        await asyncio.sleep(0)
        again = FakeOrchestrator()
        await again.listen(free_address)
        async with asyncio.timeout(15):
            assert await running == 2
        await again.stop()


async def test_the_next_address_is_used(free_address: str) -> None:
    async with FakeOrchestrator() as fake:
        client = await onexflow.connect([free_address, fake.address], timeout=10)
        async with client:
            assert await client.run("greet", 1) == 1


async def test_nothing_answers(free_address: str) -> None:
    with pytest.raises(Unavailable, match="no orchestrator answers at " + free_address):
        await onexflow.connect(free_address, timeout=0.3)


async def test_a_refused_client_learns_why() -> None:
    async with FakeOrchestrator() as fake:
        fake.refuse = (grpc.StatusCode.UNIMPLEMENTED, "no such service")
        with pytest.raises(ProtocolViolation, match="no such service"):
            await onexflow.connect(fake.address, timeout=5)
        assert fake.streams == 1


async def test_waiting_calls_fail_when_patience_is_over(free_address: str) -> None:
    fake = FakeOrchestrator(lambda _: None)
    await fake.listen(free_address)
    async with await onexflow.connect(free_address, patience=1.5) as client:  # above gRPC's own pause of 1 s
        running = asyncio.ensure_future(client.run("greet", 1))
        await fake.unanswered.wait()
        await fake.stop()
        with pytest.raises(Unavailable, match="no orchestrator answers"):
            await asyncio.wait_for(running, 10)
        again = FakeOrchestrator()
        await again.listen(free_address)
        assert await asyncio.wait_for(client.run("greet", 2), 10) == 2, "the next call tries again"
        await again.stop()


async def test_an_orchestrator_that_answers_and_dies_again_and_again_is_not_missing() -> None:
    patience = 0.4
    is_last = False

    def script(call: pb.StartWorkflowRequest) -> pb.Answer | None:
        return None if call.input.data == b'"held"' and not is_last else echo(call)

    async with FakeOrchestrator(script) as fake, await onexflow.connect(fake.address, patience=patience) as client:
        held = asyncio.ensure_future(client.run("greet", "held"))
        until = asyncio.get_running_loop().time() + 3 * patience
        while asyncio.get_running_loop().time() < until:
            assert await client.run("greet", 1) == 1
            fake.cut_streams()
        assert fake.streams > 3, "each of them lived for less than SHORT_LIVED"
        is_last = True
        fake.cut_streams()
        assert await asyncio.wait_for(held, 10) == "held"


async def test_closing_ends_waiting_calls() -> None:
    async with FakeOrchestrator(lambda _: None) as fake:
        client = await onexflow.connect(fake.address)
        running = asyncio.ensure_future(client.run("greet"))
        await fake.unanswered.wait()
        await client.close()
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await running


async def test_a_cancelled_wait_is_abandoned() -> None:
    answering = False
    fake = FakeOrchestrator(lambda call: echo(call) if answering else None)
    async with fake, await onexflow.connect(fake.address) as client:
        with pytest.raises(onexflow.DeadlineExceeded):
            await client.get("greet", RUN).result(timeout=0.05)
        answering = True
        assert await client.run("greet", 1) == 1
        assert fake.abandoned == [1]


async def test_unary_errors_keep_their_class() -> None:
    async with FakeOrchestrator() as fake, await onexflow.connect(fake.address) as client:
        with pytest.raises(onexflow.UnknownRun, match="no such run") as caught:
            await client.get("greet", RUN).state()
        assert caught.value.context["instance_id"] == str(RUN)


async def test_a_command_is_repeated_only_when_it_was_not_judged() -> None:
    async with FakeOrchestrator() as fake, await onexflow.connect(fake.address) as client:
        fake.unary_failures = [Draining("going")]
        outcome = await client.get("greet", RUN).pause("why")
        assert (outcome.changed, outcome.state) == (True, "paused")
        fake.unary_failures = [StoreUnavailable("not known")]
        with pytest.raises(StoreUnavailable):
            await client.get("greet", RUN).pause()


async def test_lists_page() -> None:
    async with FakeOrchestrator() as fake, await onexflow.connect(fake.address) as client:
        assert [run.sequence async for run in client.list()] == list(range(250))
        assert [run.sequence async for run in client.list(limit=120)] == list(range(120))


async def test_following_survives_a_lost_stream() -> None:
    async with FakeOrchestrator() as fake, await onexflow.connect(fake.address) as client:
        kinds = ["workflow.created", "workflow.started", "cut", "task.completed"]
        fake.events = [pb.EventView(sequence=n, type=kind) for n, kind in enumerate(kinds, 1)]
        seen = [event.sequence async for event in client.get("greet", RUN).follow()]
        assert seen == [1, 2, 3, 4]


async def test_bad_arguments_name_their_field() -> None:
    async with FakeOrchestrator() as fake, await onexflow.connect(fake.address) as client:
        for bad in ({"delay": -1}, {"timeout": float("nan")}, {"instance_id": ""}):
            with pytest.raises(InvalidArgument) as caught:
                await client.start("greet", **bad)
            assert caught.value.context["field"] in bad
        with pytest.raises(InvalidArgument):
            await client.start("greet", object())
        with pytest.raises(InvalidArgument, match="cannot be sent"):
            await client.start("greet", version=-1)
        with pytest.raises(InvalidArgument, match="cannot be sent"):
            await client.start("\ud800")
        with pytest.raises(InvalidArgument, match="is the most") as caught:
            await client.start("greet", "x" * (2 << 20))
        assert caught.value.context["field"] == "input"
        for oversized in (client.start("g" * (3 << 20)), client.get("g" * (3 << 20), RUN).result()):
            with pytest.raises(InvalidArgument, match="is the most"):
                await oversized
        assert fake.streams == 1, "none of them reached the stream"
        with pytest.raises(InvalidArgument, match="exactly one"):
            await client.get("greet", RUN).resolve("charge")
    with pytest.raises(InvalidArgument, match="host:port"):
        await onexflow.connect("nowhere")


async def test_starts_carry_the_current_trace() -> None:
    seen: list[str] = []

    def script(call: pb.StartWorkflowRequest) -> pb.Answer:
        seen.append(call.trace)
        return echo(call)

    async with FakeOrchestrator(script) as fake, await onexflow.connect(fake.address) as client:
        await client.run("greet")
        tracing.use(TracerProvider())
        try:
            with tracing.span("test"):
                await client.run("greet")
                trace_id = trace.get_current_span().get_span_context().trace_id
        finally:
            tracing.use(None)
    assert seen[0] == ""
    assert f"{trace_id:032x}" in seen[1]
