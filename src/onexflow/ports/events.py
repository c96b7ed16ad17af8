"""Event bus port: publish, consume and project events, as values. The engine answers (`engine.events`), and so does a client
over gRPC (`client.remote_events`); `engine.protocols.event_bus` makes the specification's objects of them.

What is delivered is what stands in the log, so every event has a position (shard, offset), is durable before anybody
sees it, and can be read again. Events of one run or stream come in order; between runs there is no order. A consumer
has at most `window` deliveries that it has not answered: one that is slow slows only itself.

Positions of a group are stored in the shards that they speak of. A reader whose position was cut away (tombstones) gets
OutOfRange with the earliest position, never silence. Errors: UnknownStream, UnknownTopic, UnknownGroup,
UnknownProjection, InvalidTransition, InvalidArgument, OutOfRange, Unavailable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, Protocol
from uuid import UUID

import msgspec

from onexflow.core.ids import DEFAULT_NAMESPACE, RunKey
from onexflow.core.payload import NULL, Failure, Payload
from onexflow.spi.exceptions import SPIError

#: Bytes of one state of a projection.
MAX_STATE: Final = 2 << 20


class Position(NamedTuple):
    """Where an event stands in the log. As text: "shard:offset"."""

    shard: int
    offset: int

    def __str__(self) -> str:
        return f"{self.shard}:{self.offset}"


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An event as the bus has it, of a run or of an external stream. `sequence` 0: the bus numbers it."""

    key: RunKey
    type: str  #: dotted
    sequence: int = 0
    event_id: UUID | None = None
    correlation_id: str = ""
    causation_id: str = ""
    correlation_chain: tuple[str, ...] = ()
    timestamp: int = 0  #: UTC ns
    source: str = ""
    idempotency_key: str = ""
    payload: Payload = NULL  #: a JSON object
    metadata: Payload = NULL  #: a JSON object


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """Append an event to the external stream `event.key`. `topic` "": that of the workflow type. `partition_key` "": the
    instance id. Idempotent by event id and by (stream, idempotency key)."""

    event: EventRecord
    topic: str = ""
    partition_key: str = ""


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """Durable. `created` is False when the very same event was there."""

    sequence: int
    position: Position
    topic: str
    partition: int
    created: bool


class EventStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a published event."""

    event: EventRecord
    position: Position
    topic: str
    partition: int
    #: Groups that have acknowledged it, that have not yet, and that gave it up (dead letters).
    acknowledged: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events: empty fields match all. A run's topic is its workflow type."""

    namespace: str = DEFAULT_NAMESPACE
    topics: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()  #: dotted


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An event for a consumer. `attempt` counts deliveries, from 1."""

    position: Position
    event: EventRecord
    topic: str
    partition: int
    partition_key: str
    attempt: int = 1


class Consume(msgspec.Struct, frozen=True, kw_only=True):
    """Take part in a group, or (`group` "") read for oneself alone.

    Members of a group share its events: those of one shard go to one member at a time. A group's positions are durable
    and outlive its members; `start` is for a group that is new. Who reads for himself and lost the connection goes on
    with `positions` (shard → next offset). What he buries is a dead letter of the group "".

    A group has one filter: who comes with another is told InvalidTransition. A projection's deliveries begin at its
    stored position whenever a shard comes to a member; its acks only open its window."""

    filter: Filter
    group: str = ""
    start: Literal["latest", "earliest"] = "latest"
    positions: dict[int, int] = {}
    window: int = 256
    #: Seconds (0.1 or more) after which a delivery that was not answered comes again; 0: only when its member is gone.
    ack_timeout: float = 60.0
    #: A delivery that has come so often is given up as a dead letter when it is rejected or lost again; 0: never.
    max_deliveries: int = 10
    #: The group is that of the projection of this name: positions move by `save_projection` alone.
    projection: bool = False


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The first word to a consumer: from where it reads (shard → next offset), and where the log ended then. `epochs`
    are the ownerships in which the shards were then: the version of the shard map that the positions were told under.

    An orchestrator that joins the parts of several owners (`engine.events.joined`) is told it again, of shards alone that
    have come to the owner since."""

    positions: dict[int, int]
    heads: dict[int, int]
    epochs: dict[int, int] = {}


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """All that matches before these positions (shard → next offset) has been delivered: told when a reader comes to the
    end of what is durable in a shard, so who waits for a head of `Begun` also knows when what lay before it did not
    match."""

    positions: dict[int, int]


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """These shards are another owner's now. Told to an orchestrator that joins the parts of several owners, never to a
    consumer: he does not see that a shard moves."""

    shards: tuple[int, ...]


