"""Which search provider the settings choose."""

from __future__ import annotations

from perilune.agent.search.index_tables import FILE_NAME
from perilune.agent.search.local import LocalProvider
from perilune.agent.search.provider import SearchProvider
from perilune.agent.search.searxng import SearxngProvider
from perilune.errors import ConfigError
from perilune.settings import Settings

MENDS = {
    "": "the operator sets searxng_url or web_search, or makes an index with: perilune index DIR",
    "off": "the operator has set web_search to off",
    "local": "the operator has set web_search to local, and makes the index with: perilune index DIR",
    "searxng": "the operator has set web_search to searxng, and sets searxng_url too",
}


def provider_of(settings: Settings) -> SearchProvider:
    """Looked for at each search, so an index that is made beside a running server is found.

    Raises ConfigError naming the setting where there is none, or where an address is none."""
    index = settings.home / FILE_NAME
    chosen = settings.web_search or ("searxng" if settings.searxng_url else "local")
    if chosen == "searxng" and settings.searxng_url:
        return _searxng(settings)
    if chosen == "local" and index.exists():
        return LocalProvider(index, timeout_s=settings.search_timeout_s)
    raise ConfigError(
        "no web search is set up on this server", field="web_search", mend=MENDS[settings.web_search]
    )


def check_search(settings: Settings) -> None:
    """For a server's start: an address that can never work is told at once. Raises ConfigError."""
    if settings.searxng_url:
        _searxng(settings)
    elif settings.web_search == "searxng":
        raise ConfigError(
            "searxng needs the address of a server", field="web_search", mend="set searxng_url too"
        )


def _searxng(settings: Settings) -> SearchProvider:
    return SearxngProvider(settings.searxng_url, timeout_s=settings.search_timeout_s)
