"""Which web pages may call the API from a browser: none, unless their origins are named."""

from __future__ import annotations

import re

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from perilune.errors import ConfigError

ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?")
SHOWN = (
    "x-request-id",
    "retry-after",
    "x-should-retry",
    "x-perilune-adjusted",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
)
KEEP_S = 600


def with_cors(app: ASGIApp, origins: str) -> ASGIApp:
    """`origins`: separated by commas. Keys travel in a header that pages set themselves, never in cookies.

    Raises ConfigError for what is no origin."""
    allowed = [one.strip() for one in origins.split(",") if one.strip()]
    for one in allowed:
        if one != "*" and not ORIGIN.fullmatch(one):
            raise ConfigError(
                f"{one!r} is no origin", field="cors_origins", mend="write https://chat.example.org, or *"
            )
    if not allowed:
        return app
    return CORSMiddleware(
        app,
        allow_origins=allowed,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=SHOWN,
        max_age=KEEP_S,
    )
