"""From the `[[backends]]` and `[[access]]` tables of the settings to backends, one for each model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from perilune.backends.access import Rule
from perilune.backends.base import ModelEntry
from perilune.backends.dialects import ENGINES
from perilune.backends.listing import entry_from
from perilune.backends.replicas import Replica, Replicas
from perilune.backends.upstream import UpstreamBackend
from perilune.errors import ConfigError
from perilune.settings import Settings

Table = TypeVar("Table")
Engine = Literal["", "hosted", "vllm", "sglang", "ktransformers", "ollama"]
Tokens = Annotated[int, msgspec.Meta(ge=1)]


class EndpointTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[backends]]` table; docs/backends.md tells its fields."""

    name: str
    url: str
    key: str = ""
    model: str = ""
    serves: str = ""
    aliases: tuple[str, ...] = ()
    engine: Engine = ""
    region: str = ""
    vendor: str = ""
    data_classes: tuple[str, ...] = ()
    context: Tokens | None = None
    max_output: Tokens | None = None
    price: str = ""


async def open_fleet(settings: Settings) -> list[Replicas]:
    """Raises ConfigError for a wrong table; BackendError for an endpoint that must be asked for its model."""
    tables = read_tables(settings.backends, EndpointTable, "backends")
    rules = read_tables(settings.access, Rule, "access")
    names = [table.name for table in tables]
    for name in names:
        if not name or names.count(name) > 1:
            raise ConfigError(f"{name!r} is not a name of one endpoint", field="backends", mend="name each")
    entries = await asyncio.gather(*(_entry(table, settings) for table in tables))
    models: dict[str, list[tuple[EndpointTable, ModelEntry]]] = {}
    for table, entry in zip(tables, entries, strict=True):
        models.setdefault(table.serves or entry.id, []).append((table, entry))
    fleet = [_replicas(model, members, rules, settings) for model, members in models.items()]
    for one in fleet:
        one.start_probes()
    return fleet


def read_tables(tables: Sequence[Mapping[str, Any]], kind: type[Table], setting: str) -> tuple[Table, ...]:
    """Raises ConfigError naming table and field. The key is never repeated."""
    found = []
    for number, table in enumerate(tables, 1):
        try:
            found.append(msgspec.convert(table, kind))
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"table {number}: {error}", field=setting, mend="docs/backends.md lists the fields"
            ) from error
    return tuple(found)


def _replicas(
    model: str, members: list[tuple[EndpointTable, ModelEntry]], rules: tuple[Rule, ...], settings: Settings
) -> Replicas:
    entry = _common_entry(model, members)
    replicas = [
        Replica(
            name=table.name,
            backend=UpstreamBackend(
                table.url,
                key=table.key,
                entry=entry,
                model_name=own.id,
                timeout_s=settings.model_timeout_s,
                retries=0,  # Replicas tries again, elsewhere first
                quirks=ENGINES[table.engine],
            ),
            region=table.region,
            vendor=table.vendor,
            data_classes=table.data_classes,
        )
        for table, own in members
    ]
    return Replicas(entry, replicas, rules=rules, retries=settings.model_retries)


def _common_entry(model: str, members: list[tuple[EndpointTable, ModelEntry]]) -> ModelEntry:
    """What all endpoints of a model can do. Raises ConfigError where they are not the same model."""
    entries = [entry for _, entry in members]
    prices = {table.price or entry.price for table, entry in members}
    if len(prices) > 1:
        raise ConfigError(
            f"the endpoints of {model} have several prices",
            field="backends",
            mend="give them one price, or serve them under other names",
        )
    special = next((entry for entry in entries if entry.goals != "any"), entries[0])
    modalities = [kind for kind in special.modalities if all(kind in entry.modalities for entry in entries)]
    return msgspec.structs.replace(
        special,
        id=model,
        aliases=tuple(dict.fromkeys(alias for table, _ in members for alias in table.aliases)),
        context_length=min(entry.context_length for entry in entries),
        max_output_tokens=min(entry.max_output_tokens for entry in entries),
        modalities=tuple(modalities),
        price=prices.pop(),
    )


async def _entry(table: EndpointTable, settings: Settings) -> ModelEntry:
    try:
        return await entry_from(_settings_of(table, settings))
    except ConfigError as error:
        error.field = f"backends, {table.name}"  # not the setting for one endpoint
        raise


def _settings_of(table: EndpointTable, settings: Settings) -> Settings:
    return replace(
        settings,
        backends=(),
        model_url=table.url,
        model_key=table.key,
        model_name=table.model,
        model_context=table.context or settings.model_context,
        model_max_output=table.max_output or settings.model_max_output,
    )
