"""The command line as a program of its own, against a cluster over gRPC."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import onexflow
from onexflow.codec.definitions import dump_definition
from onexflow.examples import greet, order_processing
from support.grpc_cluster import grpc_cluster


class Said(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


async def command(client: onexflow.Client, *arguments: str) -> Said:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "onexflow.cli", *arguments, "--address", client._channels.address,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


@pytest.mark.timeout(90)
async def test_a_day_at_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEXFLOW_LEDGER", str(tmp_path / "ledger.sqlite"))
    (tmp_path / "greet.json").write_bytes(dump_definition(greet.definition()))
    async with grpc_cluster(greet.worker, order_processing.worker) as client:
        registered = await command(client, "definition", "register", str(tmp_path / "greet.json"))
        assert registered == Said(0, "greet version 1\n", "")
        await client.register(order_processing.definition())
        assert [line.split()[0] for line in (await command(client, "definition", "list")).out.splitlines()] == [
            "TYPE", "greet", "order-processing",
        ]  # fmt: skip

        greeting = await command(client, "run", "start", "greet", "--input", '{"name": "Ada"}', "--wait")
        assert (greeting.code, greeting.out) == (0, '"Hello, Ada!"\n')

        order = json.dumps(order_processing.EXAMPLE_INPUT)
        started = await command(
            client, "run", "start", "order-processing", "-i", order, "--id", "ORD-1", "--wait", "-o", "json"
        )
        assert started.code == 0, started.err
        assert started.json()["result"]["amount"] == 99.99
        instance = started.json()["instance_id"]
        shown = await command(client, "run", "show", instance, "-o", "json")
        assert {task["state"] for task in shown.json()["tasks"]} == {"completed"}
        events = [
            json.loads(line)
            for line in (await command(client, "run", "watch", instance, "-o", "json")).out.splitlines()
        ]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert events[-1]["type"] == "workflow.completed"

        bad = await command(client, "run", "start", "order-processing", "-i", '{"order_id": "X"}', "--wait")
        assert bad.code == 5
        assert "in task validate" in bad.err
        listed = await command(client, "run", "list", "--state", "failed", "-o", "json")
        assert listed.json()["workflow_type"] == "order-processing"
        assert (await command(client, "run", "start", "gret")).err.splitlines()[-1] == "hint: Did you mean greet?"
        nodes = await command(client, "node", "list", "-o", "json")
        assert {json.loads(line)["node_id"] for line in nodes.out.splitlines()} >= {"o1", "w0", "w1"}
