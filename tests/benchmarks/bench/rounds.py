"""Rounds of workloads, of onexflow and of the bare probe in turns, and the table of them with their ratios."""

from __future__ import annotations

import statistics
import sys
from typing import Final, NamedTuple

from .figures import Goal, at_least, at_most, quantile, verdict
from .machine import Check, Form
from .workloads import Load, Sample

#: Runs of a round: some seconds of onexflow, half a second of the probe, whose CPU time is read in ticks of 10 ms.
CALLS: Final = {"single": 20_000, "chain": 4_000, "fan": 100, "latency": 1_000}


class Comparison(NamedTuple):
    """What the ratios of one load's figures to another's are to be."""

    who: str
    to: str
    goals: dict[str, dict[str, Goal]]


_RATES: Final = ("W1 single", "W2 chain", "W3 fan")
COMPARISONS: Final = (
    Comparison(
        "onexflow",
        "probe",
        {
            "W1 single": {"rate": at_least(0.30)},
            "W2 chain": {"rate": at_least(0.40), "CPU": at_most(3.0)},
            "W3 fan": {"rate": at_least(0.15)},
            "W4 latency": {"p50": at_most(1.3), "p99": at_most(2.0)},
        },
    ),
    Comparison(
        "postgres",
        "onexflow",
        {
            **{workload: {"rate": at_least(0.6)} for workload in _RATES},
            "W4 latency": {"p50": at_most(1.6), "p99": at_most(1.6)},
        },
    ),
)
#: Rounds that are made at most for each that is wanted: those of a slow moment are thrown away.
PATIENCE: Final = 4
_NAMES: Final = {"probe": "the probe", "onexflow": "SQLite"}


class Rounds:
    """The samples of each workload, a dictionary a round: whose sample it is."""

    def __init__(self) -> None:
        self.samples: dict[str, list[dict[str, Sample]]] = {}
        self.thrown_away = 0
        self._form = Form()

    async def run(self, loads: dict[str, Load], workloads: list[str], rounds: int) -> None:
        """So many rounds of each. Who goes first changes from round to round."""
        left = dict.fromkeys(workloads, rounds)
        for number in range(rounds * PATIENCE):
            for workload in [name for name in workloads if left[name]]:
                order = list(loads) if number % 2 == 0 else list(reversed(loads))
                before = Check.now()
                pair = {name: await getattr(loads[name], workload)(CALLS[workload]) for name in order}
                shown = ", ".join(f"{name} {pair[name].rate:,.0f}/s" for name in loads)
                if not self._form.was_fit(before, Check.now()):
                    self.thrown_away += 1
                    sys.stderr.write(f"{workload}: {shown}: thrown away, the machine was slow\n")
                    continue
                left[workload] -= 1
                self.samples.setdefault(pair[order[0]].workload, []).append(pair)
                sys.stderr.write(f"{workload}: {shown}\n")

    def table(self) -> str:
        lines = [
            "| workload | rounds | who | tasks/s median (min-max) | p50 / p99 ms | CPU µs/task: orchestrator / worker / client | total |",
            "|---|---|---|---|---|---|---|",
        ]
        for workload, rounds in self.samples.items():
            lines += [_row(workload, name, [pair[name] for pair in rounds]) for name in rounds[0]]
        for comparison in COMPARISONS:
            ratios = [
                line for workload, rounds in self.samples.items() for line in _ratios(workload, rounds, comparison)
            ]
            if ratios:
                who = "" if comparison.who == "onexflow" else f"{comparison.who}: "
                lines += ["", f"| workload | {who}ratio to {_NAMES[comparison.to]} | median (min-max) | goal | |"]
                lines += ["|---|---|---|---|---|", *ratios]
        lines += ["", f"Rounds thrown away because the machine was slow: {self.thrown_away}."]
        return "\n".join(lines)


def _row(workload: str, name: str, samples: list[Sample]) -> str:
    rates = [sample.rate for sample in samples]
    cpu = {key: statistics.median(sample.cpu_us[key] for sample in samples) for key in samples[0].cpu_us}
    total = statistics.median(_total(sample) for sample in samples)
    latencies = sorted(value for sample in samples for value in sample.latencies_ms)
    shown = f"{quantile(latencies, 0.5):.2f} / {quantile(latencies, 0.99):.2f}" if latencies else ""
    return (
        f"| {workload} | {len(samples)} | {name} | {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) "
        f"| {shown} | {cpu['orchestrator']:.0f} / {cpu['worker']:.0f} / {cpu['client']:.0f} | {total:.0f} |"
    )


def _ratios(workload: str, rounds: list[dict[str, Sample]], comparison: Comparison) -> list[str]:
    who, to, goals = comparison
    if not {who, to} <= rounds[0].keys():
        return []
    lines = []
    for figure, goal in goals[workload].items():
        found = [_figure(figure, pair[who]) / _figure(figure, pair[to]) for pair in rounds]
        ratio = statistics.median(found)
        lines.append(
            f"| {workload} | {figure} | {ratio:.2f} ({min(found):.2f}-{max(found):.2f}) {verdict(ratio, goal)}"
        )
    return lines


def _figure(figure: str, sample: Sample) -> float:
    if figure == "rate":
        return sample.rate
    if figure == "CPU":
        return _total(sample)
    return quantile(sample.latencies_ms, 0.5 if figure == "p50" else 0.99)


def _total(sample: Sample) -> float:
    return sum(sample.cpu_us.values())
