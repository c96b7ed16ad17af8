"""Handlers that start programs, in a worker whose streams are busy: every program begins (docs/decisions/0014)."""

from __future__ import annotations

import asyncio
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import onexflow
from support.programs import serving

pytestmark = pytest.mark.slow
pytest.importorskip("uvloop", reason="without it programs start by vfork, which disturbs nobody")

HANDLERS = """
    import asyncio

    import onexflow

    worker = onexflow.Worker("mine")


    @worker.effect("start", idempotent=True)
    async def start(contract):
        process = await asyncio.create_subprocess_exec("true")
        return await process.wait()
"""
#: By gRPC's own way to poll, which is the one that a fork disturbs; without the mend one in some twelve does not begin.
POLLING = {"GRPC_EXPERIMENTS": ""}
RUNS = 400


async def test_every_program_begins(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(textwrap.dedent(HANDLERS))
    listen = ("--listen", "127.0.0.1:0", "--store-url", "sqlite:programs.db")
    with serving("onex-orchestrator", *listen, cwd=tmp_path) as (_, line):
        address = line.rpartition(" ")[2]
        with serving("onex-worker", "mine", "--orchestrators", address, cwd=tmp_path, **POLLING):
            async with await onexflow.connect(address, timeout=20.0) as client:
                flow = onexflow.workflow("start")
                flow.effect("start", input="input")
                await client.register(flow.build())
                codes = await asyncio.gather(*(client.run("start", timeout=60.0) for _ in range(RUNS)))
    assert Counter(codes) == {0: RUNS}
