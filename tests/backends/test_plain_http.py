"""The small client for endpoints without TLS, on real sockets: who waits for whom, and what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from perilune.backends.plain_http import HIGH_WATER, PlainSession

LENGTH = 20 * HIGH_WATER
"""More than the system's own buffers hold."""
PIECE = bytes(100)


class Endpoint:
    """Answers each request with LENGTH bytes in small chunks, as fast as they are taken."""

    def __init__(self) -> None:
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                self.sent = 0
                while self.sent < LENGTH:
                    writer.write(b"64\r\n%b\r\n" % PIECE * 1000)
                    self.sent += 1000 * len(PIECE)
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def session() -> AsyncIterator[tuple[PlainSession, Endpoint]]:
    endpoint = Endpoint()
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    there = PlainSession(f"http://127.0.0.1:{port}/v1", {}, connect_s=5, silence_s=5)
    try:
        yield there, endpoint
    finally:
        await there.close()
        server.close()


async def test_an_endpoint_waits_for_who_reads_it() -> None:
    async with session() as (there, endpoint), asyncio.timeout(20):
        response = await there.post(b"")
        sent = -1
        while sent != endpoint.sent:  # until it cannot go on
            sent = endpoint.sent
            await asyncio.sleep(0.1)
        assert sent < LENGTH
        assert sum(map(len, response._pieces)) < HIGH_WATER + 300_000
        size = 0
        while data := await response.readany():
            size += len(data)
        assert size >= LENGTH


async def test_an_idle_connection_keeps_nothing_of_its_last_answer() -> None:
    async with session() as (there, _), asyncio.timeout(20):
        first = await there.post(b"")
        while await first.readany():
            pass
        (connection,) = there._idle
        assert connection._pieces == []
        second = await there.post(b"")  # on the same connection
        assert len(there._all) == 1 and await second.readany()


async def test_what_was_not_read_of_an_answer_stays_its_own() -> None:
    """Its end has come, and the next answer comes on the same connection, before it is read."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (b"one", b"two"):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + body)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    there = PlainSession(url, {}, connect_s=5, silence_s=5)
    async with asyncio.timeout(20):
        first = await there.post(b"")
        while not first._ended:
            await first.next_change()
        second = await there.post(b"")
        assert [await second.readany(), await first.readany()] == [b"two", b"one"]
        assert len(there._all) == 1
        await there.close()
    server.close()
