"""The demo's report: what happened, as text for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from onexflow.examples.ledger import Totals

CARRIERS_SHOWN = 6


@dataclass
class Kill:
    """A worker that was killed, and what the histories say of it. Durations are milliseconds since the kill."""

    worker: str
    pid: int
    at: int
    interrupted: int = 0
    noticed_after: list[float] = field(default_factory=list)
    again_after: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Orders:
    taken: int
    completed: int
    failures: list[str]
    amount: float
    charges: Totals
    reservations: Totals


@dataclass(frozen=True)
class Report:
    orders: Orders
    kill: Kill
    flights: dict[str, Any]
    seconds: float
    processes: list[tuple[str, int, int]]

    def checks(self) -> list[tuple[bool, str]]:
        """What was promised, and whether it held."""
        orders, kill = self.orders, self.kill
        return [
            (orders.completed == orders.taken, f"all {orders.taken} orders completed"),
            (
                orders.charges.entries == orders.taken and orders.charges.cents == round(orders.amount * 100),
                f"{orders.charges.entries} charges in the ledger, one an order: {orders.amount:,.2f}",
            ),
            (orders.reservations.entries == orders.taken, f"{orders.reservations.entries} reservations, one an order"),
            (
                len(kill.again_after) == kill.interrupted,
                f"each of the {kill.interrupted} interrupted effects ran again elsewhere, under the same idempotency key",
            ),
            (bool(self.flights.get("departures")), f"{self._flights()} flights counted"),
        ]

    @property
    def held(self) -> bool:
        return all(held for held, _ in self.checks())

    def _flights(self) -> str:
        return f"{self.flights.get('departures', 0) + self.flights.get('cancelled', 0):,}"


def render(report: Report) -> str:
    """The whole report as plain text."""
    text = StringIO()
    console = Console(file=text, width=110, highlight=False, color_system=None)
    console.print("\n── What happened " + "─" * 60)
    for part in (_processes(report), _kill(report), _orders(report), _flights(report.flights)):
        console.print(part)
        console.print()
    for held, what in report.checks():
        console.print(f"  {'ok    ' if held else 'FAILED'}  {what}", markup=False)
    for failure in report.orders.failures[:5]:
        console.print(f"          {failure}", markup=False)
    console.print(f"\nDone in {report.seconds:.1f} s.")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _processes(report: Report) -> str:
    lines = ["Processes"]
    for name, pid, lives in report.processes:
        again = f"  (life {lives}: started again by the supervisor)" if lives > 1 else ""
        lines.append(f"  {name:<16} pid {pid}{again}")
    return "\n".join(lines)


def _kill(report: Report) -> str:
    kill = report.kill
    lines = [f"The kill: kill -9 {kill.pid} ({kill.worker}) in the middle of the work"]
    if kill.again_after:
        first, last = min(kill.again_after), max(kill.again_after)
        lines += [
            f"  its death was proven after   {min(kill.noticed_after):.0f} ms",
            f"  its first effect ran again   {first:.0f} ms after the kill, the last of {kill.interrupted} after {last:.0f} ms",
        ]
    else:
        lines.append(f"  interrupted: {kill.interrupted} effects")
    return "\n".join(lines)


def _orders(report: Report) -> str:
    orders = report.orders
    twice = orders.charges.calls - orders.charges.entries
    return "\n".join(
        (
            f"Orders: {orders.completed} of {orders.taken} completed, {orders.amount:,.2f} charged",
            f"  the ledger was asked to charge {orders.charges.calls} times and did so {orders.charges.entries} times"
            + (f": {twice} came twice and changed nothing" if twice else ""),
        )
    )


def _flights(figures: dict[str, Any]) -> Table:
    shown = Table(box=None, title="Flights from New York, January 2013", title_justify="left", pad_edge=False)
    shown.add_column("  carrier")
    for name in ("departures", "cancelled", "mean delay"):
        shown.add_column(name, justify="right")
    carriers = sorted(figures.get("carriers", {}).values(), key=lambda one: -one["departures"])
    for one in carriers[:CARRIERS_SHOWN]:
        shown.add_row(f"  {one['name']}", *_row(one))
    if rest := len(carriers) - CARRIERS_SHOWN:
        shown.add_row(f"  and {rest} more")
    shown.add_row("  all", *_row(figures))
    return shown


def _row(figure: dict[str, Any]) -> tuple[str, str, str]:
    mean = figure.get("mean_delay")
    return (
        f"{figure.get('departures', 0):,}",
        f"{figure.get('cancelled', 0):,}",
        "" if mean is None else f"{mean:.1f} min",
    )
