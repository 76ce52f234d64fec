"""`$web_search` in a chat call: its fee set aside, the search made and booked, its results kept and put back.

One fee is due for each `$web_search` call that an answer holds, when its arguments go out; it is a row of the
ledger of its own, whose id is the search's. The first is set aside before the model is asked, so who cannot
pay is refused as for any call; if the model does not search, the row goes again. A search that fails costs
nothing, and the model is told. What a client sends back carries the search's id and is never a search: a
conversation may be sent again at no fee, from the results that are kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from operator import attrgetter

from perilune.accounts.accounts import Accounts
from perilune.accounts.keys import Principal
from perilune.accounts.request_ids import new_request_id
from perilune.accounts.rows import Reservation
from perilune.agent.search.provider import MAX_QUERY, Hit, SearchProvider, cleaned, less, shown
from perilune.api.search_choice import check_search, provider_of
from perilune.api.search_shelf import SearchShelf
from perilune.backends.bursts import Bursts, alone
from perilune.backends.metered import MeteredBackend, MeteredCall
from perilune.chat.messages import Event, Message, Request, ToolCallDelta, ToolCallStarted
from perilune.chat.web_search import (
    FUNCTION,
    WEB_SEARCH,
    Kept,
    declared,
    for_model,
    query_of,
    searches_named,
    wire_arguments,
    wire_id,
)
from perilune.errors import AccountError, ConfigError, InputError, SearchFailed
from perilune.settings import Settings

BYTES_PER_TOKEN = 4
"""For the size of results, where the backend cannot count."""
TOOL_CALLS = attrgetter("tool_calls")
NO_QUERY = "the call named no query"
NO_ROOM = "the context has no room for its results"
NOT_PAID = "the balance or a budget does not cover another search"


class WebSearch:
    """What the endpoints that take chat bodies share."""

    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        """Raises ConfigError for a search server's address that is none."""
        check_search(settings)
        self._settings = settings
        self._accounts = accounts
        self._shelf = SearchShelf(settings.home / "searches")

    async def for_model(self, request: Request, principal: Principal) -> Request:
        """The request with results in the place of their references, and the tool as the model knows it.

        Raises InputError where the tool is declared and no provider is set up."""
        if not request.tools and not any(map(TOOL_CALLS, request.messages)):
            return request
        if declared(request):
            self._provider(request)
        named = searches_named(request)
        kept = await asyncio.to_thread(self._shelf.find, principal.project_id, named) if named else {}
        return for_model(request, kept)

    def answer(
        self,
        asked: Request,
        request: Request,
        metered: MeteredBackend,
        principal: Principal,
        request_id: str,
        whole: bool,
    ) -> Bursts:
        """The events of one call. `asked` is the request as it came, `request` as the model sees it; `whole`
        is as in MeteredBackend.call."""
        call = metered.call(request, request_id=request_id, whole=whole)
        if not asked.tools or not declared(asked) or request.tool_choice == "none":
            return call.bursts
        searcher = _Searcher(self._accounts, self._shelf, self._provider(asked), metered, principal, request)
        return alone(searcher.answer(call, self._settings.search_results))

    def _provider(self, request: Request) -> SearchProvider:
        try:
            return provider_of(self._settings)
        except ConfigError as error:
            place = [tool.name for tool in request.tools].index(WEB_SEARCH)
            raise InputError(error.message, field=f"tools[{place}]", mend=error.mend) from error


