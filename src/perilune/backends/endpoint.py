"""Talking HTTP to somebody's endpoint: its URL, our session, and what went wrong in words."""

from __future__ import annotations

import email.utils
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import aiohttp

from perilune.backends.plain_http import PlainResponse, PlainSession
from perilune.chat.wire import decode_error
from perilune.errors import (
    BackendError,
    BackendProtocol,
    BackendUnreachable,
    ConfigError,
)

CONNECT_TIMEOUT_S = 10.0
MOST_ANSWER_BYTES = 64 * 1024 * 1024
PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
TOO_LONG = re.compile(
    rb"exceeded model token limit|token length too long|context_length_exceeded|maximum context length", re.I
)
CHECK_URL = "check the URL; most endpoints end in /v1"


def base_url(text: str) -> str:
    """The URL that `/chat/completions` is put behind: with a scheme, without a slash at the end. A bare
    host gets `/v1`. Raises ConfigError for what is no such URL."""
    url = text.strip()
    if "://" not in url:
        url = f"{'http' if _is_local(url) else 'https'}://{url}"
    url = url.rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or url.split() != [url]:
        raise _not_a_url(text, "write it like https://api.example.com/v1")
    if parts.username is not None or parts.password is not None:
        raise _not_a_url("the URL", "give the key by itself, not in the URL")
    if parts.query or parts.fragment:
        raise _not_a_url(text, "leave out what follows ? or #")
    return url if parts.path else f"{url}/v1"


def auth_headers(key: str) -> dict[str, str]:
    """Raises ConfigError for a key that cannot be sent in a header."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("the key has characters that no key has", field="model_key", mend="copy it again")
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
    return headers | {"Authorization": f"Bearer {key}"} if key else headers


def new_session(timeout_s: float) -> aiohttp.ClientSession:
    """Unlimited connections (admission is decided elsewhere); `timeout_s` is the longest silence."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


class AiohttpSession:
    """What `PlainSession` is, for URLs with TLS."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self._url = url
        self._headers = headers
        self._session = new_session(timeout_s)

    async def post(self, body: bytes) -> aiohttp.ClientResponse:
        return await self._session.post(self._url, data=body, headers=self._headers, allow_redirects=False)

    async def close(self) -> None:
        await self._session.close()


def open_session(url: str, headers: Mapping[str, str], timeout_s: float) -> PlainSession | AiohttpSession:
    """For calls to one URL; `timeout_s` is the longest silence."""
    if url.startswith("http://"):
        return PlainSession(url, headers, connect_s=CONNECT_TIMEOUT_S, silence_s=timeout_s)
    return AiohttpSession(url, headers, timeout_s)


async def read_capped(response: aiohttp.ClientResponse | PlainResponse) -> bytes:
    """The whole body. Raises BackendProtocol when it is absurdly long, aiohttp's errors when it is cut."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MOST_ANSWER_BYTES:
            raise BackendProtocol("the endpoint's answer is endless")
    return bytes(body)


# ---- what went wrong


def connection_error(error: BaseException, url: str, timeout_s: float) -> BackendError:
    """A failure of the connection, before any of the answer had arrived."""
    match error:
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return BackendUnreachable(
                f"there is no host {urlsplit(url).hostname}", field="model_url", mend="check the URL"
            )
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLError():
            return BackendUnreachable(
                f"no trusted TLS connection to {url}",
                field="model_url",
                mend="check its certificate, or use http:// if it speaks no TLS",
            )
        case aiohttp.ConnectionTimeoutError():
            return BackendUnreachable(
                f"{url} did not accept a connection within {CONNECT_TIMEOUT_S:g} s",
                mend="check that it is up and that no firewall is between",
            )
        case TimeoutError():
            return BackendUnreachable(
                f"{url} was silent for {timeout_s:g} s", mend="raise model_timeout_s if it is only slow"
            )
        case aiohttp.ClientConnectorError():
            return BackendUnreachable(
                f"nothing answers at {url}: {error.strerror or 'connection failed'}",
                mend="start the endpoint or check the URL",
            )
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return BackendUnreachable(f"{url} closed the connection without an answer", mend="try later")
        case ConnectionError():
            return BackendUnreachable(
                f"nothing answers at {url}: {error.strerror or 'connection failed'}",
                mend="start the endpoint or check the URL",
            )
        case aiohttp.ClientPayloadError():
            return BackendUnreachable(f"{url} cut its answer short", mend="try later")
        case _:
            return BackendProtocol(f"{url} does not speak HTTP", mend=CHECK_URL)


def may_pass(error: BaseException) -> bool:
    """Whether this failure of the connection may be gone at the next try. A read that timed out is not
    tried again: the silence allowed is long, and the work may have been done."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return True
    if isinstance(error, TimeoutError | aiohttp.ClientSSLError | ssl.SSLError):
        return False
    return isinstance(error, OSError | aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError)


def refusal(response: aiohttp.ClientResponse | PlainResponse, body: bytes, url: str) -> BackendError:
    """What a status other than 200 means, with the endpoint's own words and our mend."""
    status = response.status
    if 300 <= status < 400:
        where = response.headers.get("Location", "elsewhere")
        return BackendProtocol(f"{url} redirects to {where}", field="model_url", mend="give that URL instead")
    if status < 400:
        return BackendProtocol(f"{url} answered with the status {status}", mend=CHECK_URL)
    if response.content_type in PAGE_TYPES:
        body = response.reason.encode() if response.reason else b""
    error = decode_error(status, body, retry_after(response.headers.get("Retry-After")))
    if status == 404 and error.mend is None:
        error.mend = f"check the model's name with `perilune connect`, then the URL {url}"
    return error


def is_too_long(body: bytes) -> bool:
    """A refusal because the conversation outgrew the model, in the words of Kimi, OpenAI and vLLM."""
    return TOO_LONG.search(body) is not None


def web_page(url: str) -> BackendProtocol:
    return BackendProtocol(f"{url} answers with a web page, not with JSON", field="model_url", mend=CHECK_URL)


def retry_after(value: str | None) -> float | None:
    """Seconds, from either form of the header; None when there is none that can be read."""
    if value is None:
        return None
    if value.strip().replace(".", "", 1).isdecimal():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def _is_local(url: str) -> bool:
    host = url.partition("/")[0].rpartition(":")[0] or url.partition("/")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_private
    except ValueError:
        return False


def _not_a_url(text: str, mend: str) -> ConfigError:
    return ConfigError(f"{text} is not the URL of an endpoint", field="model_url", mend=mend)


def body_shape(kind: str, first: bytes) -> Literal["page", "stream", "whole"]:
    """What a body is. Its beginning tells where the content type does not: proxies and small servers often
    send none, or a wrong one."""
    start = first.lstrip()[:1]
    if kind in PAGE_TYPES or start == b"<":
        return "page"
    if kind == "application/json" or (kind != "text/event-stream" and start not in b"dei:r"):
        return "whole"
    return "stream"
