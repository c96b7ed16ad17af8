"""`onexflow store`: whole stores."""

from __future__ import annotations

from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from onexflow.app.store_copy import copy_store, image_of
from onexflow.cli.output import Output

app = cyclopts.App(name="store", help="Whole stores.")


@app.command
async def copy(
    source: str,
    target: str,
    /,
    *,
    output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"])] = "table",
) -> None:
    """Copy a store into a new one, from SQLite to PostgreSQL or back, while no orchestrator works on it.

    Its log is audited before and after, everything is counted and hashed on both sides, and the copy gets its name only
    when all of that agrees. A password is best given in PGPASSWORD and not in the URL.

    Parameters
    ----------
    source
        The store, as in the orchestrator's settings: sqlite:PATH or postgresql://user@host:port/database?schema=NAME.
    target
        The new one. It must not exist.
    output
        For people (table) or for programs (json).
    """
    report = await copy_store(image_of(source), image_of(target))
    out = Output(output)
    if out.json:
        out.data(report)
        return
    rows = [(kind, f"{census.records:,}", census.hash) for kind, census in report.contents.items()]
    out.table(("COPIED", "COUNT", "HASH"), rows)
    out.line(f"{report.shards} shards, {report.audit.events:,} events: consistent")
