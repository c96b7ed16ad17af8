"""The user's handlers as a simulated worker serves them: they take virtual time, and who ran what is written down."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec

from onexflow.worker.context import Context
from onexflow.worker.handlers import Handler, Worker

#: Most handlers are quick; the others are there for faults to hit them in the middle.
_SLOW_SHARE: Final = 0.4
_QUICK_SECONDS: Final = 0.01
_SLOW_SECONDS: Final = 3.0

#: An effect of a run: (run, task, item).
_Effect = tuple[str, str, int]


class Ledger:
    """Who ran which effect. `findings`: what must not have happened."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self.executions = 0
        #: How often each attempt of an effect was begun, by its token.
        self.begun: Counter[str] = Counter()
        #: Workers that run an effect which is not idempotent.
        self._running: dict[_Effect, set[str]] = {}

    def begin(self, worker: str, handler: Handler, ctx: Context) -> _Effect:
        effect = (f"{ctx.workflow_type}/{ctx.instance_id}", ctx.task, ctx.item)
        self.executions += 1
        if handler.role == "effect":
            self.begun[ctx.token] += 1
            if self.begun[ctx.token] > 1:
                self.findings.append(f"attempt {ctx.token} of effect {ctx.task} was run twice")
            if not handler.idempotent:
                running = self._running.setdefault(effect, set())
                if running:
                    self.findings.append(f"effect {ctx.task} of {effect[0]} runs on {worker} and on {min(running)}")
                running.add(worker)
        return effect

    def end(self, worker: str, effect: _Effect) -> None:
        self._running.get(effect, set()).discard(worker)

    def died(self, worker: str) -> None:
        """What it runs is no execution any more, though its clean-up may take a while here."""
        for running in self._running.values():
            running.discard(worker)


def simulated(worker: Worker, name: str, ledger: Ledger, chance: Random) -> Worker:
    """A worker of that name with the same handlers. Sync ones run on the loop, at once: there are no threads in virtual
    time. Orchestrations are as they are, since they wait for calls already."""
    copy = Worker(name)
    for handler in worker.handlers:
        served = handler if handler.role == "orchestrator" else _recorded(handler, name, ledger, chance)
        copy._handlers[handler.role, handler.name] = served  # noqa: SLF001 - a copy of what it was given
    return copy


def _recorded(handler: Handler, worker: str, ledger: Ledger, chance: Random) -> Handler:
    function: Callable[..., Any] = handler.function
    takes_context = handler.takes_context
    may_repeat = handler.role != "effect" or handler.idempotent

    @functools.wraps(function)
    async def run(contract: Any, ctx: Context) -> Any:
        effect = ledger.begin(worker, handler, ctx)
        try:
            await _work(chance)
            answer = function(contract, ctx) if takes_context else function(contract)
            answer = await answer if inspect.isawaitable(answer) else answer
            if may_repeat:  # else it must not have happened when its worker dies: that is what the person says
                await _work(chance)
            return answer
        finally:
            ledger.end(worker, effect)

    return msgspec.structs.replace(handler, function=run, is_async=True, takes_context=True)


async def _work(chance: Random) -> None:
    slow = chance.random() < _SLOW_SHARE
    await asyncio.sleep(chance.uniform(0, _SLOW_SECONDS if slow else _QUICK_SECONDS))
