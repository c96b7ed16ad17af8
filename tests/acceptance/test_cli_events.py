"""`onexflow event` as a program of its own, against a cluster over gRPC."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

import onexflow
from onexflow.client.remote import RemoteService
from support.bus_kit import Reader, publish, stream, uuid
from support.grpc_cluster import grpc_cluster


async def command(client: onexflow.Client, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "onexflow.cli", "event", *arguments, "--address", client._channels.address,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def said(client: onexflow.Client, *arguments: str) -> list[Any]:
    code, out, err = await command(client, *arguments, "-o", "json")
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.timeout(180)
async def test_groups_and_dead_letters() -> None:
    async with grpc_cluster() as client:
        bus = RemoteService.of(client).events
        assert (await command(client, "group", "list")) == (0, "", "No groups.\n")
        reader = await Reader(bus, group="mail", topics=("ext",)).begin()
        for n in range(3):
            await publish(bus, stream(), {"n": n}, event_id=uuid(str(n)))
        await reader.have(3)
        for place in reader.places:
            await reader.bury(place)
        [view] = await said(client, "group", "list")
        assert (view["name"], view["members"], view["dead_letters"], view["lag"]) == ("mail", 1, 3, 0)
        _, table, _ = await command(client, "group", "list")
        assert table.splitlines()[1].split() == ["mail", "group", "ext", "1", "0", "0", "3"]
        listed = await said(client, "dead-letter", "list", "mail")
        assert [one["delivery"]["event"]["payload"] for one in listed] == [{"n": 0}, {"n": 1}, {"n": 2}]
        _, table, _ = await command(client, "dead-letter", "list", "mail")
        assert "Oops: it went wrong" in table
        places = [line.split()[0] for line in table.splitlines()[1:]]
        assert places == [str(place) for place in reader.places]
        assert (await command(client, "dead-letter", "requeue", "mail", places[1]))[:2] == (0, "1 requeued\n")
        await reader.have(4)
        assert reader.values[3] == {"n": 1}
        assert await said(client, "dead-letter", "discard", "mail", "--all") == [{"group": "mail", "discarded": 2}]
        assert (await command(client, "dead-letter", "list", "mail")) == (0, "", "No dead letters.\n")
        for wrong in (["mail"], ["mail", "x"], ["mail", "1:2", "--all"]):
            code, out, err = await command(client, "dead-letter", "discard", *wrong)
            assert (code, out) == (2, ""), err
        assert (await command(client, "dead-letter", "requeue", "nobody", "--all"))[0] == 3
        code, out, err = await command(client, "group", "delete", "mail")
        assert code == 1, "it has a member"
        assert "OXF-3002" in err
        reader.close()
        assert (await command(client, "group", "delete", "mail"))[:2] == (0, "1 deleted\n")
        assert (await command(client, "group", "delete", "mail"))[0] == 3
        assert await said(client, "group", "list") == []


@pytest.mark.timeout(180)
async def test_a_group_of_all_types_names_its_topics_only() -> None:
    async with grpc_cluster() as client:
        bus = client.event_bus().group("mail")
        await bus.subscribe_to_workflow_events("order", None, print)
        await bus.subscribe_to_workflow_events("bill", ["task.failed"], print)
        _, table, _ = await command(client, "group", "list")
        assert [" ".join(line.split()[:4]) for line in table.splitlines()[1:]] == [
            "mail/bill group bill (task.failed)",
            "mail/order group order 1",
        ]
        await bus.close()