Told = Begun | Sequence[Delivery] | Reached | Left | SPIError
#: Called on the event loop: once with Begun, then with deliveries and how far they go; an error is the last word.
ConsumeListener = Callable[[Told], None]
Done = Callable[[SPIError | None], None]


class Consumer(Protocol):
    """The engine's end of a consumer. All calls return at once."""

    def ack(self, positions: Sequence[Position], done: Done | None = None) -> None:
        """These are dealt with. `done` is called when that is durable."""

    def reject(self, position: Position, error: Failure, delay: float) -> None:
        """Not now: it comes again after `delay` seconds, or becomes a dead letter."""

    def bury(self, position: Position, error: Failure, done: Done | None = None) -> None:
        """Never: keep it as a dead letter and go on."""

    def close(self) -> None:
        """End; what was not acknowledged goes to other members, or comes again to the next one. Idempotent."""


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """A durable group, or a projection."""

    name: str
    filter: Filter
    projection: bool
    members: int
    positions: dict[int, int]
    #: Events of the log behind which it is (of any topic: an upper bound), and deliveries not answered.
    lag: int
    unanswered: int
    dead_letters: int


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    delivery: Delivery
    error: Failure
    at: int


class TopicView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    partitions: int
    created_at: int


class ProjectionState(msgspec.Struct, frozen=True, kw_only=True):
    """A projection's state of one run: all events of its shard before `offset`, its position, are in it. None: it has none.
    `head`: the shard's next durable offset at that moment, so `offset == head` says that nothing is missing."""

    state: Payload | None
    offset: int
    shard: int = 0
    head: int = 0


class EventService(Protocol):
    """One orchestrator's event bus."""

    async def publish_event(self, request: Publish) -> Published:
        """Numbers the event when it has no number. A number above the head is taken, with a gap; at or below it the same
        event changes nothing and another one raises InvalidTransition, as does any new event for a run, whose events its
        orchestrator alone writes."""

    async def read_events(
        self, key: RunKey, from_sequence: int = 1, to_sequence: int | None = None, limit: int = 1000
    ) -> Sequence[EventRecord]:
        """Events of a run or an external stream, both ends included, by their sequence numbers; empty beyond the head.
        Raises UnknownRun, OutOfRange."""

    async def find_event(self, namespace: str, event_id: UUID) -> EventStatus | None:
        """A published event by its id."""

    def consume(self, request: Consume, listener: ConsumeListener) -> Consumer: ...

    async def list_groups(self, namespace: str) -> Sequence[GroupView]: ...

    async def delete_group(self, namespace: str, name: str) -> bool:
        """Forget its positions and dead letters. Raises InvalidTransition while it has members."""

    async def list_dead_letters(self, namespace: str, group: str, limit: int = 100) -> Sequence[DeadLetter]: ...

    async def requeue_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int:
        """Deliver these (empty: all) to the group again; without a group, to those who read for themselves now and want
        them. How many: a letter whose event was cut out of its history stays."""

    async def discard_dead_letters(self, namespace: str, group: str, positions: Sequence[Position] = ()) -> int: ...

    async def create_topic(self, namespace: str, name: str, partitions: int) -> bool:
        """False when it exists."""

    async def delete_topic(self, namespace: str, name: str) -> bool:
        """Its consumers get UnknownTopic; what it had is not delivered by a later topic of that name. False when there is
        none. The events stay in their streams' histories."""

    async def list_topics(self, namespace: str) -> Sequence[TopicView]: ...

    async def save_projection(
        self, namespace: str, name: str, shard: int, expected: int, offset: int, states: dict[RunKey, Payload]
    ) -> None:
        """Store states and the position (the next offset to read) in one transaction, if the position is still
        `expected` (0 at first); else raises InvalidTransition: another one writes this projection. An empty payload
        (`Payload(b"")`) deletes a state."""

    async def load_projection(self, namespace: str, name: str, key: RunKey) -> ProjectionState:
        """Raises UnknownProjection for a name that was never registered."""

    async def reset_projection(self, namespace: str, name: str) -> None:
        """Forget its states and positions: its next consumer reads from the start. Its consumers are ended."""
