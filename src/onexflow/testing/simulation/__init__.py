"""Simulation: a workflow in a cluster that is killed, frozen, cut off and lied to, on one loop in virtual time.

    report = simulate(worker, order, inputs=[{"order_id": n} for n in range(10)], seed=1, rounds=50)
    print(report)

Every round runs each input once, under faults that its seed chooses (`FAULTS`): orchestrators and workers die and come
back, streams break or fall silent, the store is slow, full, or loses writes and answers, etcd is away, clocks jump. What
must hold all the same:

- every run ends, as it does when nothing happens: in the same state, with the same result or class of error (or as `expect`
  says);
- no attempt of an effect is run twice, and none that is not idempotent runs on two workers at a time;
- the log is consistent (`onexflow.audit`), no deposed orchestrator has written to it, and the watchdog had nothing to repair.

The same seed gives the same round, what handlers draw from `random` included, so a failure is repeated by `seed=N, rounds=1`.
Handlers run on the loop, sync ones,
too: what they wait for in real time (sockets, threads) does not belong here; put a fake in its place.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from onexflow.core.builder import WorkflowBuilder
from onexflow.core.definition import WorkflowDefinition
from onexflow.testing.clock import run_virtual
from onexflow.testing.simulation.play import Ended, Play, Stage
from onexflow.testing.simulation.storm import FAULTS
from onexflow.worker.handlers import Worker

__all__ = ["FAULTS", "BrokenPromise", "Ended", "Report", "Round", "simulate"]

#: Real seconds that one round may take.
_PATIENCE: Final = 120.0


class BrokenPromise(AssertionError):
    """A round in which something did not hold. The message has the seed, what did not, and the faults."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What happened under one seed."""

    seed: int
    runs: int
    faults: Counter[str]
    executions: int  #: of handlers; one that was interrupted was run again
    resolved: int  #: effects of unknown outcome that a person had to decide; here they are run again
    events: int
    seconds: float  #: virtual
    fingerprint: str  #: of the log: the same for the same seed


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All rounds, none of which broke a promise."""

    rounds: Sequence[Round]

    @property
    def faults(self) -> Counter[str]:
        """How often each was done, in all rounds."""
        return sum((one.faults for one in self.rounds), Counter())

    def __str__(self) -> str:
        totals = {
            "rounds": len(self.rounds),
            "runs": sum(one.runs for one in self.rounds),
            "events": sum(one.events for one in self.rounds),
            "executions of handlers": sum(one.executions for one in self.rounds),
            "effects that a person had to resolve": sum(one.resolved for one in self.rounds),
            "virtual seconds": round(sum(one.seconds for one in self.rounds)),
            **{f"times: {name}": count for name, count in self.faults.most_common()},
        }
        return "\n".join(f"{count:10,} {name}" for name, count in totals.items())


def simulate(
    worker: Worker | Callable[[], Worker],
    workflow: WorkflowBuilder | WorkflowDefinition,
    inputs: Iterable[Any] = (None,),
    *,
    others: Iterable[WorkflowBuilder | WorkflowDefinition] = (),
    seed: int = 0,
    rounds: int = 10,
    faults: Iterable[str] = tuple(FAULTS),
    orchestrators: int = 3,
    workers: int = 2,
    expect: Callable[[Any, Ended], object] | None = None,
) -> Report:
    """Run `workflow` on each input, once a round, `rounds` times; the seeds are `seed` and those after it.

    `worker` has the handlers, or makes a worker that has: then each simulated process gets one of its own, with class
    nodes of its own. `others` are workflows that the runs start. `expect(input, ended)` raises, or returns something false that is not None,
    where an end is not as it should be; without it, the end of each run is compared with that of the same input in a round without
    faults. Returns the report when everything held; else raises BrokenPromise.
    Raises ValueError when there is nothing to play. Must not be called on a running event loop.
    """
    inputs = list(inputs)
    if not (inputs and rounds > 0 and orchestrators > 0 and workers > 0):
        raise ValueError("a simulation needs an input, a round, an orchestrator and a worker at least")
    if isinstance(worker, Worker) and any(handler.node is not None for handler in worker.handlers):
        raise ValueError(
            "this worker has class nodes, which have a life of their own: give a function that makes a worker"
        )
    stage = Stage(
        make_worker=worker if not isinstance(worker, Worker) else lambda: worker,
        definitions=[_built(workflow), *map(_built, others)],
        inputs=inputs,
        faults=_known(faults),
        orchestrators=orchestrators,
        workers=workers,
    )
    # Always the same one: how long it takes decides how long the storms last, and a seed is to say all of a round.
    calm = _played(Play(msgspec.structs.replace(stage, faults=()), 0))
    if calm.findings:
        raise BrokenPromise(_told(calm, calm.findings))
    return Report(rounds=[_round(stage, number, calm, expect) for number in range(seed, seed + rounds)])


def _round(stage: Stage, seed: int, calm: Play, expect: Callable[[Any, Ended], object] | None) -> Round:
    play = _played(Play(stage, seed, calm.seconds))
    findings = list(play.findings)
    for input, ended, expected in zip(stage.inputs, play.ends, calm.ends, strict=False):
        why = _differs(ended, expected) if expect is None else _misjudged(input, ended, expect)
        if why is not None:
            findings.append(f"the run of {input!r} ended as {ended}: {why}")
    if findings:
        raise BrokenPromise(_told(play, findings))
    return Round(
        seed=seed, runs=len(play.ends), faults=play.faults, executions=play.executions, resolved=play.resolved,
        events=play.events, seconds=play.seconds, fingerprint=play.fingerprint,
    )  # fmt: skip


def _played(play: Play) -> Play:
    before = random.getstate()
    random.seed(play.seed)  # what handlers draw there, and the ids of traces
    try:
        run_virtual(play.run(), _PATIENCE)
    except Exception as error:
        error.add_note(_told(play, ["the round could not be played"]))
        raise
    finally:
        random.setstate(before)
    return play


def _differs(ended: Ended, expected: Ended) -> str | None:
    """From the end without faults; of errors the class counts, as their words may name workers and times."""
    is_same = _essence(ended) == _essence(expected)
    return None if is_same else f"without faults it ends as {expected}"


def _essence(ended: Ended) -> tuple[str, Any, str]:
    return ended.state, ended.result, ended.error.type if ended.error is not None else ""


def _misjudged(input: Any, ended: Ended, expect: Callable[[Any, Ended], object]) -> str | None:
    try:
        answer = expect(input, ended)
    except Exception as error:  # noqa: BLE001 - whatever it trips over, the seed and the story must be told
        return repr(error)
    return "it is not as expected" if answer is not None and not answer else None


def _told(play: Play, findings: Sequence[str]) -> str:
    return "\n".join(
        [
            f"seed {play.seed}: {len(findings)} promises broken. Again: seed={play.seed}, rounds=1",
            *findings,
            "What was done:",
            *play.story,
        ]
    )


def _built(workflow: WorkflowBuilder | WorkflowDefinition) -> WorkflowDefinition:
    return workflow.build() if isinstance(workflow, WorkflowBuilder) else workflow


def _known(faults: Iterable[str]) -> Sequence[str]:
    chosen = tuple(faults)
    if unknown := sorted(set(chosen) - set(FAULTS)):
        raise ValueError(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    return chosen
