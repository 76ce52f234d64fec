"""TLS by certificate files, and which web pages may call from a browser."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from api_server import serving, talker

from perilune.api.serve import serve
from perilune.api.tls import tls_context
from perilune.errors import ConfigError
from perilune.settings import Settings

HI: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")


def make_certificate(folder: Path, *extra: str) -> tuple[str, str]:
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    if not extra:
        words.append("-nodes")
    words += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        key,
        "-out",
        cert,
    ]
    subprocess.run(["openssl", *words, *extra], check=True, capture_output=True)
    return cert, key


@needs_openssl
async def test_https_by_certificate_files(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=cert)
    async with serving(tmp_path / "home", talker(), tls_cert=cert, tls_key=key) as api:
        assert api.root.startswith("https://127.0.0.1:")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as web:
            for stream in (False, True):
                body = HI | {"stream": stream}
                async with web.post(api.root + CHAT, json=body, headers=api.auth) as answer:
                    assert answer.status == 200 and b"usage" in await answer.read()
        async with aiohttp.ClientSession() as web:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await web.get(api.root + "/healthz")
            with pytest.raises(aiohttp.ClientError):
                await web.get(api.root.replace("https", "http") + "/healthz")
    context = tls_context(Settings.load(tmp_path, {"tls_cert": cert, "tls_key": key}, {}))
    assert context is not None and context.minimum_version == ssl.TLSVersion.TLSv1_2


@needs_openssl
async def test_files_that_cannot_serve_are_named_before_the_model_is_opened(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = make_certificate(tmp_path / "other")
    (tmp_path / "locked").mkdir()
    locked = make_certificate(tmp_path / "locked", "-passout", "pass:secret")
    wrong = [
        ("", key, "tls_cert: is missing"),
        (cert, str(tmp_path / "none.pem"), "No such file"),
        (cert, other, "cannot be used"),
        (*locked, "without a password"),
        (key, key, "cannot be used"),
    ]
    for one, two, words in wrong:
        settings = Settings.load(tmp_path / "home", {"port": 0, "tls_cert": one, "tls_key": two}, {})
        with pytest.raises(ConfigError, match=words):
            await serve(settings, open_model=None)  # type: ignore[arg-type]  # it is not called


def test_no_certificate_is_no_tls(tmp_path: Path) -> None:
    assert tls_context(Settings.load(tmp_path, {}, {})) is None


# ---- browsers

PAGE = "https://chat.example.org"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


async def test_no_page_may_call_unless_it_is_named(tmp_path: Path) -> None:
    async with serving(tmp_path, talker()) as api, aiohttp.ClientSession() as web:
        async with web.options(api.root + CHAT, headers=PREFLIGHT) as answer:
            assert answer.status == 405
            assert not any(name.lower().startswith("access-control") for name in answer.headers)
        async with web.post(api.root + CHAT, json=HI, headers=api.auth | {"Origin": PAGE}) as answer:
            assert not any(name.lower().startswith("access-control") for name in answer.headers)


async def test_a_page_that_is_named_may_call(tmp_path: Path) -> None:
    origins = f"https://other.example.org, {PAGE}"
    async with serving(tmp_path, talker(), cors_origins=origins) as api, aiohttp.ClientSession() as web:
        async with web.options(api.root + CHAT, headers=PREFLIGHT) as answer:
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "authorization" in answer.headers["access-control-allow-headers"].lower()
            assert "access-control-allow-credentials" not in answer.headers
        async with web.options(api.root + CHAT, headers=PREFLIGHT | {"Origin": "https://evil.org"}) as answer:
            assert answer.status == 400 and "access-control-allow-origin" not in answer.headers
        for origin, seen in ((PAGE, PAGE), ("https://evil.org", None), ("null", None)):
            headers = api.auth | {"Origin": origin}
            async with web.post(api.root + CHAT, json=HI, headers=headers) as answer:
                assert answer.headers.get("access-control-allow-origin") == seen
            async with web.post(api.root + CHAT, json=HI, headers={"Origin": origin}) as answer:
                assert answer.status == 401  # being named gives no key


@pytest.mark.parametrize(
    "origins", ["chat.example.org", "https://x/path", "null", "https://*", "javascript:1"]
)
async def test_what_is_no_origin_is_refused(tmp_path: Path, origins: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        async with serving(tmp_path, talker(), cors_origins=origins):
            raise AssertionError("it started")
