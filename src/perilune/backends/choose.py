"""From the settings to the backend that this process uses."""

from __future__ import annotations

from perilune.backends.base import Backend
from perilune.backends.router import Router
from perilune.backends.upstream import UpstreamBackend
from perilune.settings import Settings


async def open_backend(settings: Settings) -> Backend:
    """The endpoint of `model_url` where there is one, else the engine with `checkpoint` or the bundled
    model; answering under `serve_as` too. Close it when done.

    Raises ConfigError, BackendError (an endpoint that must be asked for its model), CheckpointError,
    EngineError."""
    return Router([await _open(settings)], serve_as=settings.serve_as)


async def _open(settings: Settings) -> Backend:
    if settings.model_url:
        return await UpstreamBackend.open(settings)
    # The embedded backend needs the `engine` extra; nothing else in this room does.
    from perilune.backends.embedded import EmbeddedBackend

    return await EmbeddedBackend.start(settings)
