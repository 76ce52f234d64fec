"""POST /v1/tokenizers/estimate-token-count: how long the prompt of a chat call would be. Free."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from perilune.accounts.accounts import Accounts
from perilune.api.auth import principal_of
from perilune.api.file_references import resolve
from perilune.api.file_store import FileStore
from perilune.api.http import read_json_body, send_json
from perilune.api.models import Catalogue
from perilune.api.policy import fit
from perilune.api.sampling import Adjusted, hold_sampling
from perilune.api.web_search import WebSearch
from perilune.backends.base import Backend
from perilune.backends.metered import MeteredBackend
from perilune.chat.wire import decode_request


class EstimateTokens:
    """Takes the body of a chat call. Exact where the backend can count, else a guess from the bytes."""

    def __init__(
        self,
        backend: Backend,
        accounts: Accounts,
        catalogue: Catalogue,
        files: FileStore,
        search: WebSearch,
    ) -> None:
        self._backend = backend
        self._accounts = accounts
        self._catalogue = catalogue
        self._files = files
        self._search = search

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        call = decode_request(await read_json_body(scope, receive))
        entry = await self._catalogue.find(call.request.model)
        resolved = await resolve(call.request, self._files, principal.project_id)
        searched = await self._search.for_model(resolved, principal)
        held = hold_sampling(searched, call.unserved, entry, adjusted := Adjusted())
        request = fit(held, entry, principal.cache_salt)
        quote = await MeteredBackend(self._backend, self._accounts, principal).quote(request)
        await send_json(send, {"data": {"total_tokens": quote.prompt_estimate}}, headers=adjusted.headers())
