"""Tool calls that an endpoint leaves in its text, as K2 spells them, for servers that do not read them.

Where a user's words make the model spell a marker, that is taken for one: this is for endpoints of whose
kind it is known that they send calls no other way, and for requests with tools.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from perilune.chat.messages import Event, Finished, Request, TextDelta
from perilune.chat.parsing import StreamParser
from perilune.chat.parsing_spelling import SpellingOnly
from perilune.chat.template import next_call_index


async def read_spelt_calls(
    events: AsyncGenerator[Event, None], request: Request
) -> AsyncGenerator[Event, None]:
    """The same answer, with the calls in its text as calls."""
    parser = StreamParser(
        SpellingOnly(), thinking=False, first_call=next_call_index(request.messages), tools=request.tools
    )
    async with aclosing(events):
        async for event in events:
            match event:
                case TextDelta():
                    for found in parser.feed_text(event.text):
                        yield found
                case Finished():
                    for found in parser.close():
                        yield found
                    called = event.reason == "stop" and parser.called and not parser.truncated
                    yield msgspec.structs.replace(event, reason="tool_calls") if called else event
                case _:
                    yield event
