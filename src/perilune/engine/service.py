"""Between the wire and the engine: load, then serve commands and steps in turn until the client leaves."""

from __future__ import annotations

from perilune.engine.loop import Engine
from perilune.engine.protocol import Abort, Check, Command, Generate, Reply, Start
from perilune.engine.wire import Wire
from perilune.errors import ConfigError


def serve(wire: Wire, start: Start) -> None:
    """Raises Closed at the end, PeriluneError when the engine cannot start or its books are wrong."""
    engine = Engine.load(start.options, start.vocabulary)
    wire.send([engine.ready])
    while True:
        replies: list[Reply] = []
        for command in wire.receive(wait=not engine.busy):
            replies += _obey(engine, command)
        replies += engine.step()
        wire.send(replies)


def _obey(engine: Engine, command: Command) -> list[Reply]:
    match command:
        case Generate():
            return engine.submit(command)
        case Abort(id=id):
            return engine.abort(id)
        case Check():
            return [engine.stats()]
        case Start():
            raise ConfigError("the engine is started already", field="protocol")
