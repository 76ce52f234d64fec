"""From the `[[backends]]` and `[[access]]` tables of the settings to backends, one for each model.

Each table is an endpoint, or, with `engine = "embedded"`, our own engine in a process beside this one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from perilune.backends.access import Rule
from perilune.backends.base import Backend, ModelEntry
from perilune.backends.counting import PromptCounter, counter_of
from perilune.backends.dialects import ENGINES
from perilune.backends.listing import Facts, entry_from
from perilune.backends.local import open_engine
from perilune.backends.replicas import Replica, Replicas
from perilune.backends.turns import InTurn
from perilune.backends.upstream import UpstreamBackend
from perilune.errors import BackendError, CheckpointError, ConfigError
from perilune.settings import Settings

log = logging.getLogger(__name__)

Table = TypeVar("Table")
EMBEDDED = "embedded"
Engine = Literal["", "hosted", "vllm", "sglang", "ktransformers", "ollama", "llama-cpp", "embedded"]
Tokens = Annotated[int, msgspec.Meta(ge=1)]


class EndpointTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[backends]]` table; docs/backends.md tells its fields."""

    name: str
    url: str = ""
    key: str = ""
    model: str = ""
    checkpoint: str = ""
    tokenizer: str = ""
    serves: str = ""
    aliases: tuple[str, ...] = ()
    engine: Engine = ""
    region: str = ""
    vendor: str = ""
    data_classes: tuple[str, ...] = ()
    context: Tokens | None = None
    max_output: Tokens | None = None
    price: str = ""

    @property
    def embedded(self) -> bool:
        return self.engine == EMBEDDED

    def __post_init__(self) -> None:
        """Raises ValueError, which msgspec tells with the table's place."""
        if self.embedded and (self.url or self.key or self.model or self.tokenizer):
            raise ValueError(
                "the embedded engine has a `checkpoint`, no `url`, `key`, `model` or `tokenizer`"
            )
        if not self.embedded and (self.checkpoint or not self.url):
            needed = "`url` is missing" if not self.url else "`checkpoint` goes with the embedded engine only"
            raise ValueError(needed)


@dataclass(frozen=True)
class Opened:
    """A table and what was found behind it."""

    table: EndpointTable
    entry: ModelEntry
    """Of the model as it is known there."""
    engine: Backend | None = None
    """Running, where the table asks for one of ours."""
    counter: PromptCounter | None = None
    facts: Facts | None = None
    """Reads what the endpoint lists, where `entry` is a guess until it can be asked."""


async def open_fleet(settings: Settings) -> list[Replicas]:
    """Raises ConfigError for a wrong table; BackendError for an endpoint that must be asked for its model;
    what starting an engine raises."""
    tables = read_tables(settings.backends, EndpointTable, "backends")
    rules = read_tables(settings.access, Rule, "access")
    names = [table.name for table in tables]
    for name in names:
        if not name or names.count(name) > 1:
            said = f"{names.count(name)} tables are named {name!r}" if name else "a table has an empty name"
            raise ConfigError(said, field="backends", mend="give each a name of its own")
    _check_rules(rules, tables)
    opened = await _open_all(tables, settings)
    models: dict[str, list[Opened]] = {}
    for one in opened:
        models.setdefault(one.table.serves or one.entry.id, []).append(one)
    try:
        fleet = [_Model(name, members).replicas(rules, settings) for name, members in models.items()]
    except BaseException:
        await _close(opened)
        raise
    for replicas in fleet:
        replicas.start_probes()
    return fleet


async def _open_all(tables: Sequence[EndpointTable], settings: Settings) -> list[Opened]:
    """All of them, or none: an engine that was started already is ended again."""
    counters: dict[str, PromptCounter | None] = {}
    for table in tables:  # one for each folder, so that replicas count a prompt once
        if table.tokenizer not in counters:
            counters[table.tokenizer] = counter_of(table.tokenizer, f"backends, {table.name}", settings)
    found = await asyncio.gather(
        *(_open(table, settings, counters) for table in tables), return_exceptions=True
    )
    opened = [one for one in found if isinstance(one, Opened)]
    for error in found:
        if isinstance(error, BaseException):
            await _close(opened)
            raise error
    return opened


async def _close(opened: Sequence[Opened]) -> None:
    await asyncio.gather(*(one.engine.close() for one in opened if one.engine is not None))


