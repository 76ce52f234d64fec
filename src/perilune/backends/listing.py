"""What an endpoint says of its models, and the model entry that follows from it and the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import aiohttp
import msgspec

from perilune.backends.base import ModelEntry
from perilune.backends.endpoint import (
    CHECK_URL,
    PAGE_TYPES,
    auth_headers,
    base_url,
    connection_error,
    new_session,
    read_capped,
    refusal,
    web_page,
)
from perilune.backends.retries import is_passing
from perilune.errors import BackendAuth, BackendError, BackendProtocol, BackendUnreachable, ConfigError
from perilune.settings import Settings

log = logging.getLogger(__name__)

LISTING_TIMEOUT_S = 10.0
SHOWN = 10
CONTEXT_FIELDS = ("context_length", "max_model_len", "context_window")
"""Where endpoints say how much their models take: Kimi, vLLM, others."""


class Declared(msgspec.Struct, frozen=True):
    """What a Perilune server says of a model beyond the common fields, under `perilune`."""

    goals: str = "any"
    orchestrator_profile: str = "orchestrate"
    subagent_profile: str = "code"
    max_output_tokens: int | None = None
    sampling_policy: Literal["strict", "clamp", "open"] = "open"
    accepted: Mapping[str, float] = {}


async def list_models(
    session: aiohttp.ClientSession, url: str, headers: dict[str, str], timeout_s: float
) -> list[dict[str, Any]]:
    """The items of GET /models. Raises BackendError."""
    try:
        async with session.get(f"{url}/models", headers=headers, allow_redirects=False) as response:
            body = await read_capped(response)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise connection_error(error, url, timeout_s) from error
    if response.status != 200:
        raise refusal(response, body, url)
    if response.content_type in PAGE_TYPES:
        raise web_page(url)
    try:
        data = msgspec.json.decode(body)["data"]
        return [item for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BackendProtocol(f"{url}/models is not OpenAI-shaped", mend=CHECK_URL) from error


Facts: TypeAlias = Callable[[list[dict[str, Any]]], ModelEntry | None]
"""From what an endpoint lists to its model; None where that is not among it."""


async def entry_from(settings: Settings, of: str = "the model endpoint") -> tuple[ModelEntry, Facts | None]:
    """The model of `model_url` and `model_name`; `of` names the endpoint in the log. The endpoint is asked
    what it is; one that does not tell is taken as the settings say (with a warning where it is down or
    refuses the key, or does not list the model), but without a name it must list exactly one model. For one
    that may list it later, also what reads that list.

    Raises ConfigError; BackendError where there is no name."""
    url, headers = base_url(settings.model_url), auth_headers(settings.model_key)
    async with new_session(LISTING_TIMEOUT_S) as session:
        try:
            items = await list_models(session, url, headers, LISTING_TIMEOUT_S)
        except BackendError as error:
            if not settings.model_name:
                raise
            if isinstance(error, BackendUnreachable | BackendAuth):
                log.warning("calls to %s will fail for now: %s", of, error.message)
            tells_later = is_passing(error) or isinstance(error, BackendAuth)
            guess = upstream_entry(settings, settings.model_name, {})
            return guess, partial(_told, settings) if tells_later else None
    name = settings.model_name or choose_model(url, "", items)
    item = next((item for item in items if item["id"] == name), {})
    if items and not item:
        log.warning("%s does not list the model %s and may refuse it (it lists: %s)", of, name, _names(items))
    return upstream_entry(settings, name, item), None if items else partial(_told, settings)


def _told(settings: Settings, items: list[dict[str, Any]]) -> ModelEntry | None:
    item = next((item for item in items if item["id"] == settings.model_name), None)
    return upstream_entry(settings, settings.model_name, item) if item is not None else None


def choose_model(url: str, name: str, items: list[dict[str, Any]]) -> str:
    """The model that is meant. Raises ConfigError listing what there is."""
    names = [str(item["id"]) for item in items]
    if name and (name in names or not names):
        return name
    if not name and len(names) == 1:
        return names[0]
    shown = _names(items)
    if name:
        raise ConfigError(f"{url} has no model {name}", field="model_name", mend=f"it lists: {shown}")
    if not names:
        raise ConfigError(f"{url} lists no models", field="model_name", mend="give the model's name")
    raise ConfigError(f"{url} has {len(names)} models", field="model_name", mend=f"name one of: {shown}")


def _names(items: list[dict[str, Any]]) -> str:
    names = [str(item["id"]) for item in items]
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def upstream_entry(settings: Settings, name: str, item: dict[str, Any]) -> ModelEntry:
    """`item` is what the endpoint lists of the model; {} when nothing is known."""
    try:
        declared = msgspec.convert(item.get("perilune") or {}, Declared)
    except msgspec.ValidationError:  # somebody else's field of that name
        declared = Declared()
    context = min(settings.model_context, context_length_of(item) or settings.model_context)
    output = min(settings.model_max_output, declared.max_output_tokens or settings.model_max_output, context)
    return ModelEntry(
        id=name,
        backend="upstream",
        context_length=context,
        max_output_tokens=output,
        modalities=_modalities(item),
        accepted=declared.accepted,
        sampling_policy=settings.sampling_policy or declared.sampling_policy,
        fixed_sampling=declared.sampling_policy != "open",
        schema_policy=settings.schema_policy or "repair",
        price=settings.model_price,
        goals=declared.goals,
        orchestrator_profile=declared.orchestrator_profile,
        subagent_profile=declared.subagent_profile,
        owned_by="upstream",
    )


def _modalities(item: dict[str, Any]) -> tuple[str, ...]:
    """Where the endpoint does not say what its model reads, it is sent all, and may refuse itself."""
    media = [kind for kind in ("image", "video") if item.get(f"supports_{kind}_in", True)]
    return ("text", *media)


def context_length_of(item: dict[str, Any]) -> int | None:
    """Tokens, as the endpoint says; None when it does not."""
    values = (item.get(field) for field in CONTEXT_FIELDS)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
