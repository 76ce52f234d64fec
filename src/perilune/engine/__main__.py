"""The engine process: `python -m perilune.engine FD`, started by engine/client.py.

It speaks protocol.py over the inherited socket FD and ends when that socket closes, whoever died. An
error that is not one call's own ends the process: the client sees the socket close and starts a new one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from perilune.engine.protocol import Failed, Start
from perilune.engine.wire import Closed, Wire
from perilune.errors import ConfigError, PeriluneError


def main() -> int:
    # Ctrl-C in a terminal goes to the whole process group; whether to stop is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    try:
        _serve(wire)
    except Closed:
        return 0
    except PeriluneError as error:
        failed = Failed(id=None, code=error.code, message=error.message, field=error.field, mend=error.mend)
        wire.send([failed])
        wire.drain()
        return error.exit_code
    return 0


def _serve(wire: Wire) -> None:
    start = wire.receive(wait=True)
    if len(start) != 1 or not isinstance(start[0], Start):
        raise ConfigError("the first message must be Start", field="protocol")
    try:
        from perilune.engine.service import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed", field="engine", mend="pip install 'perilune[engine]'"
        ) from error
    serve(wire, start[0])


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Not sys.exit: unloading torch takes longer than everything else that is left, and frees nothing.
    os._exit(code)
