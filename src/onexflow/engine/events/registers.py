"""Going through registers, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from onexflow.engine.kernel import Kernel

#: States and dead letters may be as large as a message is.
PAGE: Final = 64


async def registers(kernel: Kernel, shard: int, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
    """(name, data) of the durable registers whose names begin with `prefix`."""
    after = ""
    while True:
        page = await kernel.store.list_registers(shard, prefix, after, PAGE)
        for register in page:
            yield register.name, register.data
        if len(page) < PAGE:
            return
        after = page[-1].name
