"""Any OpenAI-compatible endpoint as a backend.

    request -> JSON (chat/wire) -> POST URL/chat/completions -> server-sent events -> Events

A call is tried again only while nothing of its answer has arrived. Every way it can fail becomes one of the
BackendErrors, with the mend; the key is in no message and no log line. No proxy is taken from the
environment and no redirect is followed: the key goes to the configured host and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

import aiohttp
import msgspec

from perilune.backends.base import ModelEntry
from perilune.backends.bursts import Bursts, alone, each
from perilune.backends.counting import PromptCounter, counter_of
from perilune.backends.dialects import SAMPLING_FIELDS, Quirks
from perilune.backends.endpoint import (
    AiohttpSession,
    auth_headers,
    base_url,
    body_shape,
    connection_error,
    is_too_long,
    may_pass,
    open_session,
    read_capped,
    refusal,
    web_page,
)
from perilune.backends.listing import Facts, entry_from
from perilune.backends.lookout import Lookout
from perilune.backends.plain_http import PlainResponse, PlainSession
from perilune.backends.retries import Passing, is_passing, retry_pause
from perilune.backends.spelt_calls import read_spelt_calls
from perilune.chat.messages import Completion, Event, Finished, Request
from perilune.chat.wire import ChunkDecoder, completion_events, decode_completion
from perilune.errors import (
    BackendError,
    BackendInterrupted,
    BackendOutOfQuota,
    BackendProtocol,
    BackendRefused,
    ContextTooLong,
)
from perilune.settings import Settings

Response: TypeAlias = aiohttp.ClientResponse | PlainResponse
Decoder: TypeAlias = "ChunkDecoder | _Whole"
Answer: TypeAlias = tuple[Response, bytes, Decoder]
"""With the first bytes of its body."""

log = logging.getLogger(__name__)

REST_TIMEOUT_S = 2.0
MOST_REST_BYTES = 65536
"""What may follow the end of an answer; more is not read, and the connection is closed."""
MOST_STREAM_BYTES = 512 * 1024 * 1024
"""Some 1,900 bytes for each token of the longest answer."""


class UpstreamBackend:
    """One model of one endpoint."""

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        entry: ModelEntry,
        model_name: str = "",
        timeout_s: float = 600.0,
        retries: int = 3,
        quirks: Quirks | None = None,
        counter: PromptCounter | None = None,
        facts: Facts | None = None,
        learnt: Callable[[ModelEntry], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`model_name` is the model's name at the endpoint, when it differs from the entry's id. With `facts`
        the entry is a guess until the endpoint can be asked; then `learnt`, or `become`, has the true one.

        Raises ConfigError for a URL that is not one."""
        self.url = base_url(url)
        self._headers = auth_headers(key)
        self._counter = counter
        self._model_name = model_name or entry.id
        self._timeout_s = timeout_s
        self._retries = retries
        self._quirks = quirks or Quirks()
        self.become(entry)
        self._sleep = sleep
        self._chance = chance
        self._session: PlainSession | AiohttpSession | None = None
        self._resting: set[asyncio.Task[None]] = set()
        self._lookout = Lookout(self.url, self._headers, facts, learnt or self.become)

    @classmethod
    async def open(cls, settings: Settings) -> UpstreamBackend:
        """The endpoint of `model_url`, `model_key` and `model_name`. Raises what `entry_from` raises."""
        entry, facts = await entry_from(settings)
        return cls(
            settings.model_url,
            key=settings.model_key,
            entry=entry,
            facts=facts,
            counter=counter_of(settings.model_tokenizer, "model_tokenizer", settings),
            timeout_s=settings.model_timeout_s,
            retries=settings.model_retries,
        )

    async def models(self) -> tuple[ModelEntry, ...]:
        return self._entries

    def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        return each(self.bursts(request))

    def bursts(self, request: Request) -> Bursts:
        spelt = self._quirks.calls_in_text and request.tools and request.tool_choice != "none"
        bursts = self._answer(request)
        return alone(read_spelt_calls(each(bursts), request)) if spelt else bursts

    async def _answer(self, request: Request) -> Bursts:
        response, data, decoder = await self._begin(request)
        size, finished = 0, False
        try:
            while not finished:
                size += len(data)
                if size > MOST_STREAM_BYTES:
                    raise BackendProtocol(f"the answer of {self.url} does not end")
                burst: list[Event] = []
                failure = None
                try:
                    if data:
                        decoder.feed(data, burst)
                    else:
                        decoder.close(burst)
                except BackendError as error:  # after what came before it
                    failure = error
                if burst:
                    finished = isinstance(burst[-1], Finished)
                    yield burst
                if failure is not None:
                    raise failure
                if finished or not data:
                    return
                try:
                    data = await response.content.readany()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    raise self._interrupted(error) from error
        finally:
            if finished:
                self._keep(response)
            else:
                # Not back to the pool: an answer that is not read to its end must stop at the endpoint.
                response.close()

    def _keep(self, response: Response) -> None:
        """Have what follows the answer read (`[DONE]` and the body's end), so that the connection can be
        used again. Nobody waits for it, and mostly it has come with the answer's last event."""
        if response.content.at_eof():
            return
        self._aside(_read_rest(response))

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._resting.add(task)
        task.add_done_callback(self._resting.discard)

    async def ready(self) -> None:
        """See `Lookout.ready`."""
        await self._lookout.ready()

    def become(self, entry: ModelEntry) -> None:
        """What the endpoint told late of its model."""
        self._entries = (entry,)
        if entry.fixed_sampling:
            self._quirks = self._quirks.without(SAMPLING_FIELDS)

    async def count_tokens(self, request: Request) -> int | None:
        """Where its tokenizer is not known here, the endpoint alone can count."""
        return await self._counter.count(request) if self._counter is not None else None

    async def close(self) -> None:
        resting = tuple(self._resting)
        for task in resting:
            task.cancel()
        await asyncio.gather(*resting, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ---- before the first byte

    async def _begin(self, request: Request) -> Answer:
        """Call until something of an answer has arrived. Raises BackendError and ContextTooLong.

        What is learnt of the dialect is kept only where it led to an answer: a refusal may mention a field
        and be about something else."""
        failures, known = 0, self._quirks
        quirks = known
        while True:
            body = quirks.body(request, self._model_name)
            try:
                answer = await self._attempt(request, body)
                if quirks is not known:  # with what `become` may have added meanwhile
                    self._quirks = quirks.without(self._quirks.omit)
                if self._lookout.has_to_learn and not quirks.one_at_a_time:
                    self._aside(self._lookout.learn())
                return answer
            except BackendRefused as refused:
                learnt = quirks.learn(refused, body)
                if learnt is None:
                    raise
                log.warning("%s refuses a field; going on with %s", self.url, learnt)
                quirks = learnt
            except Passing as passing:
                pause = retry_pause(passing.error, failures, self._retries, self._chance())
                if pause is None:
                    raise passing.error from passing.__cause__
                failures += 1
                log.info("%s: %s; try %d in %.1f s", self.url, passing.error.message, failures + 1, pause)
                await self._sleep(pause)

    async def _attempt(self, request: Request, body: dict[str, Any]) -> Answer:
        """One POST, up to the first bytes of the answer and what reads them. Raises Passing for what a retry
        may mend."""
        if self._session is None:
            self._session = open_session(f"{self.url}/chat/completions", self._headers, self._timeout_s)
        try:
            response = await self._session.post(msgspec.json.encode(body))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failed(error) from error
        try:
            if response.status != 200:
                raise await self._refused(response)
            first = await response.content.readany()
            shape = body_shape(response.content_type, first)
            if shape == "page":
                raise web_page(self.url)
            first_call = sum([len(message.tool_calls) for message in request.messages])
            if shape == "stream":
                return response, first, ChunkDecoder(first_call)
            # Some endpoints do not stream, whatever they are asked.
            whole = await self._whole(response, first, first_call)
            return response, first, _Whole(completion_events(whole))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            response.close()
            raise self._failed(error) from error
        except BaseException:
            response.close()
            raise

    async def _refused(self, response: Response) -> Exception:
        """What a status other than 200 is to be raised as. Raises also aiohttp's errors."""
        body = await read_capped(response)
        refused = refusal(response, body, self.url)
        if isinstance(refused, BackendRefused) and is_too_long(body):
            said = "shorten the conversation" in refused.message  # by a Perilune there
            return ContextTooLong(refused.message, mend=None if said else "shorten the conversation")
        final = response.headers.get("x-should-retry") == "false"
        final = final or isinstance(refused, BackendOutOfQuota)
        return refused if final or not is_passing(refused) else Passing(refused)

    def _failed(self, error: BaseException) -> Exception:
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            # It took the request and may have worked on it, so it was not merely out of reach.
            return self._interrupted(error, mend="raise model_timeout_s if it is only slow")
        told = connection_error(error, self.url, self._timeout_s)
        return Passing(told) if may_pass(error) else told

    # ---- after it

    async def _whole(self, response: Response, first: bytes, first_call: int) -> Completion:
        try:
            body = first + await read_capped(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._interrupted(error) from error
        return decode_completion(body, first_call)

    def _interrupted(self, error: BaseException, mend: str = "try again") -> BackendInterrupted:
        silent = isinstance(error, TimeoutError)
        why = f"was silent for {self._timeout_s:g} s" if silent else "was cut"
        return BackendInterrupted(f"the answer of {self.url} {why}", mend=mend)


async def _read_rest(response: Response) -> None:
    """Read to the end, which gives the connection back; close it where the end does not come soon."""
    size = 0
    try:
        async with asyncio.timeout(REST_TIMEOUT_S):
            while size <= MOST_REST_BYTES and (data := await response.content.readany()):
                size += len(data)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.debug("a connection is not kept: %s", error)
    finally:
        response.close()  # nothing to do where the end was reached


class _Whole:
    """Reads an answer that has arrived already."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def feed(self, data: bytes, events: list[Event]) -> None:
        """All of it. No bytes come after the first ones."""
        events += self._events

    def close(self, events: list[Event]) -> None:
        """Nothing is left."""
