"""Our own engine as a backend: template, engine process, parser.

The engine is started with the backend and again by the first call after it died; calls that were running
then fail with EngineGone. The engine's client and this file need no torch, only the engine's process does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Self, cast

from perilune.backends.base import ModelEntry
from perilune.backends.grammar import TOOL_MARKERS, callable_tools, grammar_of
from perilune.backends.prompts import KeptPrompts, is_long
from perilune.backends.seeing import Seeing
from perilune.backends.served import (
    Sampling,
    Served,
    effective_sampling,
    model_folder,
    served_model,
    with_density,
    within_context,
)
from perilune.chat.messages import Event, Finished, FinishReason, Request, Usage
from perilune.chat.oracle import Prompter, open_template
from perilune.chat.parsing import StreamParser
from perilune.chat.stops import StopFilter
from perilune.chat.template import next_call_index, prompt_ids
from perilune.chat.tokenizer import END_THINK, THINK, Tokenizer
from perilune.engine.client import EngineClient
from perilune.engine.protocol import Chunk, EngineOptions, Seen, Stats, Vocabulary
from perilune.errors import (
    CheckpointError,
    ContextTooLong,
    EngineGone,
    InputError,
    PeriluneError,
)
from perilune.model.config import load_config
from perilune.settings import Settings

log = logging.getLogger("perilune.engine")


class EmbeddedBackend:
    """One model, one engine process. Made by `start`."""

    def __init__(
        self,
        served: Served,
        tokenizer: Tokenizer,
        options: EngineOptions,
        seeing: Seeing,
        prompter: Prompter = prompt_ids,
    ) -> None:
        self.served = served
        self.tokenizer = tokenizer
        self._seeing = seeing
        self._options = options
        self._prompter = prompter
        self._vocabulary = Vocabulary(
            tokens=tokenizer.token_bytes(),
            special_ids=tuple(tokenizer.specials.values()),
            eos_id=tokenizer.eos_id,
        )
        self._client: EngineClient | None = None
        self._starting = asyncio.Lock()
        self._reviving: asyncio.Task[None] | None = None
        self._closed = False
        self._prompts: KeptPrompts[list[int]] = KeptPrompts()

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        """Load the model that the settings name. Raises CheckpointError, TokenizerError, ConfigError or
        EngineError."""
        folder = model_folder(settings)
        longest = load_config(folder).max_position_embeddings
        tokenizer = Tokenizer.load(folder)
        seeing = Seeing.of(folder, tokenizer)
        served = with_density(served_model(settings, folder, longest, seeing.modalities), tokenizer)
        options = EngineOptions(
            checkpoint=str(served.folder),
            dtype=settings.dtype,
            cache_tokens=settings.cache_tokens,
            max_sequences=settings.max_sequences,
            max_context=served.entry.context_length,
            threads=settings.threads or None,
            experts=settings.experts,
            deterministic=settings.deterministic,
        )
        prompter = open_template(
            served.folder, settings.template or served.template, default_system=settings.default_system
        )
        backend = cls(served, tokenizer, options, seeing, prompter)
        await backend.client()
        return backend

    async def models(self) -> tuple[ModelEntry, ...]:
        return (self.served.entry,)

    async def count_tokens(self, request: Request) -> int | None:
        if media := await self._seeing.plan(request):
            return len((await self._seeing.prompt(request, self.tokenizer, media, self._prompter)).ids)
        ids = await self._prompt(request)
        self._prompts.keep(request, ids)
        return len(ids)

    async def ready(self) -> None:
        """Raises EngineGone while there is no living engine, and has it started again: where traffic comes
        only to a ready server, no call would."""
        if self._client is None or not self._client.gone:
            return
        if not self._closed and (self._reviving is None or self._reviving.done()):
            self._reviving = asyncio.create_task(self._revive(), name="engine restart")
        raise EngineGone("the engine process ended", mend="it is being started again")

    async def _revive(self) -> None:
        try:
            await self.client()
        except PeriluneError as error:
            log.warning("the engine could not be started again: %s", error)

    async def stats(self) -> Stats:
        """The engine's counters. Raises EngineGone."""
        return await (await self.client()).stats()

    async def close(self) -> None:
        """End the engine; calls that are open fail with EngineGone."""
        self._closed = True
        if self._reviving is not None:
            self._reviving.cancel()
            await asyncio.wait({self._reviving})
        async with self._starting:
            if self._client is not None:
                await self._client.close()

    async def client(self) -> EngineClient:
        """The running engine; a new one when the last has died. Raises as `start` does."""
        async with self._starting:
            if self._client is None or (self._client.gone and not self._closed):
                if self._client is not None:
                    await self._client.close()
                self._client = await EngineClient.start(self._options, self._vocabulary)
                await self._check_hash(self._client)
                self.served = within_context(self.served, self._client.ready.max_context)
            return self._client

    async def _check_hash(self, client: EngineClient) -> None:
        wanted = self.served.content_hash
        if wanted and client.ready.checkpoint_hash != wanted:
            await client.close()
            raise CheckpointError(
                "the weights are not those that perilune.json names",
                field=str(self.served.folder),
                mend="copy the folder again from its source",
            )

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """See `Backend.stream`. Besides, raises ContextTooLong when the prompt leaves no room."""
        media = await self._seeing.plan(request)
        sampling = effective_sampling(request, self.served.entry)
        has_tools = bool(callable_tools(request))
        if not media:
            call = _Call(self, request, await self._prompt(request), sampling, has_tools)
            async for event in call.events():
                yield event
            return
        prompt = await self._seeing.prompt(request, self.tokenizer, media, self._prompter)
        # Before anything is decoded: it refuses what the context does not hold.
        call = _Call(self, request, prompt.ids, sampling, has_tools)
        async with self._seeing.decoded(media, prompt) as call.media:
            async for event in call.events():
                yield event

    async def _prompt(self, request: Request) -> list[int]:
        """The request's prompt. Metering counts it just before the call: it is made once."""
        kept = self._prompts.take(request)
        if kept is not None:
            return kept
        if is_long(request):
            return await asyncio.to_thread(self._prompter, request, self.tokenizer)
        return self._prompter(request, self.tokenizer)


