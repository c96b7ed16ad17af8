"""ProtocolWorkflowPersistence: states, events, snapshots and clean-up."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey
from onexflow.engine.protocols import bus_records, checked, reading, records, saved_states
from onexflow.ports.client_link import RunService, RunView
from onexflow.ports.persistence import PersistenceService, StateRecord
from onexflow.spi.types import WorkflowEvent, WorkflowSnapshot, WorkflowState

PAGE = 1000


class RecordsService(RunService, Protocol):
    """What persistence stands on: an orchestrator, or one at the other end of a client."""

    @property
    def records(self) -> PersistenceService: ...


class WorkflowPersistence:
    """The specification's persistence, over an engine in this process or one at the other end of a client.

    The runs of an orchestrator are its own to write: their states and events can be confirmed and read here, and not
    changed. Under every other name stands an external stream, whose events and state are its user's. Every answer is
    durable. Errors: a store or a cluster that cannot be reached is HandlerInitializationError, to be tried again; one
    that has no room, and what was cut out of a history, is ProtocolHandlerError.
    """

    def __init__(self, service: RecordsService, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        self._records = service.records
        self._namespace = namespace
        self._definitions = reading.Definitions(service)

    async def save_workflow_state(self, workflow_type: str, instance_id: UUID, state: WorkflowState) -> bool:
        """Keep the state of an external stream. False when one of a higher sequence number is kept: nothing changes.

        The state of a run follows from its events: True when this is what it is (by name and sequence number), else
        InvalidProtocolStateError."""
        key = self._key(workflow_type, instance_id)
        return await self._records.save_state(saved_states.record_of(key, state))

    async def load_workflow_state(self, workflow_type: str, instance_id: UUID) -> WorkflowState | None:
        """A run as it stands, the saved state of an external stream, or None."""
        found = await self._records.load_state(self._key(workflow_type, instance_id))
        if found is None or isinstance(found, StateRecord):
            return None if found is None else saved_states.state_of(found)
        return await self._state_of(found)

    async def save_workflow_event(self, event: WorkflowEvent) -> bool:
        """Append to an external stream, numbered as the event bus does it; the very same event again changes nothing and
        is True, too. For a run anything but an event that it has raises InvalidProtocolStateError."""
        return await self._records.save_event(bus_records.record_of(event, self._namespace))

    async def load_workflow_events(
        self, workflow_type: str, instance_id: UUID, from_sequence: int = 0, to_sequence: int | None = None
    ) -> list[WorkflowEvent]:
        """The events from one sequence number to another, both ends in it; from 0 and from 1 both mean from the first.
        Empty for a name that nothing stands under, and beyond the last event.

        Raises OutOfRange (a ProtocolHandlerError), with `earliest` in the context, when the first of them were cleaned
        up."""
        key = self._key(workflow_type, instance_id)
        if from_sequence is not None:
            checked.whole(from_sequence, "from_sequence")
        if to_sequence is not None:
            checked.whole(to_sequence, "to_sequence")
        found: list[WorkflowEvent] = []
        wanted = max(1, from_sequence or 0)
        while to_sequence is None or wanted <= to_sequence:
            page = await self._records.load_events(key, wanted, to_sequence, PAGE)
            if not page:
                break
            found += (bus_records.event_of(event) for event in page)
            wanted = page[-1].sequence + 1
        return found

    async def create_snapshot(self, workflow_type: str, instance_id: UUID, sequence_number: int) -> bool:
        """Keep the run's state as it was after event `sequence_number`: what was decided later is not in it. False beyond
        the last event. Of an external stream its saved state is kept, if it is of that number, else False.

        Raises RegistryError for an unknown name, OutOfRange for a state that was before what a clean-up has left."""
        checked.whole(sequence_number, "sequence_number")
        return await self._records.create_snapshot(self._key(workflow_type, instance_id), sequence_number)

    async def load_snapshot(self, workflow_type: str, instance_id: UUID) -> WorkflowSnapshot | None:
        """The snapshot of the highest sequence number that was made, or None."""
        found = await self._records.load_snapshot(self._key(workflow_type, instance_id))
        if found is None or (found.view is None and found.record is None):
            return None
        state = await self._state_of(found.view) if found.view is not None else None
        if found.record is not None:
            state = saved_states.state_of(found.record)
        assert state is not None, "it has one of the two"
        return WorkflowSnapshot(
            workflow_type=state.workflow_type,
            instance_id=state.instance_id,
            sequence_number=state.sequence_number,
            state=state.state,
            context=state.context,
            tasks=state.tasks,
            created_at=records.moment(found.created_at),
            metadata=state.metadata,
        )

    async def cleanup_old_events(self, workflow_type: str, instance_id: UUID, before_sequence: int) -> int:
        """Keep a snapshot at `before_sequence - 1`, then delete the events strictly below `before_sequence`; how many went.

        The run goes on as if nothing had happened: it is rebuilt from its snapshot and what is left. Events that a
        consumer group or a projection has yet to read stay, and of an external stream those that its saved state does
        not cover. Raises RegistryError for an unknown name."""
        checked.whole(before_sequence, "before_sequence")
        return (await self._records.cut_history(self._key(workflow_type, instance_id), before_sequence)).deleted

    def _key(self, workflow_type: str, instance_id: UUID | str) -> RunKey:
        return checked.run_key(self._namespace, workflow_type, instance_id)

    async def _state_of(self, view: RunView) -> WorkflowState:
        return records.state_of(view, await self._definitions.of(view))
