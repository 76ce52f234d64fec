"""The engine's client: starts the engine process, speaks to it, never waits for a dead one.

Imports no torch. One client owns one process; when the process ends or the socket closes, every open
call raises EngineGone, and the owner starts a new client. Use it from one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

import perilune
from perilune.engine.protocol import (
    Abort,
    Check,
    Chunk,
    Command,
    EngineOptions,
    Failed,
    Generate,
    Ready,
    Reply,
    Seen,
    Start,
    Stats,
    Vocabulary,
    encode_frame,
    reply_reader,
)
from perilune.errors import (
    CheckpointError,
    ConfigError,
    ContextTooLong,
    EngineError,
    EngineGone,
    InputError,
    NonFiniteLogits,
    PeriluneError,
)

CLOSE_GRACE_S = 5.0
"""How long close() waits for the process to end by itself before it is killed."""
LAST_WORDS_BYTES = 2000
_ERRORS = {
    kind.code: kind
    for kind in (CheckpointError, ConfigError, ContextTooLong, EngineError, InputError, NonFiniteLogits)
}


class EngineClient:
    """Made by `start`. Any number of `generate` calls may be open at once."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self.ready: Ready
        self._process = process
        self._stderr = stderr
        self._transport: asyncio.Transport
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Queue[Chunk | PeriluneError]] = {}
        self._checks: list[asyncio.Future[Stats]] = []
        self._started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._death: EngineGone | None = None
        self._lost = asyncio.Event()

    @classmethod
    async def start(cls, options: EngineOptions, vocabulary: Vocabulary) -> EngineClient:
        """Start a process and wait until its model is loaded.

        Raises CheckpointError, ConfigError or EngineError as the engine said, EngineGone if it said nothing.
        """
        ours, theirs = socket.socketpair()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the client
        try:
            process = _spawn(theirs, stderr)
        except BaseException:
            ours.close()
            stderr.close()
            raise
        finally:
            theirs.close()
        client = cls(process, stderr)
        try:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            client._transport, _ = await loop.create_connection(lambda: _Connection(client), sock=ours)
            client._send(Start(options=options, vocabulary=vocabulary))
            client.ready = await client._started
        except BaseException:
            ours.close()
            await client.close(grace_s=0)
            raise
        return client

    @property
    def gone(self) -> bool:
        """The process ended or is ending: no call can succeed any more."""
        return self._death is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def generate(
        self,
        *,
        prompt: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_ids: Sequence[int] = (),
        banned_ids: Sequence[int] = (),
        grammar: str | None = None,
        grammar_after_id: int | None = None,
        grammar_only_ids: Sequence[int] = (),
        cache_salt: str = "",
        media: Sequence[Seen] = (),
    ) -> AsyncIterator[Chunk]:
        """Chunks as they are sampled, the last one with `finish`. Closing the iterator aborts the call.

        Fields are those of protocol.Generate. Raises ContextTooLong, NonFiniteLogits, InputError (a bad
        grammar or option) and EngineGone.
        """
        call = Generate(
            id=next(self._ids),
            prompt=tuple(prompt),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop_ids=tuple(stop_ids),
            banned_ids=tuple(banned_ids),
            grammar=grammar,
            grammar_after_id=grammar_after_id,
            grammar_only_ids=tuple(grammar_only_ids),
            cache_salt=cache_salt,
            media=tuple(media),
        )
        arrived: asyncio.Queue[Chunk | PeriluneError] = asyncio.Queue()
        self._send(call)
        self._calls[call.id] = arrived
        try:
            while True:
                chunk = await arrived.get()
                if isinstance(chunk, PeriluneError):
                    raise chunk
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            # Still listed: the engine has not ended the call.
            if self._calls.pop(call.id, None) is not None and not self.gone:
                self._send(Abort(call.id))

    async def stats(self) -> Stats:
        """Counters, after the engine checked its own books. Raises EngineGone."""
        answer: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._send(Check())
        self._checks.append(answer)
        return await answer

    async def close(self, *, grace_s: float = CLOSE_GRACE_S) -> None:
        """End the process. Open calls raise EngineGone. Closing twice is harmless."""
        self._end(EngineGone("the engine was closed"))
        if hasattr(self, "_transport"):
            self._transport.abort()
            await self._lost.wait()
        try:
            await asyncio.to_thread(self._process.wait, grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._stderr.close()

    def _send(self, command: Command) -> None:
        if self._death is not None:
            raise _same(self._death)
        self._transport.write(encode_frame([command]))

    def _receive(self, reply: Reply) -> None:
        match reply:
            case Chunk(id=id, finish=finish):
                if (call := self._calls.get(id)) is not None:
                    call.put_nowait(reply)
                    if finish is not None:
                        del self._calls[id]
            case Failed(id=None):
                self._end(_error(reply))
            case Failed(id=int(id)):
                if (call := self._calls.pop(id, None)) is not None:
                    call.put_nowait(_error(reply))
            case Ready():
                self._started.set_result(reply)
            case Stats():
                answer = self._checks.pop(0)
                if not answer.done():
                    answer.set_result(reply)

    def _connection_lost(self) -> None:
        self._lost.set()
        if self._death is None:
            self._end(
                EngineGone(f"the engine process ended: {self._last_words()}", mend="send the call again")
            )

    def _last_words(self) -> str:
        """The last line the process wrote to stderr, for people."""
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, end - LAST_WORDS_BYTES))
        lines = self._stderr.read().decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "it was killed, or the machine ran out of memory"

    def _end(self, death: PeriluneError) -> None:
        """Mark the engine as gone and wake whoever waits for it."""
        if self._death is not None:
            return
        self._death = death if isinstance(death, EngineGone) else EngineGone(str(death))
        if not self._started.done():
            self._started.set_exception(death)
            # Read here in case nobody waits any more.
            self._started.exception()
        for call in self._calls.values():
            call.put_nowait(_same(self._death))
        self._calls.clear()
        for answer in self._checks:
            if not answer.done():
                answer.set_exception(_same(self._death))
        self._checks.clear()


class _Connection(asyncio.Protocol):
    """The socket's events, turned into the client's."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._reader = reply_reader()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._reader.feed(data)
        except msgspec.DecodeError as error:
            self._client._end(EngineGone(f"the engine sent what is no frame: {error}"))
            assert isinstance(self._transport, asyncio.Transport)
            self._transport.abort()
            return
        for reply in replies:
            self._client._receive(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client._connection_lost()


def _spawn(theirs: socket.socket, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    # -P: the working directory, which may be anybody's repository, is no place to import from.
    command = [sys.executable, "-P", "-m", "perilune.engine", str(theirs.fileno())]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=[theirs.fileno()],
            env=_environment(),
        )
    except OSError as error:
        raise EngineGone(f"the engine process could not be started: {error}") from error


def _environment() -> dict[str, str]:
    """Ours, and where this perilune lies when it runs from a source tree."""
    env = dict(os.environ)
    root = Path(perilune.__file__).parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    return env


def _error(failed: Failed) -> PeriluneError:
    kind = _ERRORS.get(failed.code, EngineError)
    return kind(failed.message, field=failed.field, mend=failed.mend)


def _same(error: PeriluneError) -> PeriluneError:
    """A fresh instance for each waiter: a raised exception carries its own traceback."""
    return type(error)(error.message, field=error.field, mend=error.mend)
