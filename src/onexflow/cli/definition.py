"""`onexflow definition`: workflow definitions, checked and registered."""

from __future__ import annotations

import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

import cyclopts

from onexflow.cli.common import Common, connected
from onexflow.cli.inputs import read_text
from onexflow.cli.output import when
from onexflow.codec.plain import plain

if TYPE_CHECKING:
    from onexflow.core.definition import WorkflowDefinition

app = cyclopts.App(name="definition", help="Workflow definitions: check and register.")


@app.command(name="list")
async def list_(*, common: Common = Common()) -> None:
    """What is registered: types and versions."""
    async with connected(common) as client:
        found = await client.definitions()
    if common.out.json:
        for info in found:
            common.out.data({name: value for name, value in plain(info).items() if name != "created"})
        return
    rows = [
        (info.workflow_type, str(info.version), str(info.tasks), when(info.registered_at), info.hash[:12])
        for info in found
    ]
    common.out.table(("TYPE", "VERSION", "TASKS", "REGISTERED", "HASH"), rows, empty="No definitions.")


@app.command
def check(file: str, /, *, output: Literal["table", "json"] = "table") -> None:
    """Look for faults in a definition file, without a cluster. Every fault is named with its place.

    Example: onexflow definition check order.yaml

    Parameters
    ----------
    file
        YAML or JSON; - is standard input.
    output
        For people (table) or for programs (json).
    """
    from onexflow.cli.output import Output
    from onexflow.core.compiler import compile_graph

    out = Output(output)
    definition = _load(file)
    graph = compile_graph(definition)
    if out.json:
        out.data(
            {
                "workflow_type": definition.workflow_type,
                "version": definition.version,
                "tasks": len(definition.tasks),
                "hash": graph.hash,
            }
        )
    else:
        tasks = "1 task" if len(definition.tasks) == 1 else f"{len(definition.tasks)} tasks"
        out.line(f"{definition.workflow_type} version {definition.version}: {tasks}, no faults")


@app.command
def schema() -> None:
    """The JSON Schema of definition files, for editors.

    Example: onexflow definition schema > definition.schema.json
    """
    from onexflow.codec.definition_schema import schema_text

    sys.stdout.write(schema_text())


@app.command
async def register(file: str, /, *, common: Common = Common()) -> None:
    """Register a definition file. Registering the same again changes nothing.

    Example: onexflow definition register order.yaml

    Parameters
    ----------
    file
        YAML or JSON; - is standard input.
    """
    from onexflow.core.compiler import compile_graph

    definition = _load(file)
    compile_graph(definition)
    async with connected(common) as client:
        info = await client.register(definition)
    if common.out.json:
        common.out.data(info)
    else:
        common.out.line(f"{info.workflow_type} version {info.version}")
        if not info.created:
            common.out.note("It had been registered before.")


def _load(file: str) -> WorkflowDefinition:
    from onexflow.codec.definitions import load_definition

    text = read_text(file, "FILE")
    # JSON is YAML, but its errors are clearer when read as JSON.
    form: Literal["json", "yaml"] = (
        "json" if PurePath(file).suffix == ".json" or text.lstrip().startswith("{") else "yaml"
    )
    return load_definition(text.encode(), form)
