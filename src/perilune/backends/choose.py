"""From the settings to the backend that this process uses."""

from __future__ import annotations

from perilune.backends.base import Backend
from perilune.backends.fleet import open_fleet
from perilune.backends.local import open_engine
from perilune.backends.router import Router
from perilune.backends.upstream import UpstreamBackend
from perilune.errors import ConfigError
from perilune.settings import Settings


async def open_backend(settings: Settings) -> Backend:
    """The endpoints of `backends`, or the one of `model_url`, where there are such; else the engine with
    `checkpoint` or the bundled model. Answers under `serve_as` too. Close it when done.

    Raises ConfigError (no engine installed, a wrong URL), BackendError (an endpoint that must be asked for
    its model), CheckpointError, EngineError."""
    if settings.backends and settings.model_url:
        raise ConfigError(
            "both a model endpoint and `backends` are set", field="model_url", mend="keep one of them"
        )
    if settings.access and not settings.backends:
        raise ConfigError("rules for no backends", field="access", mend="add [[backends]], or remove them")
    if settings.backends:
        return Router(await open_fleet(settings), serve_as=settings.serve_as)
    one = UpstreamBackend.open(settings) if settings.model_url else open_engine(settings)
    return Router([await one], serve_as=settings.serve_as)
