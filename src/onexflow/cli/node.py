"""`onexflow node`: the orchestrators and workers of the cluster."""

from __future__ import annotations

import dataclasses

import cyclopts

from onexflow.app import exits
from onexflow.cli.common import Common, connected
from onexflow.cli.output import when
from onexflow.core.errors import Unavailable, UnknownNode
from onexflow.ports.client_link import Health

app = cyclopts.App(name="node", help="The orchestrators and workers of the cluster.")


@app.command(name="list")
async def list_(*, common: Common = Common()) -> None:
    """Every process that the orchestrator knows, one line a role, and the guests: nodes that others registered."""
    async with connected(common) as client:
        nodes = await client.nodes()
    if common.out.json:
        for node in nodes:
            common.out.data(node)
        return
    rows = [
        (
            node.node_id,
            node.kind,
            node.status,
            node.health,
            "" if node.kind == "orchestrator" else "yes" if node.connected else "no",
            f"{node.running}/{node.slots}" if node.slots else "",
            node.address,
            when(node.started_at),
        )
        for node in nodes
    ]
    common.out.table(
        ("NODE", "KIND", "STATUS", "HEALTH", "CONNECTED", "BUSY", "ADDRESS", "STARTED"), rows, empty="No nodes."
    )


@app.command
async def show(node_id: str, /, *, common: Common = Common()) -> None:
    """One process: its roles, its handlers, what it does.

    Parameters
    ----------
    node_id
        Name of the node.
    """
    async with connected(common) as client:
        nodes = [node for node in await client.nodes() if node.node_id == node_id]
    if not nodes:
        raise UnknownNode(f"there is no node {node_id}", {"node": node_id})
    if common.out.json:
        for node in nodes:
            common.out.data(node)
        return
    for number, node in enumerate(nodes):
        if number:
            common.out.line("")
        common.out.fields(
            (
                ("node", node.node_id),
                ("kind", node.kind),
                ("status", node.status),
                ("health", node.health),
                ("connected", "" if node.kind == "orchestrator" else "yes" if node.connected else "no"),
                ("registered", "yes" if node.registered else "no"),
                ("busy", f"{node.running} of {node.slots}" if node.slots else ""),
                ("handlers", ", ".join(node.handlers)),
                ("address", node.address),
                ("started", when(node.started_at)),
                ("version", node.version),
                ("incarnation", node.incarnation),
            )
        )


@app.command
async def health(*, common: Common = Common()) -> int:
    """Each orchestrator of --address: whether it serves, and what is degraded. Exit code 4 when one does not serve."""
    from onexflow.client.channels import parse_addresses

    found = [(address, await _health_of(address, common)) for address in parse_addresses(common.address)]
    if common.out.json:
        for address, answer in found:
            common.out.data({"address": address, "serving": answer.serving, "details": answer.details})
    else:
        rows = [
            (
                address,
                "yes" if answer.serving else "no",
                "; ".join(f"{part}: {reason}" for part, reason in answer.details.items()) or "all well",
            )
            for address, answer in found
        ]
        common.out.table(("ORCHESTRATOR", "SERVES", "DETAILS"), rows, empty="No address.")
    return exits.OK if all(answer.serving for _, answer in found) else exits.UNAVAILABLE


async def _health_of(address: str, common: Common) -> Health:
    try:
        async with connected(dataclasses.replace(common, address=address)) as client:
            return await client.health()
    except Unavailable as error:
        return Health(serving=False, details={"no answer": str(error.context.get("cause", error))})


@app.command
async def drain(node_id: str, /, *, common: Common = Common()) -> None:
    """Tell a worker to finish what it has and to take nothing new.

    Parameters
    ----------
    node_id
        Name of the node.
    """
    async with connected(common) as client:
        changed = await client.drain(node_id)
    if common.out.json:
        common.out.data({"node_id": node_id, "changed": changed})
    else:
        common.out.line("draining")
        if not changed:
            common.out.note("Nothing to do: it was so already.")
