"""Search by a SearXNG server. Its address comes from the settings alone, and nothing else is ever fetched:
redirects are not followed, proxies of the environment not used, and what it finds is not opened.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiohttp
import msgspec

from perilune.agent.search.provider import Hit
from perilune.errors import ConfigError, SearchFailed

MAX_ANSWER = 4 * 1024 * 1024
CONNECT_S = 5.0
JSON_OFF = "its JSON format is off (add json to search.formats in its settings.yml)"


class _Result(msgspec.Struct):
    url: str = ""
    title: str = ""
    content: str | None = None


class _Answer(msgspec.Struct):
    results: list[_Result]


_answer = msgspec.json.Decoder(_Answer)


class SearxngProvider:
    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Raises ConfigError for what is no address of a server."""
        self._url = f"{_checked(url)}/search"
        self._timeout_s = timeout_s

    async def search(self, query: str, limit: int) -> tuple[Hit, ...]:
        try:
            body = await self._get({"q": query, "format": "json"})
            results = _answer.decode(body).results
        except TimeoutError as error:
            raise SearchFailed(f"the search server did not answer within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise SearchFailed("the search server cannot be reached") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SearchFailed("the search server's answer is not SearXNG's JSON") from error
        hits = (Hit(one.title, one.url, one.content or "") for one in results)
        # Engines also give magnet and data links; a page is what was asked for.
        return tuple(hit for hit in hits if hit.url.startswith(("http://", "https://")))[:limit]

    async def _get(self, parameters: dict[str, str]) -> bytes:
        limits = aiohttp.ClientTimeout(total=self._timeout_s, connect=CONNECT_S)
        async with aiohttp.ClientSession(timeout=limits, trust_env=False) as session:
            async with session.get(self._url, params=parameters, allow_redirects=False) as answer:
                if answer.status == 403:
                    raise SearchFailed(f"the search server refuses: {JSON_OFF}")
                if answer.status != 200:
                    raise SearchFailed(f"the search server answered {answer.status}")
                return await _read(answer)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for block in answer.content.iter_chunked(64 * 1024):
        body += block
        if len(body) > MAX_ANSWER:
            raise SearchFailed(f"the search server's answer is larger than {MAX_ANSWER >> 20} MiB")
        await asyncio.sleep(0)
    return bytes(body)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ConfigError(
            "is not the address of a SearXNG server",
            field="searxng_url",
            mend="write it as http://HOST:PORT, with a path if it has one",
        )
    return url.rstrip("/")
