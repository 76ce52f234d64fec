"""The real engine process behind the backend, on a random tiny checkpoint that says nothing sensible."""

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from perilune.backends.base import complete
from perilune.backends.embedded import EmbeddedBackend
from perilune.backends.grammar import TOOL_MARKERS
from perilune.backends.served import (
    Sampling,
    accepted_sampling,
    effective_sampling,
    model_folder,
    own_sampling,
    served_model,
)
from perilune.chat.messages import (
    Completion,
    Event,
    Finished,
    ImagePart,
    Message,
    Request,
    Tool,
    ToolCall,
)
from perilune.chat.template import prompt_ids
from perilune.engine.client import EngineClient
from perilune.engine.protocol import Chunk
from perilune.errors import (
    CheckpointError,
    ContextTooLong,
    EngineGone,
    InputError,
    UnsupportedInput,
)
from perilune.model.tiny import write_tiny_checkpoint
from perilune.settings import Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 600
SEARCH = Tool(
    name="search",
    parameters={
        "type": "object",
        "properties": {"path": {"type": "string"}, "line": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["path", "line"],
        "additionalProperties": False,
    },
)
HELLO = (Message(role="user", content="Hello, is anybody there?"),)
PLAIN = Request(model="tiny", messages=HELLO, thinking=False, max_tokens=20, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny"
    folder.mkdir()
    write_tiny_checkpoint(folder, tokenizer=True)
    card = {"id": "tiny", "goals": "rename", "context_length": CONTEXT, "max_output_tokens": 50}
    (folder / "perilune.json").write_text(json.dumps(card))
    return folder


def settings_of(folder: Path, **values: object) -> Settings:
    return Settings(home=folder / "home", checkpoint=str(folder), threads=1, cache_tokens=4096, **values)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(folder: Path) -> AsyncIterator[EmbeddedBackend]:
    backend = await EmbeddedBackend.start(settings_of(folder))
    yield backend
    await backend.close()


def plain(**fields: object) -> Request:
    return msgspec.structs.replace(PLAIN, **fields)


async def run(backend: EmbeddedBackend, **fields: object) -> Completion:
    return await complete(backend, plain(**fields))


async def test_text_with_exact_usage(backend: EmbeddedBackend) -> None:
    answer = await run(backend)
    prompt = prompt_ids(PLAIN, backend.tokenizer)
    assert answer.usage.prompt_tokens == len(prompt) == await backend.count_tokens(PLAIN)
    assert answer.usage.completion_tokens == 20
    assert answer.finish_reason == "length"
    assert answer.message.content
    assert answer.message.reasoning is None
    assert (await run(backend)).message == answer.message


async def test_cached_tokens_are_those_of_the_same_salt(backend: EmbeddedBackend) -> None:
    messages = (Message(role="user", content="A rather long question. " * 6),)
    first = await run(backend, messages=messages, cache_salt="one")
    again = await run(backend, messages=messages, cache_salt="one")
    other = await run(backend, messages=messages, cache_salt="two")
    assert first.usage.cached_tokens == other.usage.cached_tokens == 0
    assert 100 < again.usage.cached_tokens < again.usage.prompt_tokens
    assert again.message == first.message == other.message


async def test_a_forced_call_holds_choices_and_counts_on(backend: EmbeddedBackend) -> None:
    earlier = Message(
        role="assistant", content="", tool_calls=(ToolCall("functions.search:3", "search", "{}"),)
    )
    result = Message(role="tool", content="none", tool_call_id="functions.search:3")
    answer = await run(
        backend,
        messages=(*HELLO, earlier, result),
        tools=(SEARCH,),
        tool_choice="required",
        argument_choices={"search": {"path": ("a.py", "b.py")}},
        max_parallel_calls=1,
        max_tokens=200,
    )
    [call] = answer.message.tool_calls
    arguments = json.loads(call.arguments)
    assert (call.id, call.name) == ("functions.search:4", "search")
    assert arguments["path"] in ("a.py", "b.py")
    assert 1 <= arguments["line"] <= 9
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content == ""


async def test_without_tools_or_with_choice_none_no_call_is_made(backend: EmbeddedBackend) -> None:
    for seed in range(3):
        fields = {"temperature": 2.0, "seed": seed, "max_tokens": 60}
        assert not (await run(backend, **fields)).message.tool_calls
        assert not (await run(backend, tools=(SEARCH,), tool_choice="none", **fields)).message.tool_calls


async def test_json_schema(backend: EmbeddedBackend) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    answer = await run(backend, json_schema={**schema, "additionalProperties": False}, max_tokens=120)
    assert json.loads(str(answer.message.content))["a"] in ("x", "y")
    assert answer.finish_reason == "stop"


async def test_thinking_does_not_end_an_answer_that_owes_json(backend: EmbeddedBackend) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    asked = {"json_schema": schema, "thinking": True, "temperature": 1.0, "max_tokens": 50}
    answers = [await run(backend, **asked, seed=seed) for seed in range(24)]
    ended = [one for one in answers if one.finish_reason == "stop"]
    assert all(json.loads(str(one.message.content)) == {} for one in ended)


async def test_a_schema_that_no_grammar_can_hold_is_let_go(backend: EmbeddedBackend) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}, "required": ["a"]}
    fields = {"tools": (Tool(name="odd", parameters=odd),), "tool_choice": "required", "max_tokens": 40}
    answer = await run(backend, **fields)
    assert answer.message.tool_calls[0].name == "odd"
    for tools in ((), (Tool(name="odd", parameters=odd),)):
        with pytest.raises(InputError, match="cannot be enforced") as error:
            await run(backend, json_schema=odd, tools=tools)
        assert error.value.field == "response_format.json_schema.schema"


