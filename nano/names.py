"""Made-up names, paths and directories: real ones, compounds of real words, random letters."""

from __future__ import annotations

import keyword
import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from nano.corpus import Corpus, Record


@dataclass(frozen=True)
class Pool:
    """What names are made of; one for training, one for evaluation."""

    names: Sequence[str]
    words: Sequence[str]
    paths: Sequence[str]
    records: Sequence[Record]

    @classmethod
    def training(cls, corpus: Corpus) -> Pool:
        return cls(corpus.names, corpus.words, corpus.paths, corpus.records)

    @classmethod
    def held_out(cls, corpus: Corpus) -> Pool:
        return cls(corpus.held_names, corpus.held_words, corpus.held_paths, corpus.held_records)


def word(pool: Pool, rng: random.Random) -> str:
    if rng.random() < 0.25:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 8)))
    return rng.choice(pool.words)


def name(pool: Pool, rng: random.Random) -> str:
    """An identifier that is no keyword."""
    while True:
        made = rng.choice(pool.names) if rng.random() < 0.4 else _compound(pool, rng)
        if made.isidentifier() and not keyword.iskeyword(made) and len(made) < 32:
            return made


def _compound(pool: Pool, rng: random.Random) -> str:
    words = [word(pool, rng) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
    if rng.random() < 0.08:
        words.append(rng.choice(words))
    style = rng.random()
    if style < 0.15:
        made = "".join(part.capitalize() for part in words)
    elif style < 0.25:
        made = words[0] + "".join(part.capitalize() for part in words[1:])
    elif style < 0.32:
        made = "_".join(words).upper()
    else:
        made = "_".join(words)
    if rng.random() < 0.08:
        made = "_" + made
    if rng.random() < 0.12:
        made += rng.choice(("", "_")) + str(rng.randint(0, 99))
    return made


VARIANTS, TRAINED_VARIANTS = 0.38, 0.5
"""Share of new names that hold or share part of the old one; in training more, for they are hard."""


def new_name(old: str, pool: Pool, rng: random.Random, variants: float = VARIANTS) -> str:
    """What OLD may be renamed to: another name, or one that holds or shares part of OLD."""
    while True:
        made = _variant(old, pool, rng) if rng.random() < variants else name(pool, rng)
        if made != old and made.isidentifier() and not keyword.iskeyword(made) and len(made) < 40:
            return made


def _variant(old: str, pool: Pool, rng: random.Random) -> str:
    other = word(pool, rng)
    parts = old.split("_")
    swapped = list(parts)
    swapped[rng.randrange(len(parts))] = other
    return rng.choice(
        (
            f"{old}_{other}",
            f"{other}_{old}",
            f"{old}{rng.randint(2, 9)}",
            f"{old}_{rng.choice(('new', 'v2', 'impl', 'all', 'x'))}",
            f"new_{old}",
            f"_{old}",
            f"{old}{other.capitalize()}",
            "_".join(swapped),
            "_".join(reversed(parts)),
            "_".join(parts[:-1]) or other,
        )
    )


def path(pool: Pool, rng: random.Random, *, near: Sequence[str] = ()) -> str:
    """A file path; `near` are names whose words it may share."""
    style = rng.random()
    if style < 0.4:
        parts = rng.choice(pool.paths).split("/")
        made = "/".join(parts[-rng.choice((1, 2, 3, 3, 4)) :])
        return f"src/{made}" if rng.random() < 0.2 else made
    folders = [word(pool, rng) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))]
    if rng.random() < 0.4:
        folders = ["src", *folders]
    stem = rng.choice((name(pool, rng).lower(), name(pool, rng).lower(), word(pool, rng), "__init__"))
    if near and rng.random() < 0.25:
        stem = rng.choice(_stems(rng.choice(near)))
        if folders and rng.random() < 0.3:
            folders[-1] = rng.choice(_stems(rng.choice(near)))
    return "/".join([*folders, f"{stem}.py"])


def _stems(made: str) -> list[str]:
    words = [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", made)]
    return [*words, "_".join(words), made.lower()] if words else [made.lower()]


def directory(pool: Pool, rng: random.Random) -> str:
    if rng.random() < 0.3:
        parts = rng.choice(pool.paths).split("/")[:-1]
        return "/".join(parts[-rng.choice((1, 2, 3)) :]) or word(pool, rng)
    return "/".join(
        [*(["src"] if rng.random() < 0.4 else []), *(word(pool, rng) for _ in range(rng.choice((1, 1, 2))))]
    )


def files_of(folder: str, count: int, pool: Pool, rng: random.Random) -> list[str]:
    """`count` sorted distinct paths below the folder, many in the same sub-folder, some with shared stems."""
    subs = ["", *(f"{word(pool, rng)}/" for _ in range(rng.choice((0, 1, 1, 2))))]
    stem = word(pool, rng)
    made: set[str] = set()
    while len(made) < count:
        style = rng.random()
        if style < 0.25:
            last = rng.choice(pool.paths).split("/")[-1]
        elif style < 0.4:
            last = f"{stem}_{word(pool, rng)}.py"
        elif style < 0.5:
            last = f"{word(pool, rng)}_{stem}.py"
        elif style < 0.55:
            last = f"{stem}_{rng.randint(0, 299)}.py"
        elif style < 0.6:
            last = f"{stem}{rng.randint(0, 99):02d}.py"
        elif style < 0.66:
            last = "__init__.py"
        elif style < 0.74:
            last = f"test_{word(pool, rng)}.py"
        elif style < 0.84:
            last = f"{word(pool, rng)}.py"
        else:
            last = f"{name(pool, rng).lower()}.py"
        made.add(f"{folder}/{rng.choice(subs)}{last}")
    return sorted(made)


def damaged(text: str, rng: random.Random) -> str:
    """The text with one of a model's copying mistakes in it."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d|_|.", text)
    style, at = rng.random(), rng.randrange(len(parts))
    if len(parts) > 1 and style < 0.4:
        return "".join(parts[:at] + parts[at + 1 :])
    if style < 0.6:
        return "".join([*parts[:at], parts[at], *parts[at:]])
    if style < 0.8:
        return text + rng.choice("sxe_")
    place = rng.randrange(len(text))
    return text[:place] + rng.choice(string.ascii_lowercase) + text[place + 1 :]
