"""`onexflow audit`: prove that a store's log tells one consistent story."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from onexflow.audit import Report
from onexflow.audit import audit as judge
from onexflow.audit.rules import RULES
from onexflow.cli.output import Output
from onexflow.core.address import without_password
from onexflow.core.errors import InvalidArgument


async def audit(
    store: str, /, *, output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"])] = "table"
) -> int:
    """Read a store, also while an orchestrator works on it, and check every rule of its log: no event is missing but what
    a tombstone tells of, epochs only rise, every transition is legal and every end final, each attempt is recorded
    once, snapshots are what their events make, and no open run is forgotten.

    Exit code 0: consistent; 1: it is not, and the findings are told.

    Parameters
    ----------
    store
        The store, as in the orchestrator's settings: sqlite:PATH or postgresql://user@host:port/database?schema=NAME.
        A password is best given in PGPASSWORD.
    output
        For people (table) or for programs (json).
    """
    report = await _read(store)
    out = Output(output)
    if out.json:
        out.data(report)
        return 0 if report.is_consistent else 1
    out.fields(
        (
            ("shards", f"{report.shards:,}"),
            ("runs", f"{report.runs:,} ({report.open_runs:,} open)"),
            ("queues and streams", f"{report.entities:,}"),
            ("events", f"{report.events:,} and {report.cut_events:,} that were cut"),
            ("snapshots compared", f"{report.snapshots:,}"),
        )
    )
    if report.is_consistent:
        out.line("consistent")
        return 0
    for finding in report.findings:
        out.line(str(finding))
    broken = sorted({finding.rule for finding in report.findings})
    sys.stderr.write(f"{report.violations:,} violations:\n" + "".join(f"  {rule}: {RULES[rule]}\n" for rule in broken))
    return 1


async def _read(store: str) -> Report:
    scheme, _, path = store.partition(":")
    if scheme in ("postgresql", "postgres"):
        return await _read_postgres(store)
    if scheme != "sqlite" or not path:
        shown = without_password(store)
        raise InvalidArgument(f"{shown!r} is neither sqlite:PATH nor postgresql://…", field="store")
    from onexflow.storage.sqlite.archive import SqliteArchive

    archive = SqliteArchive(path.removeprefix("//") or path)
    await archive.open()
    try:
        return await judge(archive)
    finally:
        archive.close()


async def _read_postgres(url: str) -> Report:
    from onexflow.app.adapters import postgres_store

    store = postgres_store(url, make=False)
    await store.open()
    try:
        return await judge(store)
    finally:
        await store.close()
