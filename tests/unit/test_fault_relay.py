"""The relay does what its docstring says: tests of other things stand on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from onexflow.testing.faults.relay import Relay


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    """A relay before a server that echoes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Relay(f"127.0.0.1:{port}") as relay:
        yield relay
    server.close()


async def _connect(relay: Relay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", relay.port)


async def _read(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(5):
        return await reader.readexactly(count)


async def _passes_nothing(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.05):
            await reader.readexactly(1)
    except TimeoutError:
        return True
    return False


async def test_it_relays_and_ends_with_its_peers(relay: Relay) -> None:
    reader, writer = await _connect(relay)
    data = b"x" * 3_000_000
    writer.write(data)
    assert await _read(reader, len(data)) == data
    assert (relay.connections, relay.taken) == (1, 1)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()


async def test_held_bytes_arrive_when_it_resumes(relay: Relay) -> None:
    reader, writer = await _connect(relay)
    writer.write(b"a")
    assert await _read(reader, 1) == b"a"
    relay.hold()
    writer.write(b"b")
    assert await _passes_nothing(reader)
    late_reader, late_writer = await _connect(relay)
    late_writer.write(b"c")
    relay.resume()
    assert await _read(reader, 1) == b"b"
    assert await _read(late_reader, 1) == b"c"
    writer.close()
    late_writer.close()


async def test_dropped_bytes_break_the_connection_when_it_resumes(relay: Relay) -> None:
    reader, writer = await _connect(relay)
    relay.drop("to_client")
    writer.write(b"a")
    assert await _passes_nothing(reader)
    relay.resume()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await _read(reader, 1)
    writer.close()
    reader, writer = await _connect(relay)
    writer.write(b"b")
    assert await _read(reader, 1) == b"b"
    writer.close()


async def test_delayed_bytes_come_later_and_in_order(relay: Relay) -> None:
    reader, writer = await _connect(relay)
    loop = asyncio.get_running_loop()
    relay.delay(0.05)
    began = loop.time()
    for number in range(20):
        writer.write(bytes([number]))
        await writer.drain()
    assert await _read(reader, 20) == bytes(range(20))
    assert 0.1 <= loop.time() - began < 1.0
    writer.close()


async def test_cut_connections_break_and_new_ones_are_served(relay: Relay) -> None:
    reader, writer = await _connect(relay)
    writer.write(b"a")
    await _read(reader, 1)
    relay.cut()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await _read(reader, 1)
    writer.close()
    reader, writer = await _connect(relay)
    writer.write(b"b")
    assert await _read(reader, 1) == b"b"
    writer.close()


async def test_the_connections_of_some_clients_can_be_cut(relay: Relay) -> None:
    reader, writer = await _connect(relay)
    other_reader, other_writer = await _connect(relay)
    for one in (writer, other_writer):
        one.write(b"a")
    await _read(reader, 1)
    await _read(other_reader, 1)
    assert relay.cut({writer.get_extra_info("sockname")[1]}) == 1
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await _read(reader, 1)
    other_writer.write(b"b")
    assert await _read(other_reader, 1) == b"b"
    other_writer.close()


async def test_refused_until_it_listens_again_on_its_port(relay: Relay) -> None:
    relay.hold()
    _, held = await _connect(relay)
    address = relay.address
    await relay.refuse()
    assert relay.connections == 0
    with pytest.raises(ConnectionRefusedError):
        await _connect(relay)
    relay.resume()
    await relay.listen()
    assert relay.address == address
    reader, writer = await _connect(relay)
    writer.write(b"a")
    assert await _read(reader, 1) == b"a"
    writer.close()
    held.close()
