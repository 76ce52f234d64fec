"""All settings of one process: a frozen object, read once from HOME/perilune.toml, the environment and flags.

Later sources win: file, then `PERILUNE_<NAME>` variables, then command-line flags. A name that is not a field
here is refused. Each field is documented by the string under it; `docs/settings.md` repeats that text.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias, get_args, get_type_hints

from perilune.errors import ConfigError
from perilune.homefile import FILE_NAME, read_settings

ENV_PREFIX = "PERILUNE_"
FOREIGN_VARIABLES = frozenset({"PERILUNE_K26_TOKENIZER"})
"""Variables with our prefix that are no settings: they only tell the tests where a tokenizer lies."""
NO_FLAGS: Mapping[str, object] = MappingProxyType({})

Tables: TypeAlias = tuple[Mapping[str, Any], ...]

TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True)
class Settings:
    home: Path
    """The folder that holds all state. Default: `perilune` in the user's data folder. Not allowed in
    the file."""
    host: str = "127.0.0.1"
    """Address on which the API listens."""
    port: int = field(default=8642, metadata={"least": 0, "most": 65535})
    """Port of the API; 0 takes any free one."""
    admin_port: int = field(default=0, metadata={"least": 0, "most": 65535})
    """Loopback port of the admin door; 0 leaves it closed."""
    tls_cert: str = ""
    """PEM file of the API's certificate with its chain; with it the API speaks HTTPS only. The admin door
    stays on loopback without it."""
    tls_key: str = ""
    """PEM file of the certificate's key, without a password; empty takes `tls_cert`'s file."""
    cors_origins: str = ""
    """Origins of web pages that may call the API from a browser, separated by commas, such as
    `https://chat.example.org`; `*` lets all. Empty: none."""
    allowed_hosts: str = ""
    """Names under which the API answers, as clients' URLs have them but without a port, separated by commas;
    under others it answers health probes only. Empty: all. The admin door answers under those of loopback."""
    key_environment: str = "live"
    """What new keys are marked with (`plk_live_...`), so that those of a test server are known at sight."""
    max_connections: int = field(default=4096, metadata={"least": 1})
    """Most connections that the API holds at once; more are refused."""
    api_docs: bool = True
    """Serve the OpenAPI document at `/openapi.json` and the reference page at `/docs`, to all who ask."""
    base_url: str = ""
    """A Perilune server for client commands (`perilune chat`) to talk to, such as
    `http://127.0.0.1:8642/v1`."""
    api_key: str = field(default="", repr=False)
    """The key that client commands send to `base_url`."""
    model_url: str = ""
    """An OpenAI-compatible endpoint for Perilune to use; empty means the bundled model.
    `perilune connect` sets it."""
    model_key: str = field(default="", repr=False)
    """The key for `model_url`."""
    model_name: str = ""
    """The model's name at `model_url`."""
    model_context: int = field(default=262144, metadata={"least": 1})
    """Context length of the model at `model_url`, in tokens."""
    model_max_output: int = field(default=32768, metadata={"least": 1})
    """Most tokens that one answer of the model at `model_url` may have."""
    model_price: str = "kimi-k2.6"
    """The price book's entry that the model at `model_url` is billed by."""
    model_tokenizer: str = ""
    """Folder with the tokenizer of the model at `model_url`: `tiktoken.model`, `tokenizer_config.json`, and
    its chat template where it has one. Prompts are then counted; else their bytes are the bound."""
    model_timeout_s: float = field(default=600.0, metadata={"least": 0.001})
    """Longest silence of the model endpoint, in seconds, before a call is given up."""
    model_retries: int = field(default=3, metadata={"least": 0})
    """How often a call that failed before its first byte is tried again."""
    backends: Tables = field(default=(), repr=False)
    """`[[backends]]` tables, in the file only: several endpoints to use in the place of `model_url`;
    see [backends.md](backends.md)."""
    access: Tables = ()
    """`[[access]]` tables, in the file only: which of the `backends` may serve which key, project or
    organisation."""
    checkpoint: str = ""
    """Folder of the model that the engine serves; empty means the bundled perilune-nano."""
    serve_as: str = ""
    """Another name under which the served model answers."""
    template: Literal["", "k2.6", "k2.5", "k2-thinking", "jinja"] = ""
    """The chat format of the served model; empty asks the checkpoint's own template, if it has one. `jinja`
    has that template make the prompts where no format of ours agrees with it."""
    default_system: bool = False
    """Introduce Kimi in conversations that begin without a system message, whatever the format says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format in which the engine computes."""
    experts: Literal["auto", "memory", "files"] = "auto"
    """Where the engine keeps routed experts: unpacked in memory, in the checkpoint's files (far slower), or
    there only where memory is too small."""
    threads: int = field(default=0, metadata={"least": 0})
    """Threads of the engine; 0 lets it choose."""
    deterministic: bool = False
    """Let nothing else that the engine computes change a bit of an answer: batches, prompts in pieces, what
    is cached. Slower, and needs `dtype` float32."""
    cache_tokens: int = field(default=131072, metadata={"least": 1})
    """Size of the engine's latent cache, in tokens over all sequences."""
    max_sequences: int = field(default=64, metadata={"least": 1})
    """Most sequences that the engine runs at once; more wait."""
    max_agents: int = field(default=300, metadata={"least": 1})
    """Most sub-agents of a swarm that live at once; more wait."""
    max_steps: int = field(default=4000, metadata={"least": 1})
    """Most steps (model calls) of one swarm session over all its agents."""
    retries: int = field(default=2, metadata={"least": 0})
    """How often an assignment whose result was rejected is tried again."""
    price_book: str = ""
    """TOML file with prices; empty means the bundled book."""
    prepaid: bool = False
    """Refuse calls that the balance of their organisation does not cover. Off, calls are priced and written
    down, and only budgets and rate limits hold them."""
    activation_usd: float = field(default=1.0, metadata={"least": 0})
    """What an organisation must have deposited, in USD, before it may call models. Only with `prepaid`."""
    tier: str = "self-hosted"
    """Rate tier of organisations that have none of their own: a tier's name, or a ladder's, which gives
    each the tier that its deposits have reached."""
    tier_book: str = ""
    """TOML file with rate tiers; empty means the bundled ones."""
    ledger_durability: Literal["crash", "power"] = "crash"
    """What a call's row survives once it is acknowledged. `crash`: the end of the process, however it comes;
    a power cut may take the last half second. `power`: the end of the machine too, at two waits for the disk
    in every call. Keys, deposits and all else that operators enter survive both."""
    ledger_months: int = field(default=13, metadata={"least": 1})
    """How many closed months of single calls the ledger keeps; of older ones it keeps the sums."""
    sampling_policy: Literal["", "strict", "clamp", "open"] = ""
    """What to do with sampling values a model does not allow: `strict` refuses, `clamp` replaces, `open`
    honours; empty leaves it to the model's entry."""
    schema_policy: Literal["", "repair", "strict"] = ""
    """What to do with schemas of tools and answers that are not Moonshot-flavoured: `strict` refuses,
    `repair` mends; empty leaves it to the model's entry."""
    thinking_history: Literal["lenient", "strict"] = "lenient"
    """What to do when thinking is on and an earlier tool call comes without its `reasoning_content`: `strict`
    refuses, `lenient` takes it as empty."""
    web_search: Literal["", "off", "local", "searxng"] = ""
    """Where `$web_search` looks: `searxng`, the server at `searxng_url`; `local`, the index that
    `perilune index` makes; `off`, nowhere. Empty takes SearXNG where its address is set, else the index where
    there is one; see [web-search.md](web-search.md)."""
    searxng_url: str = field(default="", repr=False)
    """Address of a SearXNG server, such as `http://127.0.0.1:8888`."""
    search_results: int = field(default=8, metadata={"least": 1, "most": 20})
    """Most results of one web search."""
    search_timeout_s: float = field(default=15.0, metadata={"least": 0.1, "most": 120})
    """Longest that one web search may take, in seconds."""
    unsandboxed: bool = False
    """Let agents run commands without isolation where no sandbox is available."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much is logged."""

    @classmethod
    def load(
        cls,
        home: Path | str | None = None,
        flags: Mapping[str, object] = NO_FLAGS,
        env: Mapping[str, str] = os.environ,
    ) -> Self:
        """Read everything once. A flag that is None was not given. Raises ConfigError naming the culprit."""
        given = {name: value for name, value in flags.items() if value is not None}
        place = _expand(home or given.pop("home", None) or env.get("PERILUNE_HOME") or default_home(env))
        values: dict[str, object] = {}
        values |= _from_file(place / FILE_NAME)
        values |= _from_env(env)
        values |= {name: _convert(name, value, f"flag --{_dashed(name)}") for name, value in given.items()}
        values["home"] = place
        return cls(**values)  # type: ignore[arg-type]  # each value went through _convert


