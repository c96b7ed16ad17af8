"""A run that is undone, as a client sees it over gRPC."""

from __future__ import annotations

import asyncio

import pytest

import onexflow
from onexflow import Compensation, Fatal, RunFailed, Worker
from support.grpc_cluster import grpc_cluster


def worker(undone: list[object], *, is_open: bool = True) -> Worker:
    made = Worker()
    made.effect("pay")(lambda contract: {"id": contract["amount"]})

    @made.effect("ship")
    async def ship(_: object) -> None:
        await asyncio.Event().wait()

    @made.effect("refund")
    def refund(contract: object) -> None:
        if not is_open:
            raise Fatal("the bank is closed")
        undone.append(contract)

    return made


def trip() -> onexflow.WorkflowDefinition:
    flow = onexflow.workflow("trip")
    refund = Compensation(handler="refund", input={"payment": "result.id", "why": "reason"})
    flow.effect("ship", depends_on=[flow.effect("pay", compensation=refund)])
    return flow.build()


async def cancelled(client: onexflow.Client) -> onexflow.RunHandle:
    """A run that has paid, and was cancelled."""
    await client.register(trip())
    handle = await client.start("trip", {"amount": 7})
    async for event in handle.follow():
        if event.type == "task.started" and event.task == "ship":
            break
    assert (await handle.cancel("changed my mind")).changed
    return handle


async def test_the_result_raises_with_how_the_run_would_have_ended() -> None:
    undone: list[object] = []
    async with grpc_cluster(worker(undone)) as client:
        handle = await cancelled(client)
        with pytest.raises(
            RunFailed, match=r"ended as compensated \(cancelled\): Cancelled: changed my mind"
        ) as raised:
            await handle.result(timeout=10)
        assert (raised.value.context["state"], raised.value.context["outcome"]) == ("compensated", "cancelled")
        assert undone == [{"payment": 7, "why": "changed my mind"}]
        view = await handle.state()
        assert (view.state, view.outcome, view.reason) == ("compensated", "cancelled", "changed my mind")
        assert {task.name: task.state for task in view.tasks} == {
            "pay": "completed", "ship": "cancelled", "pay.undo": "completed",
        }  # fmt: skip
        assert not (await handle.cancel()).changed


async def test_what_could_not_be_undone_is_told_with_both_errors() -> None:
    async with grpc_cluster(worker([], is_open=False)) as client:
        handle = await cancelled(client)
        with pytest.raises(RunFailed, match="the bank is closed") as raised:
            await handle.result(timeout=10)
        context = raised.value.context
        assert (context["state"], context["error_type"], context["task"]) == (
            "failed",
            "CompensationFailed",
            "pay.undo",
        )
        assert context["error_context"]["not_undone"] == ["pay"]
        assert context["error_context"]["cause"] == "changed my mind"
        assert (await handle.state()).outcome == "cancelled"
