"""Which model a checkpoint folder holds, as data: its own perilune.json, or sensible values for any other.

`perilune.json` is written by whoever made the checkpoint (`nano/` for the bundled one):

    {"id": "...", "context_length": 2048, "max_output_tokens": 512, "goals": "rename", ...}

Its other names are those of `ModelEntry`; `profiles` and `content_hash` say what the weights belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

import perilune
from perilune.backends.base import ModelEntry
from perilune.chat.messages import Request
from perilune.chat.model_files import COPY_AGAIN, read_bounded
from perilune.chat.tokenizer import Tokenizer
from perilune.errors import CheckpointError
from perilune.settings import Settings

BUNDLED = "nano_checkpoint"
CARD = "perilune.json"
MOST_CARD_BYTES = 1024**2
K26_SAMPLING: dict[str, float] = {"temperature_thinking": 1.0, "temperature_instant": 0.6, "top_p": 0.95}
LONGEST_OUTPUT = 32768
DENSITY_SAMPLE = '''Find where a name is used, then change each place.
{"name": "replace_word", "arguments": {"path": "src/parser/tokens.py", "line": 12}}
def next_token(self, text: str) -> Token | None:
    """The token that begins at this position."""
    return self.tokens.get(text[self.position])
'''
"""Prose, JSON and code, as agents read and write them."""


class _Card(msgspec.Struct, kw_only=True):
    id: str
    context_length: int | None = None
    max_output_tokens: int | None = None
    goals: str = "any"
    orchestrator_profile: str = "orchestrate"
    subagent_profile: str = "code"
    sampling: Mapping[str, float] = msgspec.field(default_factory=lambda: K26_SAMPLING)
    accepted: Mapping[str, float] = msgspec.field(default_factory=dict)
    sampling_policy: Literal["strict", "clamp", "open"] = "open"
    schema_policy: Literal["strict", "repair"] = "repair"
    price: str = "kimi-k2.6"
    licence: str = ""
    template: str = ""
    profiles: Mapping[str, str] = msgspec.field(default_factory=dict)
    content_hash: str = ""


class Served(msgspec.Struct, frozen=True):
    """A checkpoint folder and what is said about it."""

    folder: Path
    entry: ModelEntry
    content_hash: str
    """What the loaded weights must hash to; empty leaves it open."""
    profiles: Mapping[str, str]
    """Tool profiles that the weights were trained on, each with the hash of its text."""
    template: str = ""
    """The chat format by name; empty asks the checkpoint's own template, if it has one."""


def model_folder(settings: Settings) -> Path:
    """The folder of the model that `settings` tell the engine to serve. Raises CheckpointError."""
    folder = Path(settings.checkpoint) if settings.checkpoint else bundled_folder()
    if not folder.is_dir():
        what = "no such folder" if settings.checkpoint else "the bundled model is not part of this install"
        raise CheckpointError(what, field=str(folder), mend="set `checkpoint` to the folder of a model")
    return folder


def served_model(
    settings: Settings, folder: Path, longest: int, modalities: tuple[str, ...] = ("text",)
) -> Served:
    """The model in `folder`, whose positions reach to `longest` tokens. Raises CheckpointError."""
    card = _read_card(folder)
    context = min(card.context_length or longest, longest)
    entry = ModelEntry(
        id=card.id,
        aliases=(settings.serve_as,) if settings.serve_as and settings.serve_as != card.id else (),
        backend="embedded",
        context_length=context,
        max_output_tokens=min(card.max_output_tokens or LONGEST_OUTPUT, context),
        modalities=modalities,
        sampling=card.sampling,
        accepted=card.accepted,
        sampling_policy=settings.sampling_policy or card.sampling_policy,
        schema_policy=settings.schema_policy or card.schema_policy,
        price=card.price,
        goals=card.goals,
        orchestrator_profile=card.orchestrator_profile,
        subagent_profile=card.subagent_profile,
        licence=card.licence,
    )
    return Served(folder, entry, card.content_hash, card.profiles, card.template)


def within_context(served: Served, context: int) -> Served:
    """The same model where no call may be longer than `context` tokens: what the engine has room for."""
    entry = served.entry
    fitted = msgspec.structs.replace(
        entry,
        context_length=min(entry.context_length, context),
        max_output_tokens=min(entry.max_output_tokens, context),
    )
    return msgspec.structs.replace(served, entry=fitted)


def with_density(served: Served, tokenizer: Tokenizer) -> Served:
    """The same model, its entry saying how much text its tokens hold."""
    density = round(len(DENSITY_SAMPLE.encode()) / len(tokenizer.encode(DENSITY_SAMPLE)), 2)
    return msgspec.structs.replace(
        served, entry=msgspec.structs.replace(served.entry, bytes_per_token=density)
    )


def bundled_folder() -> Path:
    """Where perilune-nano lies in an installation."""
    return Path(perilune.__file__).parent / BUNDLED


def _read_card(folder: Path) -> _Card:
    path = folder / CARD
    try:
        return msgspec.json.decode(read_bounded(path, MOST_CARD_BYTES), type=_Card)
    except FileNotFoundError:
        return _Card(id=folder.resolve().name.lower())
    except msgspec.ValidationError as error:
        mend = "docs/checkpoints.md shows its form; without it the folder's name is the model's"
        raise CheckpointError(f"is wrong: {error}", field=str(path), mend=mend) from error
    except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), mend=COPY_AGAIN) from error


# ---- sampling


class Sampling(msgspec.Struct, frozen=True):
    temperature: float
    top_p: float


def own_sampling(entry: ModelEntry, thinking: bool) -> Sampling:
    """What is computed with where nobody says otherwise."""
    return _of_mode(K26_SAMPLING | dict(entry.sampling), thinking)


def accepted_sampling(entry: ModelEntry, thinking: bool) -> Sampling:
    """The only values that clients may send under `strict`."""
    return _of_mode(accepted_values(entry), thinking)


def accepted_values(entry: ModelEntry) -> dict[str, Any]:
    """The same for both modes, by the names of `ModelEntry.sampling`."""
    return K26_SAMPLING | dict(entry.sampling) | dict(entry.accepted)


def effective_sampling(request: Request, entry: ModelEntry) -> Sampling:
    """The request's values, the entry's own where it names none."""
    own = own_sampling(entry, request.thinking)
    return Sampling(
        own.temperature if request.temperature is None else request.temperature,
        own.top_p if request.top_p is None else request.top_p,
    )


def _of_mode(sampling: Mapping[str, Any], thinking: bool) -> Sampling:
    temperature = sampling["temperature_thinking" if thinking else "temperature_instant"]
    return Sampling(float(temperature), float(sampling["top_p"]))
