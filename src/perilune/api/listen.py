"""Takes a port, or says clearly why it cannot be had."""

from __future__ import annotations

import errno
import socket

from perilune.errors import ConfigError

BACKLOG = 2048
NEXT_PORTS = 50
"""How many ports after the wanted one are tried before the system chooses."""


def listen(host: str, port: int, *, any_port: bool = False, field: str = "port") -> socket.socket:
    """A listening socket; who connects before the server runs is answered once it does.

    With `any_port`, a port that is taken is replaced by the next free one. Raises ConfigError; `field` is
    the setting that it names."""
    flag = f"--{field.replace('_', '-')}"
    family, address = _resolve(host, port)
    wanted = [port, *range(port + 1, min(port + 1 + NEXT_PORTS, 65536)), 0] if any_port and port else [port]
    for number in wanted:
        taken = _try_listen(family, (address, number))
        if taken is not None:
            return taken
    raise ConfigError(
        f"{port} on {host} is taken by another program",
        field=field,
        mend=f"stop that program, or choose another with {flag} {port + 1}"
        + (" (--port 0 takes any free one)" if field == "port" else ""),
    )


def root_url(listener: socket.socket, scheme: str = "http") -> str:
    """`SCHEME://ADDRESS:PORT` as a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{host!r} is no address of this machine", field="host", mend="use 127.0.0.1 or 0.0.0.0"
        ) from error
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _try_listen(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket | None:
    """None when the port is taken. Raises ConfigError when it may not be had at all."""
    # asyncio turns off the delay of small packets only where it is told the protocol.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Lets a restart take the port of connections that are still closing; never a port in use.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setblocking(False)
        taken.bind(address)
        taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            return None
        field = "port" if error.errno == errno.EACCES else "host"
        raise ConfigError(
            f"cannot listen on {address[0]} port {address[1]}: {error.strerror}",
            field=field,
            mend="choose another with --port" if field == "port" else "use 127.0.0.1 or 0.0.0.0",
        ) from error
    return taken
