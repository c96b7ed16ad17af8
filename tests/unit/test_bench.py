"""What the bench makes of its measurements: shares, goals, arrivals, strace's summary, comparisons of stores."""

from __future__ import annotations

import asyncio
import itertools
import statistics

import pytest

from benchmarks.bench.figures import at_least, at_most, quantile, shown, table
from benchmarks.bench.open_loop import arrivals, offered
from benchmarks.bench.rounds import Rounds
from benchmarks.bench.syscalls import by_frequency, counts
from benchmarks.bench.workloads import Sample
from onexflow.testing.clock import virtual_time

SUMMARY = """\
strace: Process 4711 attached with 9 threads
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 55.01    0.120000         300       400       133 futex
 30.00    0.060000          10      6000           pwrite64
 14.99    0.030000         500        60           fdatasync
  0.00    0.000000           0         2           getpid
------ ----------- ----------- --------- --------- ----------------
100.00    0.210000          32      6462       133 total
"""


def test_a_share_of_a_distribution_is_a_value_of_it() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 51.0, 100.0, 100.0]
    assert quantile([7.0], 0.5) == 7.0


def test_a_goal_is_met_at_its_value_and_not_beyond() -> None:
    assert at_least(0.6).is_met(0.6)
    assert not at_least(0.6).is_met(0.59)
    assert at_most(1.5).is_met(1.5)
    assert not at_most(1.5).is_met(1.51)


@pytest.mark.parametrize(("value", "text"), [(0.456, "0.46"), (12.34, "12.3"), (12345.6, "12,346")])
def test_figures_are_shown_with_three_digits_or_more(value: float, text: str) -> None:
    assert shown(value) == text


def test_the_table_judges_the_median() -> None:
    rounds = [{"start, s": start, "memory": 100.0} for start in (0.7, 3.0, 0.9)]
    assert table("W5", rounds, {"start, s": at_most(1.0)}).splitlines() == [
        "| W5 | rounds | median (min-max) | goal | |",
        "|---|---|---|---|---|",
        "| start, s | 3 | 0.90 (0.70-3.00) | ≤ 1.00 | met |",
        "| memory | 3 | 100 (100-100) | | |",
    ]


def test_arrivals_come_at_the_rate_and_not_in_step() -> None:
    moments = list(arrivals(1000.0, 20.0))
    assert moments == sorted(moments)
    assert 19_000 < len(moments) < 21_000
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


@virtual_time
async def test_a_call_is_timed_from_when_it_was_due() -> None:
    """One that holds up the loop makes the next ones late, and that is theirs."""
    clock = asyncio.get_running_loop().time
    calls = 0

    async def one() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.5)

    taken = await offered(iter([0.0, 0.25, 2.0]), one, clock)
    assert calls == 3
    assert taken == [pytest.approx(0.5)] * 3
    late = await offered(iter([-1.0]), one, clock)
    assert late == [pytest.approx(1.5)]


def test_calls_are_read_from_the_summary_of_strace() -> None:
    found = counts(SUMMARY)
    assert found == {"futex": 400, "pwrite64": 6000, "fdatasync": 60, "getpid": 2}
    assert list(by_frequency(found).items()) == [
        ("pwrite64", 6000),
        ("futex", 400),
        ("fdatasync", 60),
        ("all others", 2),
    ]


def sample(workload: str, tasks: int, latency_ms: float = 0.0) -> Sample:
    return Sample(workload, tasks, 1.0, {"orchestrator": 50.0, "worker": 20.0, "client": 5.0}, [latency_ms] * 10)


def test_stores_are_compared_with_each_other_and_only_sqlite_with_the_probe() -> None:
    rounds = Rounds()
    rounds.samples = {
        "W2 chain": [{"onexflow": sample("W2 chain", 100), "postgres": sample("W2 chain", 50), "probe": sample("W2 chain", 200)}],
        "W4 latency": [{"onexflow": sample("W4 latency", 10, 2.0), "postgres": sample("W4 latency", 10, 3.0)}],
    }  # fmt: skip
    lines = rounds.table().splitlines()
    to_probe, to_sqlite = (lines.index(f"| workload | {head} | median (min-max) | goal | |") for head in (
        "ratio to the probe", "postgres: ratio to SQLite"))  # fmt: skip
    assert lines[to_probe + 2 : to_sqlite - 1] == [
        "| W2 chain | rate | 0.50 (0.50-0.50) | ≥ 0.40 | met |",
        "| W2 chain | CPU | 1.00 (1.00-1.00) | ≤ 3.00 | met |",
    ]
    assert lines[to_sqlite + 2 : to_sqlite + 5] == [
        "| W2 chain | rate | 0.50 (0.50-0.50) | ≥ 0.60 | not met |",
        "| W4 latency | p50 | 1.50 (1.50-1.50) | ≤ 1.60 | met |",
        "| W4 latency | p99 | 1.50 (1.50-1.50) | ≤ 1.60 | met |",
    ]
