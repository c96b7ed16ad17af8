"""The orchestrator whose SQLite store gets no more pages than the file `max_page_count` says: a disk that is full, and
is not full any more, without one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from onexflow.app.orchestrator import main
from onexflow.ports.event_store import AppendOutcome, ShardAppend
from onexflow.storage.sqlite import SqliteStore

#: SQLite takes the size that it has for the least, so 1 means: not one page more.
PAGES = Path(os.environ.get("ONEXFLOW_CHAOS_FOLDER", ".")) / "max_page_count"
_append = SqliteStore.append
#: What was set so far.
_set: list[str] = []


async def _bounded(self: SqliteStore, batch: Sequence[ShardAppend]) -> AppendOutcome:
    if PAGES.exists() and (pages := PAGES.read_text()) not in _set[-1:]:
        await self.pragma(f"max_page_count={pages}")
        _set.append(pages)
    return await _append(self, batch)


if __name__ == "__main__":
    SqliteStore.append = _bounded  # type: ignore[method-assign]  # what this program is for
    sys.exit(main())
