"""Who may pass: keys as bearer tokens, checked on the route that matched.

Every route is wrapped in `Guarded` with the scope it needs, so one that nobody thought about does not
exist. The path in the request's URL plays no part in the decision: only the matched route does.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import Principal
from perilune.api.http import header
from perilune.api.rate_headers import rate_headers
from perilune.api.strangers import Strangers
from perilune.errors import InvalidKey


class Guarded:
    """Lets a request through to `app` once its key has the scope."""

    def __init__(self, app: ASGIApp, accounts: Accounts, needs: str, strangers: Strangers) -> None:
        self._app = app
        self._accounts = accounts
        self._needs = needs
        self._strangers = strangers

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        try:
            secret = bearer(header(scope, b"authorization"))
            principal = self._accounts.authenticate(secret, self._needs)
        except InvalidKey:
            client = scope.get("client")
            self._strangers.came(client[0] if client else "")
            raise
        scope["perilune.principal"] = principal
        scope["perilune.limits"] = partial(rate_headers, self._accounts, principal)
        return self._app(scope, receive, send)


def principal_of(scope: Scope) -> Principal:
    """Whom the key of this request stands for. Only behind `Guarded`."""
    principal: Principal = scope["perilune.principal"]
    return principal


def bearer(value: str) -> str:
    """The key in an Authorization header. Raises InvalidKey when there is none."""
    scheme, _, secret = value.strip().partition(" ")
    secret = secret.lstrip()
    if scheme.lower() != "bearer" or not secret:
        raise InvalidKey(
            "Invalid Authentication: no API key was sent",
            field="Authorization",
            mend="send `Authorization: Bearer plk_...`",
        )
    return secret
