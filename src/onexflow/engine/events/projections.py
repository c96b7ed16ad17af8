"""Projections: states by run, stored in one transaction with the position up to which they are folded."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from onexflow.core.errors import InvalidArgument, InvalidTransition, Unavailable, UnknownProjection
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.events import names
from onexflow.engine.events.checks import check_key, check_names
from onexflow.engine.events.groups import Groups
from onexflow.engine.events.homes import Homes
from onexflow.engine.events.names import StateRecord
from onexflow.engine.events.reader import Reader
from onexflow.engine.events.registers import registers
from onexflow.engine.kernel import Kernel
from onexflow.engine.stream import stream_key
from onexflow.ports.events import MAX_STATE, ProjectionState

#: States that are forgotten in one append.
FORGOTTEN = 1000


class Projections:
    """Those among the groups that are projections."""

    def __init__(self, kernel: Kernel, groups: Groups, homes: Homes) -> None:
        self._kernel = kernel
        self._groups = groups
        self._homes = homes

    async def _known(self, namespace: str, name: str) -> Reader:
        if self._kernel.is_shared:
            check_names(namespace, name)
            reader = await self._groups.find(namespace, name)
        else:
            reader = self._groups.get(namespace, name)
        if reader is None or not reader.is_projection:
            raise UnknownProjection(f"no projection {name!r} was ever registered", {"projection": name})
        return reader

    async def save(
        self, namespace: str, name: str, shard: int, expected: int, offset: int, states: dict[RunKey, Payload]
    ) -> None:
        if not 0 <= shard < self._kernel.store.shards:
            raise InvalidArgument(f"there is no shard {shard}", field="shard")
        self._kernel.owned(shard)
        reader = await self._known(namespace, name)
        self._kernel.owned(shard)
        cursor = reader.cursors.get(shard)
        if cursor is None:
            raise Unavailable(
                f"projection {name!r} is not read in shard {shard} yet", {"projection": name, "shard": shard}
            )
        if cursor.saved == offset > expected and await self._is_stored(namespace, name, shard, states):
            await self._kernel.lane.durable()
            return  # a repeated call
        if max(1, cursor.saved) != max(1, expected):
            raise InvalidTransition(
                f"projection {name!r} is at {shard}:{cursor.saved}, not at {shard}:{expected}: another one writes it",
                {"projection": name, "current_state": str(cursor.saved), "required_state": str(expected)},
            )
        for key in states:
            check_key(key)
        for state in states.values():
            if len(state.data) > MAX_STATE:
                raise InvalidArgument(
                    f"a state has {len(state.data):,} bytes, the most are {MAX_STATE:,}", field="states"
                )
        owned = self._kernel.owned(shard)
        if not expected <= offset <= owned.durable:
            raise InvalidArgument(f"offset must be between {expected} and {owned.durable}", field="offset")
        assert reader.config is not None, "a projection is stored"
        for key, state in states.items():
            data = names.encode(StateRecord(reader.config.born, state)) if state.data else b""
            owned.put(names.state(namespace, name, key), data)
        reader.deliveries.saved(cursor, offset)
        await self._kernel.lane.durable()

    async def _is_stored(self, namespace: str, name: str, shard: int, states: Mapping[RunKey, Payload]) -> bool:
        owned = self._kernel.owned(shard)
        for key, state in states.items():
            data = await owned.register(self._kernel.store, names.state(namespace, name, key))
            stored = names.decode(data, StateRecord).state if data else Payload(b"")
            if stored != state:
                return False
        return bool(states)

    async def load(self, namespace: str, name: str, key: RunKey) -> ProjectionState:
        check_key(key)
        while True:
            reader = await self._known(namespace, name)
            assert reader.config is not None, "a projection is stored"
            shard = self._kernel.owned(await self._number_of(namespace, name, key))
            cursor = reader.cursors.get(shard.id)
            if cursor is None:
                raise Unavailable(f"projection {name!r} is not read in shard {shard.id} yet", {"projection": name})
            offset = cursor.saved
            data = await shard.register(self._kernel.store, names.state(namespace, name, key))
            if cursor.saved != offset or self._groups.get(namespace, name) is not reader:
                continue  # written meanwhile
            record = names.decode(data, StateRecord) if data else None
            if record is not None and record.born != reader.config.born:
                record = None
            head = shard.durable
            await self._kernel.lane.durable()
            return ProjectionState(
                state=record.state if record is not None else None, offset=max(1, offset), shard=shard.id, head=head
            )

    async def _number_of(self, namespace: str, name: str, key: RunKey) -> int:
        """In which shard the state of this run is, or would be: that of a stream is in the stream's shard."""
        run, stream = self._kernel.number_of(key), self._kernel.number_of(stream_key(key))
        if run == stream:
            return run
        held, register = self._kernel.shards.get(run), names.state(namespace, name, key)
        store = self._kernel.store
        state = await (held.register(store, register) if held is not None else store.get_register(run, register))
        if state:
            return run
        is_stream = await store.find_run(stream, stream_key(key).to_bytes()) is not None
        return stream if is_stream else run

    async def reset(self, namespace: str, name: str) -> None:
        """A new `born`: from then on nothing that is stored counts, and it can be forgotten at leisure."""
        if self._kernel.is_shared:
            await self._homes.wait_known("group", namespace, name)
        reader = await self._known(namespace, name)
        assert reader.config is not None, "a projection is stored"
        reader.end(
            InvalidTransition(
                f"projection {name!r} was reset",
                {"projection": name, "current_state": "reset", "required_state": "registered again"},
            )
        )
        born = max(self._kernel.now(), reader.config.born + 1)
        reader.standings.config = config = msgspec.structs.replace(reader.config, born=born)
        home = self._kernel.shard_of(names.home("group", namespace, name))
        home.put(names.group_config(namespace, name), names.encode(config))
        for cursor in reader.cursors.values():
            cursor.forget_open()
            cursor.next, cursor.begins, cursor.not_before = 1, 1, 0.0
            reader.deliveries.saved(cursor, 0)
        await self._kernel.lane.durable()
        await self.forget(namespace, name)

    async def forget(self, namespace: str, name: str) -> None:
        """Delete the stored states of that name which count no more."""
        for shard in list(self._kernel.shards.values()):
            count = 0
            async for register, _ in registers(self._kernel, shard.id, names.states(namespace, name)):
                # Looked at again: since the page was read, a state that counts may have come in its place.
                data = await shard.register(self._kernel.store, register)
                reader = self._groups.get(namespace, name)
                born = reader.config.born if reader is not None and reader.config is not None else None
                if shard.moved is not None:
                    break
                if data is None or names.decode(data, StateRecord).born == born:
                    continue
                shard.put(register, b"")
                self._kernel.lane.mark()
                count += 1
                if count % FORGOTTEN == 0:
                    await self._kernel.lane.durable()
        await self._kernel.lane.durable()
