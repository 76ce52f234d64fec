"""Both ends of a gateway under test, each as cheap as Python allows: a model endpoint, and the clients.

    python benchmarks/gateway_traffic.py endpoint       prints its port, serves until it is killed
    python benchmarks/gateway_traffic.py load PLAN      runs one Plan (as JSON), prints a Result (as JSON)

The endpoint does what the conversation asks for: `<wait=50 words=8 rate=0>` answers after 50 ms with 8 words,
`rate=50` sends 50 of them a second, each in its own write; 0 sends all at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httptools

WISH = re.compile(rb"<wait=(\d+) words=(\d+) rate=(\d+)>")
MODELS = b'{"object":"list","data":[{"id":"mock","object":"model","max_model_len":262144}]}'
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1764000000,"model":"mock",'
)
FIRST = CHUNK + b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
WORD = CHUNK + b'"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}\n\n'
LAST = CHUNK + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = '"choices":[],"usage":{"prompt_tokens":150,"completion_tokens":%d,"total_tokens":%d}}\n\n'
DONE = b"data: [DONE]\n\n"
PATIENCE_S = 300.0


# ---- the endpoint


class Endpoint(asyncio.Protocol):
    """One connection of a gateway, which asks for one answer after another."""

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpRequestParser(self)
        self._body = b""
        self._url = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        wish = WISH.search(self._body)
        if wish is None:
            self._transport.write(whole(MODELS))
            return
        wait, words, rate = map(int, wish.groups())
        streamed = b'"stream":true' in self._body or b'"stream": true' in self._body
        begin = self._stream if streamed else self._answer
        if wait:
            self._timer = asyncio.get_running_loop().call_later(wait / 1000, begin, words, rate)
        else:
            begin(words, rate)

    def _answer(self, words: int, rate: int) -> None:
        self._transport.write(whole(completion(words)))

    def _stream(self, words: int, rate: int) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        if not rate:
            self._transport.write(head + chunked(FIRST + WORD * words) + end(words))
            return
        self._transport.write(head + chunked(FIRST))
        self._next(words, words, time.perf_counter(), 1 / rate)

    def _next(self, left: int, words: int, due: float, pause: float) -> None:
        if left == 0:
            self._transport.write(end(words))
            return
        self._transport.write(WORD_CHUNK)
        due += pause  # held to the clock, so that a late timer does not slow the stream down
        delay = max(0.0, due - time.perf_counter())
        self._timer = asyncio.get_running_loop().call_later(delay, self._next, left - 1, words, due, pause)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WORD_CHUNK = chunked(WORD)


def end(words: int) -> bytes:
    usage = CHUNK + (USAGE % (words, 150 + words)).encode()
    return chunked(LAST + usage) + chunked(DONE) + b"0\r\n\r\n"


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def completion(words: int) -> bytes:
    message = {"role": "assistant", "content": "word " * words}
    usage = {"prompt_tokens": 150, "completion_tokens": words, "total_tokens": 150 + words}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "chatcmpl-0123456789", "object": "chat.completion", "created": 1764000000, "model": "mock"}
    return json.dumps({**head, "choices": [choice], "usage": usage}).encode()


async def serve_endpoint() -> None:
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ---- the clients


@dataclass(frozen=True)
class Plan:
    """What the clients of one measurement do."""

    port: int
    key: str = ""
    model: str = "mock"
    stream: bool = False
    wait_ms: int = 0
    words: int = 8
    rate: int = 0
    """Words a second of each stream; 0: all at once."""
    clients: int = 32
    """Connections, each of which asks again as soon as it was answered."""
    each: int = 100
    """Calls of each client."""
    per_second: float = 0.0
    """Not 0: an open loop of clients*each calls that arrive at random at this rate, whatever is answered."""
    watched: tuple[int, ...] = ()
    """Processes whose CPU time is taken from the first call to the last answer, with their children."""


@dataclass(frozen=True)
class Result:
    calls: int
    failed: int
    wall_s: float
    cpu_s: tuple[float, ...]
    """Of the watched processes."""
    own_cpu_s: float
    p50_ms: float
    p99_ms: float


class Client(asyncio.Protocol):
    """One connection to the server."""

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[bool] | None = None
        self._tail = b""
        self.status = 0
        """Of the last answer; 0: there was none."""
        self.gone = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[bool]:
        """Whether the whole answer came, and was one."""
        self._answered = asyncio.get_running_loop().create_future()
        self._tail, self.status = b"", 0
        self._transport.write(request)
        return self._answered

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-200:] if len(data) < 200 else data

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        well = self.status == 200
        streamed = self._tail.startswith(b"data: ") or b"\ndata: " in self._tail
        self._done(well and (not streamed or self._tail.endswith(DONE)))
        # One parser per answer: it takes no second message after one that asked to close.
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self._done(False)

    def close(self) -> None:
        self.gone = True
        self._transport.close()

    def _done(self, well: bool) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(well)


class Clients:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._request = request_bytes(plan)
        self._free: list[Client] = []
        self.times: list[float] = []
        self.failed = 0

    async def run(self) -> Result:
        plan = self._plan
        self._free = [await self._connect() for _ in range(plan.clients)]
        before, own = [tree_cpu(pid) for pid in plan.watched], time.process_time()
        began = time.perf_counter()
        await (self._open_loop() if plan.per_second else self._closed_loop())
        wall = time.perf_counter() - began
        used = tuple(tree_cpu(pid) - then for pid, then in zip(plan.watched, before, strict=True))
        own = time.process_time() - own
        for client in self._free:
            client.close()
        times = sorted(self.times) or [0.0]
        return Result(
            calls=plan.clients * plan.each,
            failed=self.failed,
            wall_s=wall,
            cpu_s=used,
            own_cpu_s=own,
            p50_ms=1000 * times[len(times) // 2],
            p99_ms=1000 * times[min(len(times) - 1, int(len(times) * 0.99))],
        )

    async def _closed_loop(self) -> None:
        clients = list(self._free)

        async def work(number: int, client: Client) -> None:
            if self._plan.rate:  # not all words at the same instant
                await asyncio.sleep(number / len(clients))
            for _ in range(self._plan.each):
                if not await self._ask(client, time.perf_counter()):
                    return

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(work(number, client) for number, client in enumerate(clients)))

    async def _open_loop(self) -> None:
        chance, tasks, due = random.Random(0), set(), time.perf_counter()
        for _ in range(self._plan.clients * self._plan.each):
            due += chance.expovariate(self._plan.per_second)
            if (delay := due - time.perf_counter()) > 0:
                await asyncio.sleep(delay)
            tasks.add(asyncio.create_task(self._arrive()))
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*tasks)

    async def _arrive(self) -> None:
        came = time.perf_counter()
        client = next((one for one in iter(self._next_free, None) if not one.gone), None)
        if client is None:
            client = await self._connect()
        if await self._ask(client, came):
            self._free.append(client)

    def _next_free(self) -> Client | None:
        """Servers close connections that were not used for some seconds."""
        return self._free.pop() if self._free else None

    async def _ask(self, client: Client, since: float) -> bool:
        well = await client.ask(self._request)
        self.times.append(time.perf_counter() - since)
        self.failed += not well
        return well

    async def _connect(self) -> Client:
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", self._plan.port)
        return client


def request_bytes(plan: Plan) -> bytes:
    """About 0.7 KB, as an agent's short question is."""
    wish = f"<wait={plan.wait_ms} words={plan.words} rate={plan.rate}>"
    messages = [
        {"role": "system", "content": "You are a careful assistant. " * 12},
        {"role": "user", "content": f"{wish} What does this function return?"},
    ]
    options = {"max_tokens": 1000, "stream": plan.stream}
    body = json.dumps({"model": plan.model, "messages": messages, **options}).encode()
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"host: 127.0.0.1:{plan.port}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *([f"authorization: Bearer {plan.key}"] if plan.key else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


# ---- processes


def tree_cpu(root: int) -> float:
    """CPU seconds, user and system, of a process and its living children."""
    return sum(_stat(pid)[1] for pid in tree(root))


def tree(root: int) -> list[int]:
    parents = {int(path.name): _stat(int(path.name))[0] for path in Path("/proc").glob("[0-9]*")}
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _stat(pid: int) -> tuple[int, float]:
    """(parent, CPU seconds); zeros for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return 0, 0.0
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    import uvloop

    if sys.argv[1] == "endpoint":
        uvloop.run(serve_endpoint())
    else:
        plan = Plan(**json.loads(sys.argv[2]))
        print(json.dumps(asdict(uvloop.run(Clients(plan).run()))))


if __name__ == "__main__":
    main()
