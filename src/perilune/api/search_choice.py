"""Which search provider the settings choose."""

from __future__ import annotations

from perilune.agent.search.index_tables import FILE_NAME
from perilune.agent.search.local import LocalProvider
from perilune.agent.search.provider import SearchProvider
from perilune.agent.search.searxng import SearxngProvider
from perilune.errors import ConfigError
from perilune.settings import Settings

MENDS = {
    "": "the operator sets searxng_url, or makes an index with: perilune index DIR",
    "off": "the operator changes the setting web_search",
    "local": "the operator makes the index with: perilune index DIR",
    "searxng": "the operator sets searxng_url",
}


def provider_of(settings: Settings) -> SearchProvider:
    """Raises ConfigError naming the setting where there is none, or where an address is none."""
    index = settings.home / FILE_NAME
    chosen = settings.web_search or ("searxng" if settings.searxng_url else "local")
    if chosen == "searxng" and settings.searxng_url:
        return SearxngProvider(settings.searxng_url, timeout_s=settings.search_timeout_s)
    if chosen == "local" and index.exists():
        return LocalProvider(index, timeout_s=settings.search_timeout_s)
    raise ConfigError(
        "no web search is set up on this server", field="web_search", mend=MENDS[settings.web_search]
    )
