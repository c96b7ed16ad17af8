"""What the bench measures of onexflow alone, each with goals of its own: footprint, open loop, saturation."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from . import footprint, open_loop, saturated, two
from .figures import Goal, shown, table
from .machine import Check, Form
from .rounds import PATIENCE
from .workloads import Onexflow


class Part(NamedTuple):
    """Its heading in the table, and what its figures are to be."""

    title: str
    goals: Mapping[str, Goal]


PARTS: Final = {
    "footprint": Part("W5 footprint", footprint.GOALS),
    "open": Part(f"open loop, runs of 3 tasks at {open_loop.SHARE:.0%} of the peak", open_loop.GOALS),
    "saturated": Part(f"saturated: W2 with {saturated.IN_FLIGHT:,} in flight", saturated.GOALS),
    "two": Part("two orchestrators on one PostgreSQL", two.GOALS),
}
#: Those that need a cluster that runs.
ON_CLUSTER: Final[dict[str, Callable[[Onexflow], Awaitable[dict[str, float]]]]] = {
    "open": open_loop.measure,
    "saturated": saturated.measure,
}


async def run(name: str, where: str, rounds: int, measure: Callable[[], Awaitable[dict[str, float]]]) -> str:
    """The table of so many rounds of the part. `where`: on which store, if that needs to be said."""
    part, form = PARTS[name], Form()
    fit: list[dict[str, float]] = []
    slow: list[dict[str, float]] = []
    while len(fit) < rounds and len(fit) + len(slow) < rounds * PATIENCE:
        before = Check.now()
        found = await measure()
        is_fit = form.was_fit(before, Check.now())
        (fit if is_fit else slow).append(found)
        said = ", ".join(f"{figure} {shown(value)}" for figure, value in found.items())
        sys.stderr.write(f"{name}: {said}{'' if is_fit else ': the machine was slow'}\n")
    lines = table(f"{part.title}{where and f', {where}'}", fit or slow, part.goals)
    if not slow:
        return lines
    fate = f"{len(slow)} thrown away" if fit else "all"
    return f"{lines}\n\nRounds in which the machine was slow: {fate}."
