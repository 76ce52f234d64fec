"""K2's byte-level tokenizer, read from a checkpoint folder: text to token ids and back.

Two files: `tiktoken.model` holds the ranks (one `base64 rank` pair a line), `tokenizer_config.json`
names the control tokens behind them. Nothing here knows how many there are, so the official tokenizer
and a bundled small one load alike. Text never turns into control tokens: only `Tokenizer.special` does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import msgspec
import tiktoken

from perilune.chat.model_files import COPY_AGAIN, read_bounded
from perilune.errors import TokenizerError

RANKS_FILE = "tiktoken.model"
CONFIG_FILE = "tokenizer_config.json"

# ---- the control tokens that the template and the parser deal in

IM_END = "<|im_end|>"
IM_USER = "<|im_user|>"
IM_ASSISTANT = "<|im_assistant|>"
IM_SYSTEM = "<|im_system|>"
IM_MIDDLE = "<|im_middle|>"
SECTION_BEGIN = "<|tool_calls_section_begin|>"
SECTION_END = "<|tool_calls_section_end|>"
CALL_BEGIN = "<|tool_call_begin|>"
CALL_ARGUMENTS = "<|tool_call_argument_begin|>"
CALL_END = "<|tool_call_end|>"
THINK = "<think>"
END_THINK = "</think>"

REQUIRED = (
    *(IM_END, IM_USER, IM_ASSISTANT, IM_SYSTEM, IM_MIDDLE),
    *(SECTION_BEGIN, SECTION_END, CALL_BEGIN, CALL_ARGUMENTS, CALL_END),
    *(THINK, END_THINK),
)
STOPS = (IM_END, "[EOS]", "[EOT]")
"""Older K2 configurations end an answer by the other two."""
MOST_TOKENS = 2**24
MOST_BYTES = 256 * 1024**2
"""Above these a file is damaged; K2's have 163,840 tokens and 2.8 MB."""
NEVER_SAMPLED = (
    *(IM_USER, IM_ASSISTANT, IM_SYSTEM, IM_MIDDLE, "[BOS]", "[UNK]", "[PAD]"),
    *("<|start_header_id|>", "<|end_header_id|>"),
    *("<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>"),
)

# ---- how text is cut before the ranks are applied

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

LONGEST_TEXT = 400_000
LONGEST_RUN = 25_000
"""Longer texts, and longer runs of only spaces or only non-spaces, are cut there: the official tokenizer
does so, and without it the pattern's backtracking has no bound."""


class Tokenizer:
    """Immutable after loading; safe to share between threads."""

    def __init__(
        self, ranks: Mapping[bytes, int], specials: Mapping[str, int], folder: Path = Path()
    ) -> None:
        """`specials` are all ids behind the ranks, without gaps; `folder` is where they were read, for
        messages. Raises TokenizerError."""
        _check_ranks(ranks, folder / RANKS_FILE)
        _check_specials(specials, len(ranks), folder / CONFIG_FILE)
        self.specials: Mapping[str, int] = MappingProxyType(dict(specials))
        self._tokens = _token_table(ranks, specials)
        self._bpe = tiktoken.Encoding(
            "perilune", pat_str=PATTERN, mergeable_ranks=dict(ranks), special_tokens={}
        )
        self.eos_id = self.specials[IM_END]
        self.stop_ids = tuple(self.specials[name] for name in STOPS if name in self.specials)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a checkpoint folder's tokenizer. Raises TokenizerError naming the file and what is wrong."""
        ranks = _read_ranks(folder / RANKS_FILE)
        return cls(ranks, _read_specials(folder / CONFIG_FILE, len(ranks)), folder)

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def special(self, name: str) -> int:
        """The id of a control token. Raises TokenizerError for a name this tokenizer lacks."""
        try:
            return self.specials[name]
        except KeyError:
            raise TokenizerError(
                "this tokenizer has no such control token", field=name, mend="use a tokenizer of K2's family"
            ) from None

    @property
    def never_sampled(self) -> tuple[int, ...]:
        """Control tokens that belong to prompts only: a model must not write them."""
        reserved = (name for name in self.specials if name.startswith("<|reserved_token_"))
        return tuple(self.specials[name] for name in (*NEVER_SAMPLED, *reserved) if name in self.specials)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text. A control token's name in `text` is text like any other."""
        if len(text) <= LONGEST_RUN:
            return self._bpe.encode_ordinary(text)
        return [token for part in _bounded_parts(text) for token in self._bpe.encode_ordinary(part)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids, control tokens as their names. Raises TokenizerError for an unknown id."""
        try:
            return b"".join([self._tokens[token] for token in ids])
        except IndexError:
            raise TokenizerError(
                f"a token id is not below {self.vocab_size}", mend="use the tokenizer that made the ids"
            ) from None

    def token_bytes(self) -> tuple[bytes, ...]:
        """Bytes of every id in order, control tokens as their names."""
        return self._tokens


# ---- files


class _AddedToken(msgspec.Struct):
    content: str


class _Config(msgspec.Struct):
    added_tokens_decoder: dict[int, _AddedToken]


def _wrong(path: Path, problem: str) -> TokenizerError:
    return TokenizerError(problem, field=str(path), mend=COPY_AGAIN)


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise _wrong(path, f"line {number} is not `base64 rank`") from None
    return ranks


def _read_specials(path: Path, first: int) -> dict[str, int]:
    """Named control tokens, and `<|reserved_token_ID|>` for the ids between them."""
    try:
        config = msgspec.json.decode(_read(path), type=_Config, strict=False)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _wrong(path, f"is not a tokenizer configuration: {error}") from error
    names = {token: added.content for token, added in config.added_tokens_decoder.items()}
    end = max(names, default=first - 1) + 1
    if end > MOST_TOKENS:
        raise _wrong(path, f"names id {end - 1}, and no vocabulary is so large")
    if low := [token for token in names if token < first]:
        raise _wrong(path, f"names id {low[0]}, which is one of the {first} text tokens")
    return {names.get(token, f"<|reserved_token_{token}|>"): token for token in range(first, end)}


def _check_ranks(ranks: Mapping[bytes, int], path: Path) -> None:
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise _wrong(path, f"does not number its {len(ranks)} tokens from 0 without gaps")
    missing = [value for value in range(256) if bytes((value,)) not in ranks]
    if missing:
        raise _wrong(path, f"lacks the single byte {missing[0]:#04x}")


def _check_specials(specials: Mapping[str, int], first: int, path: Path) -> None:
    if missing := [name for name in REQUIRED if name not in specials]:
        raise _wrong(path, f"lacks {missing[0]}, a control token of the chat format")
    if sorted(specials.values()) != list(range(first, first + len(specials))):
        raise _wrong(path, f"must give control tokens the ids from {first} on, each once")


def _token_table(ranks: Mapping[bytes, int], specials: Mapping[str, int]) -> tuple[bytes, ...]:
    table = [b""] * (len(ranks) + len(specials))
    for token, rank in ranks.items():
        table[rank] = token
    for name, token_id in specials.items():
        table[token_id] = name.encode()
    return tuple(table)


# ---- bounds


def _bounded_parts(text: str) -> Iterator[str]:
    for start in range(0, len(text), LONGEST_TEXT):
        yield from _bounded_runs(text[start : start + LONGEST_TEXT])


def _bounded_runs(text: str) -> Iterator[str]:
    """Cut within runs of spaces or of non-spaces that are longer than LONGEST_RUN."""
    start = 0
    for run in re.finditer(r"\s+|\S+", text):
        for cut in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN):
            yield text[start:cut]
            start = cut
    yield text[start:]
