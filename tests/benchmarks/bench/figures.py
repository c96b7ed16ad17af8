"""Figures of several rounds: medians, shares of a distribution, and whether a goal is met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Goal(NamedTuple):
    """What a figure is to be: at least, or at most."""

    sign: str
    value: float

    def is_met(self, found: float) -> bool:
        return found >= self.value if self.sign == "≥" else found <= self.value


def at_least(value: float) -> Goal:
    return Goal("≥", value)


def at_most(value: float) -> Goal:
    return Goal("≤", value)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted values are below."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def shown(value: float) -> str:
    """With about three digits."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def verdict(found: float, goal: Goal | None) -> str:
    """The last two cells of a row."""
    if goal is None:
        return "| | |"
    return f"| {goal.sign} {shown(goal.value)} | {'met' if goal.is_met(found) else 'not met'} |"


def table(title: str, rounds: Sequence[Mapping[str, float]], goals: Mapping[str, Goal]) -> str:
    """The medians of what each round found, beside the goals."""
    lines = [f"| {title} | rounds | median (min-max) | goal | |", "|---|---|---|---|---|"]
    for name in rounds[0]:
        values = [found[name] for found in rounds]
        middle = statistics.median(values)
        spread = f" ({shown(min(values))}-{shown(max(values))})" if len(values) > 1 else ""
        lines.append(f"| {name} | {len(values)} | {shown(middle)}{spread} {verdict(middle, goals.get(name))}")
    return "\n".join(lines)
