"""What scenarios measured: samples by figure, the limits they were promised, and the table of both."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

#: What a limit is compared with: the worst sample, or the one that 99 of 100 are not above.
Which = Literal["max", "p99", "min"]
HEAD: Final = "| scenario | samples | figure | min | median | p99 | max | promised |\n|---|---|---|---|---|---|---|---|"


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest sample that this share of them is not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


@dataclass(frozen=True)
class Limit:
    """What was promised of a figure; `min` is a least value."""

    value: float
    which: Which = "max"

    def __str__(self) -> str:
        return f"{'>=' if self.which == 'min' else '<='} {self.value:,.4g}{' at p99' if self.which == 'p99' else ''}"

    def holds(self, samples: list[float]) -> bool:
        if self.which == "min":
            return min(samples) >= self.value
        return (max(samples) if self.which == "max" else percentile(samples, 0.99)) <= self.value


class Figures:
    """The samples of one scenario, over all of its rounds."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)
        self.limits: dict[str, Limit] = {}

    def add(self, figure: str, *values: float) -> None:
        """Samples of a figure. Calling it with none keeps the figure's place in the table."""
        self.samples[figure].extend(values)

    def promise(self, figure: str, value: float, which: Which = "max") -> None:
        """Say what its samples must not break. A figure without any sample breaks nothing: its scenario asserts that
        there are some, where there must be."""
        self.limits[figure] = Limit(value, which)

    def broken(self) -> list[str]:
        """The promises that do not hold, with what was seen."""
        return [
            f"{figure}: {limit} was promised, and {len(self.samples[figure])} samples go from"
            f" {min(self.samples[figure]):,.4g} over {percentile(self.samples[figure], 0.99):,.4g} at p99"
            f" to {max(self.samples[figure]):,.4g}"
            for figure, limit in self.limits.items()
            if self.samples.get(figure) and not limit.holds(self.samples[figure])
        ]

    def last(self, counts: Mapping[str, int]) -> str:
        """What was added since `counts` (of samples by figure), for the line of a round."""
        parts = []
        for figure, values in self.samples.items():
            new = values[counts.get(figure, 0) :]
            if len(new) == 1:
                parts.append(f"{figure} {new[0]:,.4g}")
            elif new:
                parts.append(f"{figure} {statistics.median(new):,.4g} (max {max(new):,.4g}, {len(new)})")
        return ", ".join(parts)

    def counts(self) -> dict[str, int]:
        return {figure: len(values) for figure, values in self.samples.items()}

    @classmethod
    def of(cls, rounds: Iterable[Mapping[str, float]]) -> Figures:
        """From rounds that gave one value a figure each."""
        figures = cls()
        for one in rounds:
            for figure, value in one.items():
                figures.add(figure, value)
        return figures


def table(results: Mapping[str, Figures]) -> str:
    """A row a figure: minimum, median, p99 and maximum of all its samples, and what was promised."""
    lines = [HEAD]
    for name, figures in results.items():
        for figure, values in figures.samples.items():
            if not values:
                continue
            shown = (min(values), statistics.median(values), percentile(values, 0.99), max(values))
            limit = figures.limits.get(figure, "")
            cells = " | ".join(f"{value:,.4g}" for value in shown)
            lines.append(f"| {name} | {len(values)} | {figure} | {cells} | {limit} |")
    return "\n".join(lines)
