"""The life cycle of class nodes, as their workers tell it: a call to one that nobody has ready is refused, not kept.

A handler without a life cycle, and one whose workers are lost rather than shut down, is waited for as ever. What is known
of nodes that are gone lives in this process: after a restart a call to one waits until a worker serves it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from onexflow.core.errors import NodeNotReady
from onexflow.core.graph import Graph
from onexflow.engine.one_task import NODE_RUN, TASK
from onexflow.ports.client_link import NodeView
from onexflow.ports.registry import kind_of
from onexflow.ports.worker_link import HandlerInfo

if TYPE_CHECKING:
    from onexflow.engine.sessions import WorkerSession

#: Nodes that are gone and remembered; the oldest are forgotten first.
KEPT: Final = 1000
#: What is told when the workers of a node are in several states.
_FIRST: Final = ("initializing", "draining", "failed", "shutdown")


class Lifecycles:
    """What is known of class nodes that take no calls. `sessions` gives the streams that are open."""

    def __init__(self, sessions: Callable[[], Iterable[WorkerSession]]) -> None:
        self._sessions = sessions
        #: Nodes that nobody serves any more, and who did last.
        self._gone: OrderedDict[tuple[str, str], tuple[str, NodeView]] = OrderedDict()

    def joined(self, session: WorkerSession) -> None:
        """A worker serves its handlers, or their states have changed."""
        for key in session.infos:
            self._gone.pop(key, None)

    def left(self, session: WorkerSession) -> None:
        """A worker's stream has ended: by its own word, or else it is lost and may come back."""
        if session.hello is None or not (session.said_goodbye or session.is_draining):
            return
        for (role, name), info in session.infos.items():
            if info.state and not any(other.infos.get((role, name)) for other in self._sessions()):
                state = "failed" if info.state == "failed" else "shutdown"
                self._gone[role, name] = state, _view_of(session, info, state)
                if len(self._gone) > KEPT:
                    self._gone.popitem(last=False)

    def views(self) -> list[NodeView]:
        """The nodes that are gone, one entry each."""
        return [view for _, view in self._gone.values()]

    def state_of(self, role: str, name: str) -> str:
        """Why the node takes no calls; "" when it does, or when nothing is known against it."""
        found: set[str] = set()
        for session in self._sessions():
            info = session.infos.get((role, name))
            if info is None:
                continue
            if not info.state or (info.state == "ready" and not session.is_draining):
                return ""
            found.add("draining" if info.state == "ready" else info.state)
        if (role, name) in self._gone:
            found.add(self._gone[role, name][0])
        return next((state for state in _FIRST if state in found), "")

    def check(self, workflow_type: str, graph: Graph) -> None:
        """Raises NodeNotReady when a run of that type would be a call to a node that takes none."""
        if not workflow_type.startswith(NODE_RUN) or graph.names != (TASK,):
            return
        spec = graph.specs[0]
        state = self.state_of(spec.role, spec.handler)
        if state:
            raise NodeNotReady(
                f"{spec.role} node {spec.handler} is {state}, and no other worker serves it",
                {
                    "node_id": spec.handler,
                    "node_type": spec.role,
                    "current_state": state,
                    "required_state": "ready",
                },
            )


def _view_of(session: WorkerSession, info: HandlerInfo, state: str) -> NodeView:
    return NodeView(
        node_id=session.worker_id,
        kind=kind_of(info.role),
        incarnation=session.incarnation,
        address="",
        status=state,
        handlers=(info.name,),
        slots=0,
        running=0,
        connected=False,
        registered=False,
        version=session.hello.build_id if session.hello else "",
    )