class _Searcher:
    """The searches of one answer."""

    def __init__(
        self,
        accounts: Accounts,
        shelf: SearchShelf,
        provider: SearchProvider,
        metered: MeteredBackend,
        principal: Principal,
        request: Request,
    ) -> None:
        self._accounts = accounts
        self._shelf = shelf
        self._provider = provider
        self._metered = metered
        self._principal = principal
        self._request = request
        self._room: int | None = None
        """Tokens of the context that prompt and results have left; None until the first search."""
        self._held: Reservation | None = None
        """A fee that is set aside and not yet used."""

    async def answer(self, call: MeteredCall, limit: int) -> AsyncGenerator[Event, None]:
        """The call's events, in which each search is made before its arguments go out."""
        self._held = await self._reserve()
        started: ToolCallStarted | None = None
        arguments: list[str] = []
        try:
            async with aclosing(call):
                async for event in call:
                    if started is not None and isinstance(event, ToolCallDelta):
                        arguments.append(event.arguments)
                        continue
                    if started is not None:
                        reference = await self._made("".join(arguments), limit)
                        yield ToolCallStarted(started.index, wire_id(started.id), WEB_SEARCH)
                        yield ToolCallDelta(started.index, reference)
                        started = None
                    if isinstance(event, ToolCallStarted) and event.name == FUNCTION:
                        started, arguments = event, []
                        continue
                    yield event
        except Exception:
            call.outcome_if_left = "failed"
            raise
        finally:
            if self._held is not None:
                await self._accounts.release_search(self._held)

    async def _made(self, arguments: str, limit: int) -> str:
        """Make one search; its reference. Its results are kept before its fee is booked."""
        query = query_of(arguments)[:MAX_QUERY]
        if not query:
            return await self._failed(query, arguments, NO_QUERY)
        if self._held is None:
            try:
                self._held = await self._reserve()
            except AccountError:
                return await self._failed(query, arguments, NOT_PAID)
        try:
            hits = await self._provider.search(query, limit)
        except SearchFailed as error:
            await self._settle(found=False)
            return await self._failed(query, arguments, error.message)
        fitting = await self._fitting(query, hits)
        if fitting is None:
            await self._settle(found=False)
            return await self._failed(query, arguments, NO_ROOM)
        reservation, kept = self._held, Kept(query, arguments, *fitting)
        await self._keep(reservation.request_id, kept)
        await self._settle(found=True)
        return wire_arguments(reservation.request_id, kept)

    async def _fitting(self, query: str, found: Sequence[Hit]) -> tuple[str, int] | None:
        """What the model is shown, and its tokens: at most half of what the context has left, so that the
        next prompt has room for an answer. None where not even one result fits."""
        if self._room is None:
            quote = await self._metered.quote(self._request)
            self._room = quote.entry.context_length - quote.prompt_estimate
        hits = tuple(map(cleaned, found))
        while True:
            text = shown(query, hits)
            tokens = await self._count(text)
            if tokens <= self._room // 2:
                self._room -= tokens
                return text, tokens
            hits = less(hits)
            if not hits:
                return None

    async def _failed(self, query: str, arguments: str, why: str) -> str:
        """A reference too: the model reads why, and nobody pays."""
        text = json.dumps({"error": f"The search was not made: {why}."}, ensure_ascii=False)
        kept = Kept(query, arguments, text, await self._count(text))
        search_id = new_request_id()
        await self._keep(search_id, kept)
        return wire_arguments(search_id, kept)

    async def _keep(self, search_id: str, kept: Kept) -> None:
        await asyncio.to_thread(self._shelf.add, self._principal.project_id, search_id, kept)

    async def _reserve(self) -> Reservation:
        return await self._accounts.reserve_search(self._principal, request_id=new_request_id())

    async def _settle(self, *, found: bool) -> None:
        assert self._held is not None, "a search is paid for in advance"
        reservation, self._held = self._held, None
        await self._accounts.settle_search(reservation, found=found)

    async def _count(self, text: str) -> int:
        """Tokens of a text within a prompt, by the model's own tokenizer where it is known."""
        sizes = [
            await self._metered.count_tokens(
                Request(model=self._request.model, messages=(Message(role="user", content=f".{one}"),))
            )
            for one in ("", text)
        ]
        if sizes[0] is None or sizes[1] is None:
            return -(-len(text.encode()) // BYTES_PER_TOKEN)
        return sizes[1] - sizes[0]