class _Call:
    """One request on its way through the engine."""

    def __init__(
        self,
        backend: EmbeddedBackend,
        request: Request,
        prompt: Sequence[int],
        sampling: Sampling,
        has_tools: bool,
    ) -> None:
        tokenizer = backend.tokenizer
        self._backend = backend
        self._request = request
        self._prompt = prompt
        self.media: tuple[Seen, ...] = ()
        self._sampling = sampling
        self._end_think = tokenizer.special(END_THINK)
        self._first_call = next_call_index(request.messages)
        self._max_tokens = _room(request, len(prompt), backend.served.entry)
        self._thinking = list(prompt[-1:]) == [tokenizer.special(THINK)]
        self._parser = StreamParser(
            tokenizer, thinking=self._thinking, first_call=self._first_call, tools=request.tools
        )
        self._stops = StopFilter(request.stop)
        self._produced: list[int] = []
        self._cached = 0
        self._markers = tuple(tokenizer.special(name) for name in TOOL_MARKERS)
        self._owed = tokenizer.stop_ids if request.json_schema is not None else ()
        """Thinking may not end the answer while JSON is owed."""
        banned = [tokenizer.special(name) for name in (THINK, *(() if self._thinking else (END_THINK,)))]
        self._banned = (*tokenizer.never_sampled, *banned, *(() if has_tools else self._markers))

    async def events(self) -> AsyncIterator[Event]:
        finish = "stop"
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                for event in self._stops.feed(self._parser.feed(chunk.token_ids)):
                    yield event
                finish = chunk.finish or finish
                if self._stops.hit:
                    break
        for event in (*self._stops.feed(self._parser.close()), *self._stops.close()):
            yield event
        reason: FinishReason = "length" if finish == "length" and not self._stops.hit else "stop"
        if reason == "stop" and self._parser.called:
            reason = "tool_calls"
        yield Finished(reason, self._usage())

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self._prompt),
            cached_tokens=self._cached,
            completion_tokens=len(self._produced),
            reasoning_tokens=self._parser.reasoning_tokens,
        )

    async def _chunks(self) -> AsyncGenerator[Chunk, None]:
        """The engine's chunks; when the thinking budget is used up, the thinking is closed and the engine
        goes on from there (its cache still holds what went before)."""
        budget = self._request.thinking_budget
        async with aclosing(self._generate(self._thinking)) as chunks:
            async for chunk in chunks:
                yield chunk
                if budget is not None and self._parser.thinking and self._parser.reasoning_tokens >= budget:
                    break
            else:
                return
        if len(self._produced) + 1 >= self._max_tokens:
            yield Chunk(id=0, token_ids=(), finish="length")
            return
        self._produced.append(self._end_think)
        yield Chunk(id=0, token_ids=(self._end_think,))
        async with aclosing(self._generate(thinking=False)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _generate(self, thinking: bool) -> AsyncGenerator[Chunk, None]:
        """Chunks from where the call stands. A tool's schema that the grammar cannot hold is let go; one of
        the answer is not."""
        for strict in (True, False):
            arrived = False
            try:
                async with aclosing(await self._open(thinking, strict)) as chunks:
                    async for chunk in chunks:
                        self._cached = chunk.cached_tokens if not self._produced else self._cached
                        self._produced += chunk.token_ids
                        arrived = True
                        yield chunk
                return
            except InputError as error:
                if strict and self._request.tools and not arrived:
                    continue
                if arrived or error.field != "grammar" or self._request.json_schema is None:
                    raise
                raise InputError(
                    f"cannot be enforced: {error.message}",
                    field="response_format.json_schema.schema",
                    mend="leave out what is named here",
                ) from error

    async def _open(self, thinking: bool, strict: bool) -> AsyncGenerator[Chunk, None]:
        client = await self._backend.client()
        grammar = grammar_of(self._request, self._backend.tokenizer, self._first_call, strict=strict)
        chunks = client.generate(
            prompt=[*self._prompt, *self._produced],
            max_tokens=self._max_tokens - len(self._produced),
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            seed=self._request.seed,
            stop_ids=self._backend.tokenizer.stop_ids,
            banned_ids=self._banned,
            grammar=grammar,
            grammar_after_id=self._end_think if thinking and grammar is not None else None,
            grammar_only_ids=(*self._markers, *self._owed) if thinking else (),
            cache_salt=self._request.cache_salt,
            media=self.media,
        )
        return cast(AsyncGenerator[Chunk, None], chunks)


def _room(request: Request, prompt_tokens: int, entry: ModelEntry) -> int:
    """Most tokens of the answer: what was asked for, as far as the context holds it."""
    room = entry.context_length - prompt_tokens
    if room < 1:
        raise ContextTooLong(
            "Your request exceeded model token limit: "  # what agents look for to shorten it
            f"{entry.context_length} (requested: {prompt_tokens + 1})",
            field="messages",
            mend="shorten the conversation",
        )
    return min(request.max_tokens or entry.max_output_tokens, room)
