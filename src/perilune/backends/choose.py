"""From the settings to the backend that this process uses."""

from __future__ import annotations

from importlib.util import find_spec

from perilune.backends.base import Backend
from perilune.backends.router import Router
from perilune.backends.upstream import UpstreamBackend
from perilune.errors import ConfigError
from perilune.settings import Settings

ENGINE_PACKAGES = ("torch", "safetensors", "numpy", "llguidance")
"""What the `engine` extra brings."""


async def open_backend(settings: Settings) -> Backend:
    """The endpoint of `model_url` where there is one, else the engine with `checkpoint` or the bundled
    model; answering under `serve_as` too. Close it when done.

    Raises ConfigError (no engine installed, a wrong URL), BackendError (an endpoint that must be asked for
    its model), CheckpointError, EngineError."""
    return Router([await _open(settings)], serve_as=settings.serve_as)


async def _open(settings: Settings) -> Backend:
    if settings.model_url:
        return await UpstreamBackend.open(settings)
    missing = [name for name in ENGINE_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving a model here needs the engine, and {', '.join(missing)} is not installed",
            field="checkpoint",
            mend="pip install 'perilune[engine]', or use an endpoint with `perilune connect URL`",
        )
    from perilune.backends.embedded import EmbeddedBackend

    return await EmbeddedBackend.start(settings)
