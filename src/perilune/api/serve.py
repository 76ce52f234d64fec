"""The server process: owns HOME, opens accounts and backend, listens, drains on a signal.

`serve` is the whole of `perilune serve`. `Server` is its inner part, for a process that has its own event
loop and shares one backend and one set of accounts with it, such as the demonstration.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, cast

import uvicorn

from perilune.accounts.accounts import KEYS_FILE, Accounts
from perilune.api.access_log import FORMAT, access_log
from perilune.api.admin import build_admin_app
from perilune.api.app import build_app
from perilune.api.connections import IDLE_S, Connection
from perilune.api.listen import listen, root_url
from perilune.api.metrics import HttpCounters
from perilune.api.tls import tls_context
from perilune.api.upkeep import keep_up
from perilune.backends.base import Backend
from perilune.backends.choose import open_backend
from perilune.errors import ConfigError
from perilune.settings import Settings
from perilune.store import HomeLock

LOOPBACK = "127.0.0.1"
GRACE_S = 30
"""How long answers under way may take once the server was told to stop."""
SETTLE_S = 5
"""How long calls that were cut off then may take to settle."""
GC_OBJECTS = 10_000
"""New objects between two searches for cycles: a call makes some hundreds, hardly any of them in one."""


OpenModel = Callable[[Settings], Coroutine[Any, Any, Backend]]


class Server:
    """The API in a running event loop: `await start()`, `await stop()`. Owns neither backend nor accounts."""

    def __init__(self, settings: Settings, backend: Backend, accounts: Accounts) -> None:
        self._settings = settings
        self.counters = HttpCounters()
        self._app = build_app(settings, backend, accounts, self.counters)
        self._tls = tls_context(settings)
        self._uvicorn: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None
        self.root_url = ""
        """Such as `http://127.0.0.1:8642`; known once started."""

    @property
    def base_url(self) -> str:
        """What OpenAI clients are given as base URL."""
        return f"{self.root_url}/v1"

    async def start(self, listener: socket.socket | None = None, *, any_port: bool = False) -> None:
        """Requests are answered when this returns. Without a `listener` it takes the port of the settings,
        or with `any_port` the next free one. Raises ConfigError when the port cannot be had."""
        if listener is None:
            listener = listen(self._settings.host, self._settings.port, any_port=any_port)
        self.root_url = root_url(listener, "https" if self._tls else "http")
        config = uvicorn.Config(
            self._app,
            http=cast(type[asyncio.Protocol], partial(Connection, most=self._settings.max_connections)),
            interface="asgi3",
            loop="none",
            ws="none",
            lifespan="off",
            workers=1,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_S,
        )
        config.load()
        config.ssl = self._tls
        self._uvicorn = _Uvicorn(config)
        self._task = asyncio.create_task(self._uvicorn.serve(sockets=[listener]), name="perilune api")
        await self._uvicorn.listening.wait()

    async def stop(self, grace_s: int = GRACE_S) -> None:
        """Refuse new connections, let answers under way end for so long, cut off the rest; what was cut off
        settles before this returns."""
        server, task = self._uvicorn, self._task
        if server is None or task is None:
            return
        server.config.timeout_graceful_shutdown = grace_s
        server.should_exit = True
        await task
        if cut := set(server.server_state.tasks):
            await asyncio.wait(cut, timeout=SETTLE_S)
        self._uvicorn = self._task = None

    def hurry(self) -> None:
        """Cut off all answers under way, while `stop` waits for them."""
        if self._uvicorn is not None:
            for task in self._uvicorn.server_state.tasks:
                task.cancel()


class AdminServer(Server):
    """The admin door of a server; `start` it with a listener on loopback."""

    def __init__(self, settings: Settings, backend: Backend, accounts: Accounts, beside: Server) -> None:
        super().__init__(settings, backend, accounts)
        self._app = build_admin_app(backend, accounts, beside.counters)
        self._tls = None


class _Uvicorn(uvicorn.Server):
    """uvicorn that says when it listens and leaves signals to the process it runs in."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    settings: Settings,
    *,
    on_ready: Callable[[Server], None] | None = None,
    any_port: bool = False,
    open_model: OpenModel = open_backend,
) -> None:
    """Serve HOME until SIGTERM or SIGINT, then drain; a second signal cuts off what is still under way.
    `open_model` opens another backend than the one that the settings choose.

    Raises HomeLocked, ConfigError (port, settings), StoreError, and what opening the backend raises."""
    stopping = asyncio.Event()
    server: Server | None = None

    def on_signal() -> None:
        if stopping.is_set() and server is not None:
            server.hurry()
        stopping.set()

    tls_context(settings)  # what is wrong there is told before the model is opened
    with HomeLock(settings.home, "serve") as lock, _signals(on_signal):
        listener = listen(settings.host, settings.port, any_port=any_port)
        with (
            contextlib.closing(listener),
            _admin_listener(settings) as admin_listener,
            Accounts.open(settings.home, settings) as accounts,
        ):
            backend = await _unless(stopping, open_model(settings))
            if backend is None:
                return
            try:
                await _check_prices(backend, accounts)
                server = Server(settings, backend, accounts)
                await server.start(listener)
                async with _beside(settings, backend, accounts, server, admin_listener) as admin:
                    lock.announce(server.base_url, admin)
                    await _announce(server, backend, settings, admin)
                    if on_ready is not None:
                        on_ready(server)
                    await stopping.wait()
                    await server.stop()
            finally:
                await backend.close()


