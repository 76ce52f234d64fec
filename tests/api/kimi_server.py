"""A scripted model under K2.6's own constraints on a real socket, for the checklist of the Kimi API."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from api_server import Api, serving

from perilune.backends.base import Backend, ModelEntry
from perilune.backends.scripted import Call, Reply, ScriptedBackend, text_of, usage_of
from perilune.backends.served import K26_SAMPLING
from perilune.chat.messages import Completion, Message, Request

CHAT = "/v1/chat/completions"
HI: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
OFF = {"type": "disabled"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
K26 = ModelEntry(
    id="kimi-k2.6",
    backend="scripted",
    context_length=262144,
    max_output_tokens=32768,
    modalities=("text", "image", "video"),
    sampling=K26_SAMPLING,
    sampling_policy="strict",
    owned_by="moonshot",
)


def k26(request: Request) -> Reply:
    """Asks for the weather of each city that the user names, else thinks and says how long it may talk."""
    text = text_of(request.messages[-1])
    named = [city for city in ("Riga", "Oslo") if city in text] or ["Rome"]
    wanted = "weather" in text or request.tool_choice not in ("auto", "none")
    if request.tools and request.messages[-1].role == "user" and wanted and request.tool_choice != "none":
        return [Call(request.tools[0].name, {"city": city}) for city in named]
    thought = "Short is best." if request.thinking else None
    message = Message(role="assistant", content=f"At most {request.max_tokens} tokens.", reasoning=thought)
    return Completion(message=message, finish_reason="stop", usage=usage_of(request, message))


def kimi(entry: ModelEntry = K26) -> ScriptedBackend:
    return ScriptedBackend(k26, entry=entry, chunk=5)


class Answer(NamedTuple):
    status: int
    headers: Any
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    @property
    def choice(self) -> Any:
        assert self.status == 200, self.text
        (choice,) = self.body["choices"]
        return choice

    @property
    def message(self) -> Any:
        return self.choice["message"]

    @property
    def usage(self) -> Any:
        return self.body["usage"]

    @property
    def chunks(self) -> list[Any]:
        """The events of a stream, which must be whole."""
        frames = self.text.split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""], self.text
        assert all(frame.startswith("data: ") for frame in frames[:-1])
        return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]

    @property
    def deltas(self) -> list[Any]:
        return [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]

    def refused(self, words: str = "", status: int = 400, kind: str = "invalid_request_error") -> str:
        """The message of an error that must be this one."""
        assert self.status == status, self.text
        error = self.body["error"]
        assert error["type"] == kind and isinstance(error["message"], str)
        assert words in error["message"], error["message"]
        return str(error["message"])


class Kimi:
    """A client that sends just what the checklist says."""

    def __init__(self, api: Api, web: aiohttp.ClientSession) -> None:
        self.api = api
        self._web = web

    async def ask(self, path: str = CHAT, auth: str | None = None, **fields: Any) -> Answer:
        """One call to `kimi-k2.6` that says hello, but for `fields`. "" as `auth` sends no key."""
        header = self.api.auth["Authorization"] if auth is None else auth
        headers = {"Content-Type": "application/json"} | ({"Authorization": header} if header else {})
        body = io.BytesIO(json.dumps({"model": "kimi-k2.6", "messages": HI} | fields).encode())
        async with self._web.post(self.api.root + path, data=body, headers=headers) as answer:
            return Answer(answer.status, answer.headers, await answer.text())

    async def get(self, path: str) -> Answer:
        async with self._web.get(self.api.root + path, headers=self.api.auth) as answer:
            return Answer(answer.status, answer.headers, await answer.text())


@asynccontextmanager
async def kimi_serving(home: Path, backend: Backend | None = None, **flags: object) -> AsyncIterator[Kimi]:
    async with serving(home, backend or kimi(), **flags) as api, aiohttp.ClientSession() as web:
        yield Kimi(api, web)
