"""The engine's end of the socket: never blocks a step, blocks only to wait for work. No torch."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

from perilune.engine.protocol import Command, Reply, command_reader, encode_frame

RECEIVE_BYTES = 1 << 20
MOST_UNSENT_BYTES = 64 * 1024 * 1024
"""A client that reads nothing stops the engine here instead of filling memory."""


class Closed(Exception):
    """The client's end is closed."""


class Wire:
    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._reader = command_reader()
        self._unsent = bytearray()

    def receive(self, *, wait: bool) -> list[Command]:
        """Commands that have arrived; with `wait` at least one. Raises Closed."""
        commands: list[Command] = []
        while True:
            self._flush()
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                if commands or not wait:
                    return commands
                self._wait(select.POLLIN | (select.POLLOUT if self._unsent else 0))
                continue
            except ConnectionError as error:
                raise Closed from error
            if not data:
                raise Closed
            commands += self._reader.feed(data)

    def send(self, replies: Sequence[Reply]) -> None:
        """Send now what the socket takes, the rest later. Raises Closed."""
        if not replies:
            return
        self._unsent += encode_frame(replies)
        self._flush()
        if len(self._unsent) > MOST_UNSENT_BYTES:
            self.drain()

    def drain(self) -> None:
        """Wait until everything is sent. Raises Closed."""
        while self._unsent:
            self._wait(select.POLLOUT)
            self._flush()

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._socket, events)
        poll.poll()

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise Closed from error
            del self._unsent[:sent]
