"""The outside world of `order_processing`: stock and money in one SQLite file.

Every entry carries the idempotency key of the effect that made it, and the key is unique: the second application of one
key changes nothing and gets the first one's entry. `calls` counts how often each key came, so that a test or a report
can tell "applied once" from "asked once".
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: What is in stock before the first reservation, and what one piece costs, in cents.
CATALOGUE: Final[dict[str, tuple[int, int]]] = {
    "KEYBOARD": (100_000, 59_99),
    "MOUSE": (100_000, 20_00),
    "MONITOR": (100_000, 249_00),
    "LAST-ONE": (1, 5_00),
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  idempotency_key TEXT PRIMARY KEY, kind TEXT NOT NULL, order_id TEXT NOT NULL, cents INTEGER NOT NULL,
  calls INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, available INTEGER NOT NULL CHECK (available >= 0));
"""


class OutOfStock(Exception):
    """Fewer pieces are left than were ordered."""


@dataclass(frozen=True)
class Entry:
    """What was done under an idempotency key. `first` is False when it had been done before."""

    reference: str
    cents: int
    first: bool


@dataclass(frozen=True)
class Totals:
    """What the ledger holds of one kind of entry: how many, how often asked for, and the sum of money."""

    entries: int
    calls: int
    cents: int


def default_path() -> Path:
    """`ONEXFLOW_LEDGER`, else a file beside the other local state."""
    return Path(os.environ.get("ONEXFLOW_LEDGER") or Path(".onexflow") / "ledger.sqlite")


class Ledger:
    """A ledger file, made at its first use. Safe for many threads and processes: each call is one transaction."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()

    def reserve(self, key: str, order_id: str, items: Iterable[tuple[str, int]]) -> Entry:
        """Take the pieces of an order out of stock, all or none. Raises OutOfStock."""
        with self._transaction() as db:
            if (done := _again(db, key)) is not None:
                return done
            for sku, quantity in items:
                db.execute(
                    "INSERT OR IGNORE INTO stock (sku, available) VALUES (?, ?)", (sku, CATALOGUE.get(sku, (0, 0))[0])
                )
                taken = db.execute(
                    "UPDATE stock SET available = available - ? WHERE sku = ? AND available >= ?",
                    (quantity, sku, quantity),
                )
                if taken.rowcount == 0:
                    raise OutOfStock(f"not enough {sku} in stock for {quantity}")
            return _write(db, key, "reservation", order_id, 0)

    def charge(self, key: str, order_id: str, cents: int) -> Entry:
        """Take the money of an order, once."""
        with self._transaction() as db:
            return _again(db, key) or _write(db, key, "charge", order_id, cents)

    def totals(self, kind: str) -> Totals:
        with self._transaction() as db:
            row = db.execute(
                "SELECT count(*), coalesce(sum(calls), 0), coalesce(sum(cents), 0) FROM entries WHERE kind = ?", (kind,)
            ).fetchone()
        return Totals(*row)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as db:
            # Not WAL: changing to it is refused at once, without waiting, while another connection is open.
            db.executescript(_SCHEMA)
            # IMMEDIATE: a reader that becomes a writer half-way would be refused instead of waiting its turn.
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _again(db: sqlite3.Connection, key: str) -> Entry | None:
    row = db.execute(
        "UPDATE entries SET calls = calls + 1 WHERE idempotency_key = ? RETURNING rowid, cents", (key,)
    ).fetchall()
    return Entry(reference=f"L-{row[0][0]}", cents=row[0][1], first=False) if row else None


def _write(db: sqlite3.Connection, key: str, kind: str, order_id: str, cents: int) -> Entry:
    cursor = db.execute(
        "INSERT INTO entries (idempotency_key, kind, order_id, cents) VALUES (?, ?, ?, ?)", (key, kind, order_id, cents)
    )
    return Entry(reference=f"L-{cursor.lastrowid}", cents=cents, first=True)
