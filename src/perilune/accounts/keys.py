"""API keys: how they look, how they are stored, what they may do.

A key is `plk_ENVIRONMENT_RANDOM_CHECKSUM`, 32 and 6 letters and digits, shown once; those of earlier versions
name no environment. The database holds its HMAC-SHA-256 digest under a secret that lies outside the database
(HOME/key-secret), so neither file alone can be matched to leaked keys. Keys are looked up by digest; no
stored secret is ever compared.
"""

from __future__ import annotations

import functools
import hmac
import os
import re
import secrets
import string
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perilune.errors import ConfigError, StoreError
from perilune.store import replace_file

PREFIX = "plk_"
RANDOM_LENGTH = 32
"""190 bits."""
CHECKSUM_LENGTH = 6
SHOWN = 4
"""Random characters, and then characters of the end, in a hint."""
ENVIRONMENT = re.compile(r"[a-z][a-z0-9]{0,11}")
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
SCOPES = frozenset({"admin", "chat"})
"""`chat` calls models and runs swarms; `admin` manages keys and money."""
SECRET_FILE = "key-secret"
SECRET_BYTES = 32


@dataclass(frozen=True)
class Principal:
    """Who a call is for: a key of a project of an organisation."""

    key_id: int
    key_name: str
    project_id: int
    organisation_id: int
    scopes: frozenset[str]

    @functools.cached_property
    def cache_salt(self) -> str:
        """Prefix reuse never crosses organisations."""
        return f"organisation-{self.organisation_id}"

    @functools.cached_property
    def label(self) -> str:
        """How the hosted API's messages name an account."""
        return f"org-{self.organisation_id}<ak-{self.key_id}>"


@dataclass(frozen=True)
class KeyRow:
    """One key as the database holds it."""

    principal: Principal
    digest: bytes
    hint: str
    """Its beginning and its end: enough to recognise it by, too little to use."""
    expires_ms: int | None
    disabled: bool


def new_secret(environment: str = "live") -> str:
    """A fresh key."""
    body = f"{environment}_" + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_LENGTH))
    return f"{PREFIX}{body}_{_checksum(body)}"


def well_formed(secret: str) -> bool:
    """Whether this can be a key of ours at all: told without a look-up, so junk costs nothing."""
    if not secret.startswith(PREFIX) or not secret.isascii():
        return False
    body, _, checksum = secret[len(PREFIX) :].rpartition("_")
    environment, named, chance = body.rpartition("_")
    if len(chance) != RANDOM_LENGTH or (named and not ENVIRONMENT.fullmatch(environment)):
        return False
    return hmac.compare_digest(_checksum(body), checksum)


def check_environment(name: str) -> str:
    """Raises ConfigError for what cannot stand in a key."""
    if not ENVIRONMENT.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot stand in keys",
            field="key_environment",
            mend="use up to 12 small letters and digits, a letter first",
        )
    return name


def digest_of(secret: str, key_secret: bytes) -> bytes:
    return hmac.digest(key_secret, secret.encode(), "sha256")


def hint_of(secret: str) -> str:
    begun = len(secret) - CHECKSUM_LENGTH - 1 - RANDOM_LENGTH + SHOWN
    return f"{secret[:begun]}…{secret[-SHOWN:]}"


def check_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes as a set. Raises ConfigError for an unknown one."""
    chosen = frozenset(scopes)
    if not chosen or not chosen <= SCOPES:
        raise ConfigError(f"a key's scopes are one or more of {', '.join(sorted(SCOPES))}", field="scopes")
    return chosen


def key_secret(home: Path, *, has_keys: bool) -> bytes:
    """The secret under which digests are made; made at the first start.

    Raises ConfigError when it is gone although keys exist: no key would be recognised any more."""
    path = home / SECRET_FILE
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        if has_keys:
            raise ConfigError(
                f"{path} is missing, so no key can be recognised",
                field="home",
                mend="restore it from a backup; or move accounts.db away to start with new accounts",
            ) from None
        secret = os.urandom(SECRET_BYTES)
        replace_file(path, secret)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"{path} is not {SECRET_BYTES} bytes", field="home", mend="restore it")
    return secret


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode("ascii", "replace"))
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