async def test_thinking_is_separate_and_ends_at_its_budget(backend: EmbeddedBackend) -> None:
    free = await run(backend, thinking=True, max_tokens=30)
    assert free.message.reasoning
    assert (free.message.content, free.usage.reasoning_tokens) == ("", 30)
    cut = await run(backend, thinking=True, max_tokens=30, thinking_budget=5)
    assert cut.usage.reasoning_tokens == 5
    assert 5 + 1 < cut.usage.completion_tokens <= 30
    assert cut.message.content
    assert free.message.reasoning.startswith(str(cut.message.reasoning)[:3])
    assert cut.usage.prompt_tokens == free.usage.prompt_tokens


async def test_a_grammar_waits_for_the_end_of_thinking(backend: EmbeddedBackend) -> None:
    answer = await run(
        backend,
        thinking=True,
        thinking_budget=4,
        tools=(SEARCH,),
        tool_choice="required",
        argument_choices={"search": {"path": ("a.py",)}},
        max_parallel_calls=1,
        max_tokens=200,
    )
    assert answer.usage.reasoning_tokens == 4
    assert json.loads(answer.message.tool_calls[0].arguments)["path"] == "a.py"


async def test_no_call_begins_inside_the_thinking(
    backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    generate = EngineClient.generate

    def spy(client: EngineClient, **options: Any) -> AsyncIterator[Chunk]:
        asked.append(options)
        return generate(client, **options)

    monkeypatch.setattr(EngineClient, "generate", spy)
    await run(backend, thinking=True, thinking_budget=2, tools=(SEARCH,), max_tokens=4)
    markers = tuple(backend.tokenizer.special(name) for name in TOOL_MARKERS)
    assert [options["grammar_only_ids"] for options in asked] == [markers, ()]


async def test_stop_strings_end_the_text(backend: EmbeddedBackend) -> None:
    text = str((await run(backend)).message.content)
    stop = text[4:7]
    answer = await run(backend, stop=("never to be seen", stop))
    assert answer.message.content == text[: text.index(stop)]
    assert answer.finish_reason == "stop"
    assert answer.usage.completion_tokens < 20


async def test_too_long_a_prompt_is_refused_and_max_tokens_is_fitted(backend: EmbeddedBackend) -> None:
    long = (Message(role="user", content="x" * CONTEXT),)
    with pytest.raises(
        ContextTooLong, match=r"messages: .*exceeded model token limit: 600 \(requested: 6\d\d\)"
    ) as error:
        await run(backend, messages=long)
    assert error.value.http_status == 400
    nearly = (Message(role="user", content="x" * (CONTEXT - 50)),)
    answer = await run(backend, messages=nearly, max_tokens=100_000)
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens <= CONTEXT


async def test_what_it_cannot_do_is_refused_plainly(backend: EmbeddedBackend) -> None:
    picture = (Message(role="user", content=(ImagePart("data:"),)),)
    with pytest.raises(UnsupportedInput, match="text only"):
        await run(backend, messages=picture)
    with pytest.raises(UnsupportedInput, match="text only"):
        await backend.count_tokens(plain(messages=picture))
    with pytest.raises(InputError, match="no declared tool is called x"):
        await run(backend, tools=(SEARCH,), tool_choice="tool:x")


async def test_closing_the_stream_aborts_the_call(backend: EmbeddedBackend) -> None:
    async with aclosing(backend.stream(plain(max_tokens=500))) as events:  # type: ignore[type-var]
        await anext(events)
    for _ in range(200):
        if (await backend.stats()).running == 0:
            break
        await asyncio.sleep(0.01)
    assert (await backend.stats()).running == 0


async def test_many_calls_at_once_get_what_each_gets_alone(backend: EmbeddedBackend) -> None:
    requests = [plain(messages=(Message(role="user", content=f"Question {n}?"),)) for n in range(8)]
    alone = [await complete(backend, request) for request in requests]
    together = await asyncio.gather(*(complete(backend, request) for request in requests))
    assert [one.message for one in together] == [one.message for one in alone]


async def test_a_dead_engine_fails_its_calls_and_the_next_call_starts_another(folder: Path) -> None:
    backend = await EmbeddedBackend.start(settings_of(folder))
    first = (await backend.client()).pid
    events: list[Event] = []
    with pytest.raises(EngineGone):
        async for event in backend.stream(plain(max_tokens=500)):
            if not events:
                os.kill(first, signal.SIGKILL)
            events.append(event)
    assert not any(isinstance(event, Finished) for event in events)
    answers = await asyncio.gather(*(run(backend) for _ in range(3)))
    second = (await backend.client()).pid
    assert second != first
    await backend.ready()
    os.kill(second, signal.SIGKILL)
    await unready(backend)
    while True:  # nobody calls, yet it comes back
        try:
            await backend.ready()
            break
        except EngineGone:
            await asyncio.sleep(0.05)
    assert (await backend.client()).pid not in (first, second)
    assert answers[0].message == answers[2].message
    await backend.close()
    with pytest.raises(EngineGone):
        await run(backend)


async def unready(backend: EmbeddedBackend) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await backend.ready()
            except EngineGone:
                return
            await asyncio.sleep(0.01)


async def test_a_context_that_the_cache_cannot_hold_is_not_promised(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "perilune.json":
            (tmp_path / path.name).symlink_to(path)
    settings = Settings(home=tmp_path, checkpoint=str(tmp_path), threads=1, cache_tokens=256)
    backend = await EmbeddedBackend.start(settings)
    try:
        [entry] = await backend.models()
        assert (entry.context_length, entry.max_output_tokens) == (256, 256)
        usage = (await run(backend, max_tokens=None)).usage
        assert usage.prompt_tokens + usage.completion_tokens <= 256
    finally:
        await backend.close()


async def test_the_deterministic_mode_reaches_the_engine(folder: Path) -> None:
    backend = await EmbeddedBackend.start(settings_of(folder, deterministic=True))
    try:
        assert "deterministic: fixed tiles" in (await backend.client()).ready.notes
        wanted = {"seed": 3, "max_tokens": 40}
        alone = await run(backend, **wanted)
        together = await asyncio.gather(*(run(backend, **wanted) for _ in range(3)))
        assert [answer.message for answer in together] == [alone.message] * 3
    finally:
        await backend.close()


async def test_a_prompt_is_kept_from_counting_to_its_call_and_no_longer(backend: EmbeddedBackend) -> None:
    request = plain(messages=(Message(role="user", content="Count me"),))
    assert await backend.count_tokens(request)
    assert backend._prompts.find(request) is not None
    await complete(backend, request)
    assert backend._prompts.find(request) is None


async def test_other_weights_than_the_card_names_are_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "perilune.json").unlink()
    (tmp_path / "perilune.json").write_text('{"id": "tiny", "content_hash": "0000"}')
    with pytest.raises(CheckpointError, match="not those that"):
        await EmbeddedBackend.start(settings_of(tmp_path))


# ---- the entry


async def test_the_entry_is_the_card(backend: EmbeddedBackend) -> None:
    [entry] = await backend.models()
    assert (entry.id, entry.goals, entry.context_length, entry.max_output_tokens) == (
        "tiny",
        "rename",
        600,
        50,
    )
    assert (entry.backend, entry.sampling_policy, entry.aliases) == ("embedded", "open", ())


async def test_any_other_folder_has_a_sensible_entry(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, serve_as="kimi-k2.6", sampling_policy="strict")
    entry = served_model(settings, tmp_path, 262144).entry
    assert (entry.id, entry.aliases) == (tmp_path.name.lower(), ("kimi-k2.6",))
    assert (entry.context_length, entry.max_output_tokens, entry.goals) == (262144, 32768, "any")
    assert effective_sampling(plain(temperature=None), entry).temperature == 0.6
    assert effective_sampling(plain(temperature=None, thinking=True), entry).temperature == 1.0
    # The policy is the API's: what this process asks for itself is computed.
    assert effective_sampling(plain(temperature=0.0, top_p=0.5), entry) == Sampling(0.0, 0.5)
    assert accepted_sampling(entry, thinking=False) == Sampling(0.6, 0.95)


async def test_the_bundled_model_computes_greedily_under_k26_s_rules(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    entry = served_model(settings, model_folder(settings), 4096).entry
    assert (entry.id, entry.sampling_policy) == ("perilune-nano", "strict")
    for thinking, temperature in ((True, 1.0), (False, 0.6)):
        assert own_sampling(entry, thinking) == Sampling(0.0, 1.0)
        assert accepted_sampling(entry, thinking) == Sampling(temperature, 0.95)


async def test_a_folder_that_is_none_and_a_broken_card(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        model_folder(settings_of(tmp_path / "none"))
    card = tmp_path / "perilune.json"
    for text, said in (
        ("{", "cannot be read"),
        ("{}", "is wrong: .*`id`.*docs/checkpoints.md"),
        ('{"id": "x", "context_length": "long"}', "is wrong: .*context_length"),
        ('{"id": "x", "sampling_policy": "loose"}', "is wrong: .*loose.*sampling_policy"),
    ):
        card.write_text(text)
        with pytest.raises(CheckpointError, match=said):
            served_model(settings_of(tmp_path), tmp_path, 100)


async def test_the_card_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (card,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "perilune.json").write_text(card)
    entry = served_model(settings_of(tmp_path), tmp_path, 100_000).entry
    assert (entry.id, entry.context_length, entry.sampling_policy) == ("my-kimi", 32768, "strict")


# ---- which chat format a checkpoint speaks


OWN_TEMPLATE = """
{%- for message in messages -%}
<|im_user|>{{ message.role }}<|im_middle|>{{ message.content }}<|im_end|>
{%- endfor -%}
<|im_assistant|>assistant<|im_middle|>"""


@pytest.fixture
def foreign(tmp_path: Path, folder: Path) -> Path:
    """The tiny checkpoint with a chat template that is none of ours."""
    copy = tmp_path / "foreign"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("home"))
    (copy / "chat_template.jinja").write_text(OWN_TEMPLATE)
    return copy


async def test_a_checkpoint_with_a_template_of_its_own_is_not_served_unasked(foreign: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"chat_template\.jinja: renders \d+ of \d+ conversations"
    ) as caught:
        await EmbeddedBackend.start(settings_of(foreign))
    assert "--template jinja" in str(caught.value)


async def test_it_is_served_by_its_own_template_on_request(foreign: Path) -> None:
    asked = (
        "<|im_user|>user<|im_middle|>Hello, is anybody there?<|im_end|><|im_assistant|>assistant<|im_middle|>"
    )
    kimi = "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>"
    for template, prompt in (("jinja", f"{asked}<think>"), ("k2-thinking", f"{kimi}{asked}<think>")):
        backend = await EmbeddedBackend.start(settings_of(foreign, template=template))
        try:
            request = plain(thinking=True)
            counted = await backend.count_tokens(request)
            answer = await complete(backend, request)
        finally:
            await backend.close()
        ids = backend._prompter(request, backend.tokenizer)
        assert backend.tokenizer.decode(ids) == prompt
        assert counted == len(ids) == answer.usage.prompt_tokens
        assert answer.usage.reasoning_tokens > 0


async def test_the_models_entry_may_name_the_format(foreign: Path) -> None:
    card = json.loads((foreign / "perilune.json").read_text())
    (foreign / "perilune.json").write_text(json.dumps({**card, "template": "k2.5"}))
    assert served_model(settings_of(foreign), foreign, 900).template == "k2.5"
    backend = await EmbeddedBackend.start(settings_of(foreign))
    await backend.close()
    assert backend._prompter(PLAIN, backend.tokenizer) == prompt_ids(PLAIN, backend.tokenizer)
