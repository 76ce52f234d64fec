"""GET /v1/models and /v1/models/{id}, and the names under which models answer."""

from __future__ import annotations

import time
from typing import Any

from starlette.types import Receive, Scope, Send

from perilune.api.http import send_json
from perilune.backends.base import Backend, ModelEntry
from perilune.backends.router import find_entry
from perilune.backends.served import accepted_values


class Catalogue:
    """The backend's models. An alias is found but not listed, except the name that `serve_as` gave."""

    def __init__(self, backend: Backend, serve_as: str = "") -> None:
        self._backend = backend
        self._serve_as = serve_as
        self._since = int(time.time())

    async def find(self, name: str) -> ModelEntry:
        """Raises NotFound in the hosted API's words, BackendError when the backend does not answer."""
        return find_entry(await self._backend.models(), name)

    async def items(self) -> list[dict[str, Any]]:
        entries = await self._backend.models()
        renamed = [entry for entry in entries if self._serve_as in entry.aliases]
        items = [self.item(entry, entry.id) for entry in entries]
        return items + [self.item(entry, self._serve_as) for entry in renamed]

    def item(self, entry: ModelEntry, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._since,
            "owned_by": entry.owned_by,
            "context_length": entry.context_length,
            "supports_image_in": "image" in entry.modalities,
            "supports_video_in": "video" in entry.modalities,
            "supports_reasoning": True,
            # For another Perilune that uses this one as its endpoint (`backends/listing.py`).
            "perilune": {
                "goals": entry.goals,
                "orchestrator_profile": entry.orchestrator_profile,
                "subagent_profile": entry.subagent_profile,
                "max_output_tokens": entry.max_output_tokens,
                "sampling_policy": entry.sampling_policy,
                "accepted": accepted_values(entry),
            },
        }


class ListModels:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, {"object": "list", "data": await self._catalogue.items()})


class OneModel:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["id"]
        await send_json(send, self._catalogue.item(await self._catalogue.find(name), name))