async def _open(
    table: EndpointTable, settings: Settings, counters: Mapping[str, PromptCounter | None]
) -> Opened:
    own = _settings_of(table, settings)
    try:
        if not table.embedded:
            entry, facts = await entry_from(own, f"backends, {table.name}")
            return Opened(table, entry, counter=counters[table.tokenizer], facts=facts)
        engine = await open_engine(own)
    except (ConfigError, CheckpointError, BackendError) as error:
        error.field = f"backends, {table.name}"  # not the setting for one endpoint
        raise
    (entry,) = await engine.models()
    fitted = msgspec.structs.replace(
        entry,
        context_length=min(entry.context_length, table.context or entry.context_length),
        max_output_tokens=min(entry.max_output_tokens, table.max_output or entry.max_output_tokens),
    )
    return Opened(table, fitted, engine)


def read_tables(tables: Sequence[Mapping[str, Any]], kind: type[Table], setting: str) -> tuple[Table, ...]:
    """Raises ConfigError naming table and field. The key is never repeated."""
    found = []
    for number, table in enumerate(tables, 1):
        try:
            found.append(msgspec.convert(table, kind))
        except msgspec.ValidationError as error:
            mend = "docs/backends.md lists the fields"
            if "$.engine`" in str(error):
                mend = f"use one of {', '.join(filter(None, get_args(Engine)))}"
            raise ConfigError(f"table {number}: {error}", field=setting, mend=mend) from error
    return tuple(found)


def _check_rules(rules: Sequence[Rule], tables: Sequence[EndpointTable]) -> None:
    """Raises ConfigError for a rule that asks for nothing. One that no table meets is a way to shut somebody
    out, or a slip of the pen: it is told."""
    for number, rule in enumerate(rules, 1):
        if not (rule.regions or rule.vendors or rule.data_class):
            raise ConfigError(
                f"table {number}: asks for nothing",
                field="access",
                mend="give it regions, vendors or data_class",
            )
        if not any(rule.allows(table) for table in tables):
            log.warning("access, table %d: no backend meets it, so those it concerns are refused", number)


class _Model:
    """One model of several endpoints: what all of them can do, as far as they have told."""

    def __init__(self, name: str, members: Sequence[Opened]) -> None:
        self._name = name
        self._members = list(members)
        self._told: list[Callable[[ModelEntry], None]] = []

    def replicas(self, rules: tuple[Rule, ...], settings: Settings) -> Replicas:
        entry = _common_entry(self._name, self._members)
        replicas = [
            Replica(
                name=one.table.name,
                backend=one.engine or self._upstream(place, entry, settings),
                region=one.table.region,
                vendor=one.table.vendor,
                data_classes=one.table.data_classes,
                kind="upstream" if one.engine is None else EMBEDDED,
            )
            for place, one in enumerate(self._members)
        ]
        made = Replicas(entry, replicas, rules=rules, retries=settings.model_retries)
        self._told.append(made.become)
        return made

    def _upstream(self, place: int, entry: ModelEntry, settings: Settings) -> Backend:
        one = self._members[place]
        quirks = ENGINES[one.table.engine]
        backend = UpstreamBackend(
            one.table.url,
            key=one.table.key,
            entry=entry,
            model_name=one.entry.id,
            timeout_s=settings.model_timeout_s,
            retries=0,  # Replicas tries again, elsewhere first
            quirks=quirks,
            counter=one.counter,
            facts=one.facts,
            learnt=partial(self._learnt, place),
        )
        self._told.append(backend.become)
        return InTurn(backend) if quirks.one_at_a_time else backend

    def _learnt(self, place: int, entry: ModelEntry) -> None:
        self._members[place] = replace(self._members[place], entry=entry, facts=None)
        common = _common_entry(self._name, self._members)
        for told in self._told:
            told(common)


def _common_entry(model: str, members: Sequence[Opened]) -> ModelEntry:
    """What all endpoints of a model can do. Raises ConfigError where they are not the same model."""
    entries = [one.entry for one in members]
    prices = {one.table.price or one.entry.price for one in members}
    if len(prices) > 1:
        raise ConfigError(
            f"the endpoints of {model} have several prices",
            field="backends",
            mend="give them one price, or serve them under other names",
        )
    told = [one.entry for one in members if one.facts is None] or entries
    special = next((entry for entry in told if entry.goals != "any"), told[0])
    modalities = [kind for kind in special.modalities if all(kind in entry.modalities for entry in entries)]
    return msgspec.structs.replace(
        special,
        id=model,
        aliases=tuple(dict.fromkeys(alias for one in members for alias in one.table.aliases)),
        context_length=min(entry.context_length for entry in entries),
        max_output_tokens=min(entry.max_output_tokens for entry in entries),
        modalities=tuple(modalities),
        price=prices.pop(),
    )


def _settings_of(table: EndpointTable, settings: Settings) -> Settings:
    return replace(
        settings,
        backends=(),
        checkpoint=table.checkpoint or settings.checkpoint,
        model_url=table.url,
        model_key=table.key,
        model_name=table.model,
        model_context=table.context or settings.model_context,
        model_max_output=table.max_output or settings.model_max_output,
    )
