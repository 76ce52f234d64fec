"""The HTTP door: the table of routes, and the app made of it.

A request passes Edge (id, errors), the route that matches, Guarded (key and scope), the endpoint.
"""

from __future__ import annotations

from starlette.types import ASGIApp

from perilune.accounts.accounts import Accounts
from perilune.api.balance import Balance
from perilune.api.chat_completions import ChatCompletions
from perilune.api.cors import with_cors
from perilune.api.doors import Door, app_of
from perilune.api.file_store import FileStore
from perilune.api.files import DeleteFile, FileContent, ListFiles, OneFile, UploadFile
from perilune.api.health import Ready, health
from perilune.api.hosts import KnownHosts, names_of
from perilune.api.metrics import HttpCounters, Metrics
from perilune.api.models import Catalogue, ListModels, OneModel
from perilune.api.reference.document import public_document
from perilune.api.reference.served import Reference
from perilune.api.tokenizers import EstimateTokens
from perilune.api.web_search import WebSearch
from perilune.backends.base import Backend
from perilune.settings import Settings


def doors(
    settings: Settings, backend: Backend, accounts: Accounts, http: HttpCounters | None = None
) -> tuple[Door, ...]:
    """All that is served."""
    catalogue = Catalogue(backend, settings.serve_as)
    files = FileStore(settings.home / "files")
    search = WebSearch(settings, accounts)
    chat = ChatCompletions(
        backend, accounts, catalogue, files, search, strict_history=settings.thinking_history == "strict"
    )
    estimate = EstimateTokens(backend, accounts, catalogue, files, search)
    table: list[Door] = []
    reference = Reference(lambda: public_document(table))
    table += (
        Door("POST", "/v1/chat/completions", "chat", chat),
        Door("GET", "/v1/models", "chat", ListModels(catalogue)),
        Door("GET", "/v1/models/{id:path}", "chat", OneModel(catalogue)),
        Door("POST", "/v1/tokenizers/estimate-token-count", "chat", estimate),
        Door("GET", "/v1/users/me/balance", "chat", Balance(accounts)),
        Door("POST", "/v1/files", "chat", UploadFile(files)),
        Door("GET", "/v1/files", "chat", ListFiles(files)),
        Door("GET", "/v1/files/{id}", "chat", OneFile(files)),
        Door("GET", "/v1/files/{id}/content", "chat", FileContent(files)),
        Door("DELETE", "/v1/files/{id}", "chat", DeleteFile(files)),
        Door("GET", "/healthz", "nothing", health),
        Door("GET", "/readyz", "nothing", Ready(backend)),
        Door("GET", "/metrics", "admin", Metrics(http or HttpCounters(), accounts, backend)),
    )
    if settings.api_docs:
        table += (
            Door("GET", "/openapi.json", "nothing", reference.json),
            Door("GET", "/docs", "nothing", reference.html),
        )
    return tuple(table)


def build_app(
    settings: Settings, backend: Backend, accounts: Accounts, http: HttpCounters | None = None
) -> ASGIApp:
    """The app. It owns neither backend nor accounts: whoever opened them closes them."""
    counters = http or HttpCounters()
    app = app_of(doors(settings, backend, accounts, counters), accounts, counters)
    names = names_of(settings.allowed_hosts)
    return with_cors(KnownHosts(app, names, counters) if names else app, settings.cors_origins)
