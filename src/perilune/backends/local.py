"""The engine in a process of ours, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

from perilune.backends.base import Backend
from perilune.errors import ConfigError
from perilune.settings import Settings

ENGINE_PACKAGES = ("torch", "safetensors", "numpy", "llguidance")
"""What the `engine` extra brings."""


def check_engine() -> None:
    """Raises ConfigError where something that the engine needs is not installed."""
    missing = [name for name in ENGINE_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving a model here needs the engine, and {', '.join(missing)} is not installed",
            field="checkpoint",
            mend="pip install 'perilune[engine]', or use an endpoint with `perilune connect URL`",
        )


async def open_engine(settings: Settings) -> Backend:
    """The engine with `checkpoint` or the bundled model.

    Raises ConfigError, CheckpointError, TokenizerError, EngineError."""
    check_engine()
    from perilune.backends.embedded import EmbeddedBackend

    return await EmbeddedBackend.start(settings)
