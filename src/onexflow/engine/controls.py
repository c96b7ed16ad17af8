"""Control calls: what people and orchestrations tell a run from outside, answered when it is durable.

A call that is repeated under its request id gets the first answer (`engine.answers`).
"""

from __future__ import annotations

from onexflow.core.commands import AssignRun, CancelRun, Command, PauseRun, ResolveItem, ResumeRun
from onexflow.core.errors import InvalidArgument, UnknownTask
from onexflow.engine.answers import Answers
from onexflow.engine.gathering import Gatherer
from onexflow.engine.kernel import Kernel
from onexflow.engine.node_book import NodeBook
from onexflow.engine.pins import Pins
from onexflow.engine.queries import Queries
from onexflow.engine.readiness import Readiness
from onexflow.engine.run import Run
from onexflow.ports.client_link import ControlOutcome, ControlRequest


class Controls:
    """Of one orchestrator."""

    def __init__(
        self,
        kernel: Kernel,
        readiness: Readiness,
        queries: Queries,
        gatherer: Gatherer,
        pins: Pins,
        nodes: NodeBook,
    ) -> None:
        self._kernel = kernel
        self._readiness = readiness
        self._queries = queries
        self._gatherer = gatherer
        self._pins = pins
        self._nodes = nodes
        self._answers = Answers(kernel.store)

    async def control(self, request: ControlRequest) -> ControlOutcome:
        """Decide it. Raises what the decision raises, and UnknownRun."""
        if self._readiness.lost is not None:
            raise self._readiness.lost
        shard = self._kernel.shard_of(request.key)
        before = self._answers.recent(request) or await self._answers.stored(shard, request)
        run = await self._kernel.find(request.key)  # nothing is awaited from here to the decision
        self._gatherer.let_go(run)  # its results came before
        before = before or self._answers.recent(request)
        if before is not None:
            await self._queries.durable(request.key)
            return before
        command = self._command(run, request)
        meta = {"principal": request.principal} if request.principal else None
        turn = self._kernel.decide(run, command, meta)
        state = run.state
        outcome = ControlOutcome(changed=bool(turn.events), state=state.status, sequence=state.seq)
        if self._answers.keep(run.shard, request, outcome):
            self._kernel.lane.mark()
        await self._kernel.lane.durable(run.shard)
        if request.action == "assign" and outcome.changed:
            await self._pins.mirror(request.key)
        return outcome

    def _command(self, run: Run, request: ControlRequest) -> Command:
        match request.action:
            case "pause":
                return PauseRun(request.reason, request.principal)
            case "resume":
                return ResumeRun(request.reason)
            case "cancel":
                return CancelRun(request.reason)
            case "assign":
                if request.node_id:
                    self._nodes.check_known(request.node_id)
                return AssignRun(request.node_id)
            case "resolve":
                task = run.graph.index.get(request.task)
                if task is None:
                    raise UnknownTask(
                        f"workflow {run.key.workflow_type} has no task {request.task!r}",
                        {"task": request.task, "known": list(run.graph.names[:20])},
                    )
                if sum((request.retry, request.result is not None, bool(request.fail))) != 1:
                    raise InvalidArgument("say one of retry, result and fail", field="resolution")
                return ResolveItem(task, request.item, request.retry, request.result, request.fail)
