"""Rounds of workloads, of onexflow and of the bare probe in turns, and the table of them with their ratios."""

from __future__ import annotations

import statistics
import sys
from typing import Final, NamedTuple

from .machine import fsync_ms, spin_ms
from .workloads import Load, Sample

#: Runs of a round.
CALLS: Final = {"single": 4000, "chain": 400, "fan": 10, "latency": 300}
#: What the ratio to the probe is to be (at least; of CPU and latencies at most).
GOALS: Final = {
    "W1 single": {"rate": 0.30},
    "W2 chain": {"rate": 0.40, "CPU": 3.0},
    "W3 fan": {"rate": 0.15},
    "W4 latency": {"p50": 1.3, "p99": 2.0},
}
#: A round is thrown away when the machine was slower by so much before or after it than it has been at its best.
SLOWER_CPU: Final = 1.25
SLOWER_DISK: Final = 3.0
#: Rounds that may be thrown away for each that is wanted.
PATIENCE: Final = 2


class Check(NamedTuple):
    """How fast the machine is."""

    spin: float
    fsync: float

    @classmethod
    def now(cls) -> Check:
        return cls(min(spin_ms() for _ in range(3)), fsync_ms())


class Rounds:
    """The samples of each workload, a dictionary a round: whose sample it is."""

    def __init__(self) -> None:
        self.samples: dict[str, list[dict[str, Sample]]] = {}
        self.thrown_away = 0
        self._best = Check.now()

    async def run(self, loads: dict[str, Load], workloads: list[str], rounds: int) -> None:
        """So many rounds of each. Who goes first changes from round to round."""
        left = dict.fromkeys(workloads, rounds)
        for number in range(rounds * PATIENCE):
            for workload in [name for name in workloads if left[name]]:
                order = list(loads) if number % 2 == 0 else list(reversed(loads))
                before = Check.now()
                pair = {name: await getattr(loads[name], workload)(CALLS[workload]) for name in order}
                shown = ", ".join(f"{name} {pair[name].rate:,.0f}/s" for name in loads)
                if not self._is_fit(before, Check.now()):
                    self.thrown_away += 1
                    sys.stderr.write(f"{workload}: {shown}: thrown away, the machine was slow\n")
                    continue
                left[workload] -= 1
                self.samples.setdefault(pair[order[0]].workload, []).append(pair)
                sys.stderr.write(f"{workload}: {shown}\n")

    def _is_fit(self, *checks: Check) -> bool:
        best = self._best
        self._best = Check(
            min(best.spin, *(one.spin for one in checks)), min(best.fsync, *(one.fsync for one in checks))
        )
        return all(
            one.spin <= self._best.spin * SLOWER_CPU and one.fsync <= self._best.fsync * SLOWER_DISK for one in checks
        )

    def table(self) -> str:
        lines = [
            "| workload | rounds | who | tasks/s median (min-max) | p50 / p99 ms | CPU µs/task: orchestrator / worker / client | total |",
            "|---|---|---|---|---|---|---|",
        ]
        for workload, rounds in self.samples.items():
            lines += [_row(workload, name, [pair[name] for pair in rounds]) for name in rounds[0]]
        if any(len(rounds[0]) > 1 for rounds in self.samples.values()):
            lines += ["", "| workload | ratio to the probe | median (min-max) | goal | |", "|---|---|---|---|---|"]
            for workload, rounds in self.samples.items():
                lines += _ratios(workload, rounds)
        lines += ["", f"Rounds thrown away because the machine was slow: {self.thrown_away}."]
        return "\n".join(lines)


def _row(workload: str, name: str, samples: list[Sample]) -> str:
    rates = [sample.rate for sample in samples]
    cpu = {key: statistics.median(sample.cpu_us[key] for sample in samples) for key in samples[0].cpu_us}
    total = statistics.median(_total(sample) for sample in samples)
    latencies = sorted(value for sample in samples for value in sample.latencies_ms)
    shown = f"{_at(latencies, 0.5):.2f} / {_at(latencies, 0.99):.2f}" if latencies else ""
    return (
        f"| {workload} | {len(samples)} | {name} | {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) "
        f"| {shown} | {cpu['orchestrator']:.0f} / {cpu['worker']:.0f} / {cpu['client']:.0f} | {total:.0f} |"
    )


def _ratios(workload: str, rounds: list[dict[str, Sample]]) -> list[str]:
    lines = []
    for figure, goal in GOALS[workload].items():
        found = [_figure(figure, pair["onexflow"]) / _figure(figure, pair["probe"]) for pair in rounds]
        ratio = statistics.median(found)
        sign, is_met = ("≥", ratio >= goal) if figure == "rate" else ("≤", ratio <= goal)
        lines.append(
            f"| {workload} | {figure} | {ratio:.2f} ({min(found):.2f}-{max(found):.2f}) | {sign} {goal:.2f} "
            f"| {'met' if is_met else 'not met'} |"
        )
    return lines


def _figure(figure: str, sample: Sample) -> float:
    if figure == "rate":
        return sample.rate
    if figure == "CPU":
        return _total(sample)
    return _at(sample.latencies_ms, 0.5 if figure == "p50" else 0.99)


def _total(sample: Sample) -> float:
    return sum(sample.cpu_us.values())


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