def default_home(env: Mapping[str, str] = os.environ) -> Path:
    """`perilune` in the XDG data folder."""
    data = env.get("XDG_DATA_HOME") or Path(env.get("HOME") or Path.home()) / ".local" / "share"
    return Path(data) / "perilune"


# ---- sources


def _from_file(path: Path) -> dict[str, object]:
    source = str(path)
    found = {}
    for name, value in read_settings(path).items():
        found[name] = converted = _convert(name, value, source)
        if isinstance(value, str) and isinstance(converted, bool | int | float):
            raise ConfigError(f"{value!r} in {source} is text", field=name, mend="write it without quotes")
    return found


def _from_env(env: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for variable, text in env.items():
        if not variable.startswith(ENV_PREFIX) or variable in FOREIGN_VARIABLES or text == "":
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name != "home":
            values[name] = _convert(name, text, f"environment variable {variable}")
    return values


# ---- values


def _convert(name: str, value: object, source: str) -> object:
    """The value as the field's type. Text is parsed: variables and flags are text, TOML has types."""
    known = {one.name: one for one in fields(Settings)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        if isinstance(value, dict):
            mend = f"settings stand at the file's top, not below [{name}]"
        else:
            mend = f"did you mean {near[0]}?" if near else "docs/settings.md lists all settings"
        raise ConfigError(f"unknown setting in {source}", field=name, mend=mend)
    kind = get_type_hints(Settings)[name]
    converted = _as_kind(kind, value)
    if converted is None and kind == Tables:  # the value may hold a key: it is not shown
        raise ConfigError(
            f"what {source} says is not a list of tables", field=name, mend=f"write [[{name}]] in {FILE_NAME}"
        )
    if converted is None:
        raise ConfigError(
            f"{value!r} in {source} is not {_expected(kind)}", field=name, mend="correct it there"
        )
    _check_range(name, converted, known[name].metadata, source)
    return converted


def _as_kind(kind: Any, value: object) -> object | None:
    """The converted value; None when it does not fit."""
    if kind is Path:
        return _expand(value) if isinstance(value, str | Path) else None
    if kind == Tables:
        return _as_tables(value)
    if kind is bool:
        return _as_bool(value)
    if kind is int:
        return _as_int(value)
    if kind is float:
        return _as_float(value)
    if not isinstance(value, str | Path):
        return None
    allowed = get_args(kind)
    return str(value) if not allowed or value in allowed else None


def _as_bool(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else None


def _as_tables(value: object) -> object | None:
    whole = isinstance(value, list) and all(isinstance(table, dict) for table in value)
    return tuple(value) if isinstance(value, list) and whole else None


def _as_int(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_float(value: object) -> float | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _check_range(name: str, value: object, bounds: Mapping[str, float], source: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    least, most = bounds.get("least", float("-inf")), bounds.get("most", float("inf"))
    if not least <= value <= most:
        limit = f"at least {least:g}" if most == float("inf") else f"between {least:g} and {most:g}"
        raise ConfigError(f"{value} in {source} must be {limit}", field=name, mend="correct it there")


def _expected(kind: Any) -> str:
    if allowed := get_args(kind):
        return "one of " + ", ".join(choice for choice in allowed if choice)
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return names.get(kind, "text")


def _expand(path: object) -> Path:
    return Path(str(path)).expanduser().absolute()


def _dashed(name: str) -> str:
    return name.replace("_", "-")