def _allow_files(connections: int) -> None:
    """Let this process have as many files open as so many connections need, each with one to a model."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 256
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if least != resource.RLIM_INFINITY and least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def run(settings: Settings, *, any_port: bool = False) -> None:
    """`serve` with its own event loop and logging. Returns once drained."""
    import uvloop  # not on every system that Perilune's other rooms run on

    _allow_files(settings.max_connections)

    logging.basicConfig(level=settings.log_level.upper(), stream=sys.stderr, format=FORMAT)
    access_log.shorten(sys.stderr)
    uvloop.run(serve(settings, any_port=any_port, on_ready=_spare_bookkeeping))


def _spare_bookkeeping(_: Server) -> None:
    """What each request would pay for and nobody reads: unseen details of log lines, searches for cycles
    among what stays, and the loop's list of generators that nobody closed: here whoever makes one does."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    gc.set_threshold(GC_OBJECTS, 20, 20)
    gc.freeze()
    sys.set_asyncgen_hooks(firstiter=None)


@contextlib.contextmanager
def _admin_listener(settings: Settings) -> Iterator[socket.socket | None]:
    """On loopback, whatever `host` says; None while no port is set."""
    if not settings.admin_port:
        yield None
        return
    with contextlib.closing(listen(LOOPBACK, settings.admin_port, field="admin_port")) as listener:
        yield listener


@contextlib.asynccontextmanager
async def _beside(
    settings: Settings,
    backend: Backend,
    accounts: Accounts,
    server: Server,
    listener: socket.socket | None,
) -> AsyncIterator[str]:
    """Upkeep and, with a listener, the admin door, for as long as the server runs; the door's URL."""
    door = None
    if listener is not None:
        door = AdminServer(settings, backend, accounts, server)
        await door.start(listener)
    upkeep = asyncio.create_task(keep_up(accounts), name="perilune upkeep")
    try:
        yield f"{door.root_url}/admin" if door is not None else ""
    finally:
        upkeep.cancel()
        await asyncio.wait({upkeep})
        if door is not None:
            await door.stop(grace_s=1)


async def _check_prices(backend: Backend, accounts: Accounts) -> None:
    """Raises ConfigError for a model whose price the book lacks: each of its calls would fail."""
    for entry in await backend.models():
        try:
            accounts.prices.price(entry.price)
        except ConfigError as error:
            error.field = f"price of {entry.id}"
            raise


async def _announce(server: Server, backend: Backend, settings: Settings, admin: str) -> None:
    names = ", ".join(entry.id for entry in await backend.models())
    alias = f", also as {settings.serve_as}" if settings.serve_as else ""
    print(f"Perilune serves {names}{alias} at {server.base_url}")
    keys = settings.home / KEYS_FILE
    print(
        f"Keys: {keys}"
        if keys.exists()
        else f"Keys: {keys} is gone (perilune keys create NAME makes new ones)"
    )
    if admin:
        print(f"Admin door: {admin}")
    if settings.host not in ("127.0.0.1", "::1", "localhost") and not settings.tls_cert:
        print(
            f"Note: {settings.host} is open to other machines and speaks plain HTTP: "
            "set tls_cert, or put TLS in front of it"
        )
    print("Stop with Ctrl-C", flush=True)


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


async def _unless(stopping: asyncio.Event, opening: Coroutine[Any, Any, Backend]) -> Backend | None:
    """The backend; None when the process was told to stop before it was open."""
    task, told = asyncio.ensure_future(opening), asyncio.ensure_future(stopping.wait())
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait({task})
    return None
