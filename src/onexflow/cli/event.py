"""`onexflow event`: who reads the event bus, and what was given up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, get_args

import cyclopts

from onexflow.cli.common import Common, connected
from onexflow.cli.output import short, when
from onexflow.codec.plain import payload
from onexflow.core.errors import InvalidArgument, UnknownGroup
from onexflow.ports.events import EventService, Filter, Position
from onexflow.spi.literals import LiteralWorkflowEventType

if TYPE_CHECKING:
    from onexflow.client import Client

_ALL_TYPES: Final = frozenset(get_args(LiteralWorkflowEventType))

app = cyclopts.App(name="event", help="The event bus: its groups and dead letters.")
group = cyclopts.App(name="group", help="Consumer groups and projections.")
dead_letter = cyclopts.App(name="dead-letter", help="Deliveries that were given up.")
app.command(group)
app.command(dead_letter)


@group.command(name="list")
async def groups(*, common: Common = Common()) -> None:
    """Every consumer group and projection: who is there, how far behind, what it gave up."""
    async with connected(common) as client:
        views = await _bus(client).list_groups(common.namespace)
    if common.out.json:
        for view in views:
            common.out.data(view)
        return
    rows = [
        (
            view.name,
            "projection" if view.projection else "group",
            _reads(view.filter),
            str(view.members),
            str(view.lag),
            str(view.unanswered),
            str(view.dead_letters),
        )
        for view in views
    ]
    columns = ("GROUP", "KIND", "READS", "MEMBERS", "LAG", "UNANSWERED", "DEAD")
    common.out.table(columns, rows, empty="No groups.")


@group.command
async def delete(name: str, /, *, common: Common = Common()) -> None:
    """Forget where a group stands and its dead letters, or a projection's states. The events stay in their histories.

    Parameters
    ----------
    name
        As `group list` shows it.
    """
    async with connected(common) as client:
        if not await _bus(client).delete_group(common.namespace, name):
            raise UnknownGroup(f"there is no group {name}", {"group": name})
    _say(common, name, "deleted", 1)


@dead_letter.command(name="list")
async def letters(group: str = "", /, *, limit: int = 100, common: Common = Common()) -> None:
    """What a group gave up, with the reason.

    Parameters
    ----------
    group
        Name of the group; left out, those who read for themselves.
    limit
        At most so many.
    """
    async with connected(common) as client:
        found = await _bus(client).list_dead_letters(common.namespace, group, limit)
    if common.out.json:
        for letter in found:
            common.out.data(letter)
        return
    rows = [
        (
            str(letter.delivery.position),
            letter.delivery.event.type,
            f"{letter.delivery.event.key.workflow_type}/{letter.delivery.event.key.instance_id}",
            str(letter.delivery.attempt),
            when(letter.at),
            short(f"{letter.error.type}: {letter.error.message}", 60),
            short(payload(letter.delivery.event.payload), 60),
        )
        for letter in found
    ]
    columns = ("POSITION", "TYPE", "OF", "DELIVERIES", "AT", "ERROR", "EVENT")
    common.out.table(columns, rows, empty="No dead letters.")


@dead_letter.command
async def requeue(group: str, /, *positions: str, all: bool = False, common: Common = Common()) -> None:
    """Deliver dead letters to their group again.

    Parameters
    ----------
    group
        Name of the group.
    positions
        Which, as `dead-letter list` shows them (SHARD:OFFSET).
    all
        All of the group's.
    """
    places = _places(positions, every=all)
    async with connected(common) as client:
        count = await _bus(client).requeue_dead_letters(common.namespace, group, places)
    _say(common, group, "requeued", count)


@dead_letter.command
async def discard(group: str, /, *positions: str, all: bool = False, common: Common = Common()) -> None:
    """Forget dead letters. The events stay in their histories.

    Parameters
    ----------
    group
        Name of the group.
    positions
        Which, as `dead-letter list` shows them (SHARD:OFFSET).
    all
        All of the group's.
    """
    places = _places(positions, every=all)
    async with connected(common) as client:
        count = await _bus(client).discard_dead_letters(common.namespace, group, places)
    _say(common, group, "discarded", count)


def _bus(client: Client) -> EventService:
    from onexflow.client.remote import RemoteService

    return RemoteService.of(client).events


def _say(common: Common, group: str, what: str, count: int) -> None:
    if common.out.json:
        common.out.data({"group": group, what: count})
    else:
        common.out.line(f"{count} {what}")


def _reads(where: Filter) -> str:
    """Its topics, and the types of events unless it takes all that workflows have."""
    topics = ", ".join(where.topics) or "*"
    if not where.event_types or set(where.event_types) == _ALL_TYPES:
        return topics
    return f"{topics} ({', '.join(where.event_types)})"


def _places(texts: Sequence[str], *, every: bool) -> list[Position]:
    if every == bool(texts):
        raise InvalidArgument("say which positions, or --all", field="positions")
    places = []
    for text in texts:
        shard, _, offset = text.partition(":")
        if not (shard.isdecimal() and offset.isdecimal()):
            raise InvalidArgument(f"{text!r} is no position: SHARD:OFFSET is needed", field="positions")
        places.append(Position(int(shard), int(offset)))
    return places
