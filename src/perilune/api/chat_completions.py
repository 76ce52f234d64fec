"""POST /v1/chat/completions, whole and streamed.

Every call goes through MeteredBackend, which reserves before and settles after; an answer's last byte
leaves only when its events are exhausted, that is, when it is settled. A client that leaves ends the call,
which then settles what was made. An error before the stream has begun has its HTTP status; later it is an
event of the stream, which ends without `[DONE]`.
"""

from __future__ import annotations

import time

from starlette.types import Receive, Scope, Send

from perilune.accounts.accounts import Accounts
from perilune.api.auth import principal_of
from perilune.api.edge import request_id_of, told
from perilune.api.event_stream import EventStream, Outbox
from perilune.api.file_references import resolve
from perilune.api.file_store import FileStore
from perilune.api.http import ClientGone, read_json_body, send_json
from perilune.api.models import Catalogue
from perilune.api.policy import check_history, fit
from perilune.api.presence import ClientPresent
from perilune.api.sampling import Adjusted, hold_length, hold_sampling
from perilune.api.web_search import WebSearch
from perilune.backends.base import Backend
from perilune.backends.bursts import Bursts
from perilune.backends.metered import MeteredBackend
from perilune.chat.messages import Assembler, Finished
from perilune.chat.wire import ChunkEncoder, decode_request, encode_completion, encode_error_event


class ChatCompletions:
    def __init__(
        self,
        backend: Backend,
        accounts: Accounts,
        catalogue: Catalogue,
        files: FileStore,
        search: WebSearch,
        *,
        strict_history: bool = False,
    ) -> None:
        self._backend = backend
        self._accounts = accounts
        self._catalogue = catalogue
        self._files = files
        self._search = search
        self._strict_history = strict_history
        self._outbox = Outbox()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        call = decode_request(await read_json_body(scope, receive))
        name = call.request.model
        entry = await self._catalogue.find(name)
        if self._strict_history:
            check_history(call.request)
        resolved = await resolve(call.request, self._files, principal.project_id)
        searched = await self._search.for_model(resolved, principal)
        adjusted = Adjusted()
        held = hold_sampling(searched, call.unserved, entry, adjusted)
        request = fit(held, entry, principal.cache_salt)
        request_id = request_id_of(scope)
        metered = MeteredBackend(
            self._backend,
            self._accounts,
            principal,
            on_quote=lambda quote: hold_length(request, quote, adjusted),
        )
        answer = self._search.answer(resolved, request, metered, principal, request_id, not call.stream)
        answer_id, created = f"chatcmpl-{request_id}", int(time.time())
        if call.stream:
            encoder = ChunkEncoder(
                id=answer_id, model=name, created=created, include_usage=call.include_usage
            )
            present = ClientPresent(scope, receive)
            await _stream(answer, encoder, present, EventStream(scope, send, adjusted.headers, self._outbox))
            return
        assembler = Assembler()
        with ClientPresent(scope, receive):
            try:
                async for burst in answer:
                    assembler.add_all(burst)
            finally:
                await answer.aclose()
        completion = assembler.completion()
        body = encode_completion(completion, id=answer_id, model=name, created=created)
        await send_json(send, body, headers=adjusted.headers())


async def _stream(answer: Bursts, encoder: ChunkEncoder, present: ClientPresent, out: EventStream) -> None:
    last = b""
    try:
        with present, out:
            try:
                async for burst in answer:
                    data = encoder.encode_all(burst)
                    if isinstance(burst[-1], Finished):
                        last = data  # kept back until the call is settled
                    elif not out.hold(data):
                        await out.write(data)
            finally:
                await answer.aclose()
    except ClientGone:
        raise
    except Exception as error:
        if not out.started:
            raise
        last = encode_error_event(told(error, "a stream"))
    await out.end(last)
