"""One request and its answer on a real socket, from an app that says just what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from perilune.api.connections import Connection
from perilune.api.exchange import Exchange, exchange_of
from perilune.api.http import ClientGone, header, read_json_body
from perilune.api.listen import listen
from perilune.api.presence import ClientPresent

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server of this app."""
    config = uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], functools.partial(Connection, most=10)),
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
    )
    server = uvicorn.Server(config)
    listener = listen("127.0.0.1", 0)
    running = asyncio.create_task(server._serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        server.should_exit = True
        await running
        listener.close()


def answering(*messages: dict[str, Any]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def read(reader: asyncio.StreamReader, end: bytes) -> bytes:
    async with asyncio.timeout(10):
        return await reader.readuntil(end)


async def test_an_answer_of_known_length_leaves_the_connection_open() -> None:
    app = answering(start((b"content-length", b"4")), body(b"ab", more=True), body(b"cd"))
    async with served(app) as (reader, writer):
        for _ in range(3):
            writer.write(GET)
            assert await read(reader, b"abcd") == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd"


async def test_an_answer_of_unknown_length_comes_in_chunks() -> None:
    app = answering(start(), body(b"ab", more=True), body(b"", more=True), body(b"c"))
    async with served(app) as (reader, writer):
        writer.write(GET)
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        assert await read(reader, b"0\r\n\r\n") == head + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"


@pytest.mark.parametrize("method, status", [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_answers_that_have_no_body(method: bytes, status: int) -> None:
    async with served(answering(start(status=status), body(b""))) as (reader, writer):
        for _ in range(2):  # what followed the head would be taken for the next answer
            writer.write(GET.replace(b"GET", method))
            answer = await read(reader, b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 %d " % status) and b"chunked" not in answer


async def test_a_head_request_gets_the_length_and_nothing_else() -> None:
    async with served(answering(start((b"content-length", b"4")), body(b"abcd"))) as (reader, writer):
        for _ in range(2):
            writer.write(GET.replace(b"GET", b"HEAD"))
            assert (await read(reader, b"\r\n\r\n")).endswith(b"content-length: 4\r\n\r\n")


@pytest.mark.parametrize(
    "request_head", [GET.replace(b"1.1", b"1.0"), GET[:-2] + b"Connection: close\r\n\r\n"]
)
async def test_who_asks_for_the_end_gets_it(request_head: bytes) -> None:
    async with served(answering(start((b"content-length", b"1")), body(b"x"))) as (reader, writer):
        writer.write(request_head)
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert answer.endswith(b"connection: close\r\n\r\nx")


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"])
async def test_no_header_makes_another(value: bytes) -> None:
    async with served(answering(start((b"x-told", value)), body(b"secret"))) as (reader, writer):
        writer.write(GET)
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 500 ") and b"x-told" not in answer and b"secret" not in answer


@pytest.mark.parametrize("sent", [b"abc", b"abcde"])
async def test_an_answer_that_breaks_its_promised_length_ends_the_connection(sent: bytes) -> None:
    async with served(answering(start((b"content-length", b"4")), body(sent))) as (reader, writer):
        writer.write(GET)
        async with asyncio.timeout(10):
            assert sent not in await reader.read()


@pytest.mark.parametrize("wrong", [[body(b"x")], [start(), start()], [start(), body(b""), body(b"more")]])
async def test_messages_out_of_order_are_refused(wrong: list[dict[str, Any]]) -> None:
    refused = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            for message in wrong:
                await send(message)
        except RuntimeError:
            refused.set()

    async with served(app) as (_, writer):
        writer.write(GET)
        async with asyncio.timeout(10):
            await refused.wait()


async def test_requests_that_do_not_wait_for_answers_are_answered_in_turn() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        data = scope["path"].encode()
        await asyncio.sleep(0.01)
        await send(start((b"content-length", b"%d" % len(data))))
        await send(body(data))

    async with served(app) as (reader, writer):
        writer.write(b"".join(b"GET /%d?q HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(5)))
        for number in range(5):
            await read(reader, b"\r\n\r\n/%d" % number)


async def test_a_body_is_read_in_one_piece_or_in_many() -> None:
    bodies: list[tuple[bytes, bool]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        assert exchange is not None
        was_whole = not exchange.more_body
        bodies.append((await read_json_body(scope, receive), was_whole))
        await send(start((b"content-length", b"1")))
        await send(body(b"."))

    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n"
    async with served(app) as (reader, writer):
        writer.write(head + b"\r\n{    }")
        await read(reader, b"\r\n\r\n.")
        writer.write(head + b"Expect: 100-continue\r\n\r\n")
        await read(reader, b"100 Continue\r\n\r\n")
        for piece in (b"{ ", b"  ", b" }"):
            writer.write(piece)
            await asyncio.sleep(0.02)
        await read(reader, b"\r\n\r\n.")
    assert bodies == [(b"{    }", True), (b"{    }", False)]


async def test_of_several_headers_of_one_name_the_first_counts() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told = b"%b %b" % (header(scope, b"x-a").encode(), header(scope, b"x-b").encode())
        await send(start((b"content-length", b"%d" % len(told))))
        await send(body(told))

    async with served(app) as (reader, writer):
        writer.write(GET[:-2] + b"X-A: 1\r\nx-a: 2\r\nX-a: 3\r\n\r\n")
        assert (await read(reader, b"\r\n\r\n1 ")).endswith(b"1 ")


async def test_who_leaves_ends_the_work_on_the_answer() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(ClientGone):
            with ClientPresent(scope, receive):
                began.set()
                await asyncio.Event().wait()
        ended.set()

    async with served(app) as (_, writer):
        writer.write(GET)
        async with asyncio.timeout(10):
            await began.wait()
            assert not ended.is_set()
            writer.transport.abort()
            await ended.wait()


async def test_who_leaves_with_a_second_request_under_way_ends_the_work_on_the_first() -> None:
    """Nothing is read meanwhile, so it is the writing that finds it out."""
    began, ended = asyncio.Event(), asyncio.Event()
    requests = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal requests
        requests += 1
        exchange = exchange_of(scope)
        assert exchange is not None
        await send(start())
        await send(body(b"x", more=True))
        began.set()
        with pytest.raises(ClientGone):
            with ClientPresent(scope, receive):
                while True:
                    exchange.write(b"x", more=True)
                    await asyncio.sleep(0.005)
        ended.set()

    async with served(app) as (_, writer):
        writer.write(GET)
        async with asyncio.timeout(10):
            await began.wait()
            writer.write(GET)
            await asyncio.sleep(0.05)  # the server reads it
            writer.transport.abort()
            await ended.wait()
    assert requests == 1


async def test_an_answered_request_is_gone_at_once_with_a_body_that_nobody_read() -> None:
    seen: list[weakref.ref[Exchange]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        assert exchange is not None
        seen.append(weakref.ref(exchange))
        await send(start((b"content-length", b"1")))
        await send(body(b"."))

    async with served(app) as (reader, writer):
        gc.disable()
        try:
            for _ in range(3):
                writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd")
                await read(reader, b"\r\n\r\n.")
            await asyncio.sleep(0.01)
            assert [one() is None for one in seen[:2]] == [True, True]  # the connection holds the last one
        finally:
            gc.enable()


async def test_who_has_left_before_is_noticed_too() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        assert exchange is not None
        with contextlib.suppress(ClientGone):
            with ClientPresent(scope, receive):
                await asyncio.Event().wait()
        assert exchange.disconnected
        with pytest.raises(ClientGone):
            with ClientPresent(scope, receive):
                entered.append(True)  # without a wait, in which the task would be told
        ended.set()

    entered: list[bool] = []
    async with served(app) as (_, writer):
        writer.write(GET)
        await asyncio.sleep(0.05)
        writer.transport.abort()
        async with asyncio.timeout(10):
            await ended.wait()
    assert not entered


async def test_on_another_server_a_client_that_leaves_is_noticed_as_well() -> None:
    """Whatever carries the app has no Exchange; it says by `receive` that the client has gone."""
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        async with asyncio.timeout(10):
            with ClientPresent({"type": "http"}, receive):
                asyncio.get_running_loop().call_later(0.01, gone.set)
                await asyncio.Event().wait()
    with ClientPresent({"type": "http"}, receive):
        pass
