"""Requests letter for letter, as no client library would send them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

BODY = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}).encode()


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def kind(self) -> str:
        kind: str = json.loads(self.body)["error"]["type"]
        return kind


async def ask(
    port: int,
    line: str,
    *headers: str,
    host: str | None = "localhost",
    body: bytes = BODY,
    kind: str = "application/json",
) -> Answer:
    """One request letter for letter as given, on a connection of its own. The status is 0 when the server
    closes without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        hosts = () if host is None else (f"Host: {host}",)
        always = (f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close")
        head = "\r\n".join((f"{line} HTTP/1.1", *hosts, *always, *headers, "", ""))
        writer.write(head.encode("latin-1") + body)
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.transport.abort()
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    return Answer(int(head_bytes.split()[1]) if head_bytes else 0, rest)


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}"
