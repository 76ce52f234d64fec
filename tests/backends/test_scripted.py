"""The scripted model: answers from content alone, and plays the rename protocol over real tools."""

import json
from pathlib import Path

import pytest

from perilune.agent.loop import (
    AnswerRecord,
    CallModel,
    Done,
    Restart,
    RestartRecord,
    RunTools,
    ToolRecord,
    apply,
    next_action,
    start,
)
from perilune.agent.profiles import bundled_profile
from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.backends.base import complete
from perilune.backends.scripted import Call, ScriptedBackend, when
from perilune.chat.messages import Message, Request, ToolCall, ToolCallDelta, ToolCallStarted
from perilune.errors import UnsupportedInput


def ask(*messages: Message) -> Request:
    return Request(model="scripted", messages=messages)


def user(text: str) -> Message:
    return Message(role="user", content=text)


async def test_the_first_rule_with_a_reply_answers() -> None:
    backend = ScriptedBackend([when("weather", Call("weather", {"city": "Riga"})), lambda request: "Hello."])
    first = await complete(backend, ask(user("weather?")))
    assert first.finish_reason == "tool_calls"
    assert first.message.tool_calls == (ToolCall("functions.weather:0", "weather", '{"city": "Riga"}'),)
    assert (await complete(backend, ask(user("hi")))).message.content == "Hello."


async def test_call_ids_count_on_from_the_conversation() -> None:
    backend = ScriptedBackend(lambda request: [Call("a"), Call("b")])
    past = Message(role="assistant", tool_calls=(ToolCall("functions.a:0", "a", "{}"),))
    answer = backend.answer(ask(user("x"), past))
    assert [call.id for call in answer.message.tool_calls] == ["functions.a:1", "functions.b:2"]


async def test_a_request_without_a_rule_is_an_error_before_the_first_event() -> None:
    with pytest.raises(UnsupportedInput, match="no reply"):
        await complete(ScriptedBackend([]), ask(user("x")))


async def test_pieces_add_up_to_the_same_answer() -> None:
    def script(request: Request) -> Call:
        return Call("a", {"text": "äöü and more"})

    whole = ScriptedBackend(script)
    pieces = ScriptedBackend(script, chunk=3)
    request = ask(user("x"))
    assert await complete(pieces, request) == await complete(whole, request)
    events = [event async for event in pieces.stream(request)]
    assert isinstance(events[0], ToolCallStarted)
    assert sum(isinstance(event, ToolCallDelta) for event in events) > 3


def test_usage_follows_from_the_content() -> None:
    backend = ScriptedBackend(lambda request: "yes")
    system, said = Message(role="system", content="s" * 400), Message(role="assistant", content="ok")
    first = backend.answer(ask(system, user("u" * 40))).usage
    assert first == backend.answer(ask(system, user("u" * 40))).usage
    assert (first.prompt_tokens, first.cached_tokens, first.completion_tokens) == (104 + 14, 96, 5)
    later = backend.answer(ask(system, user("u" * 40), said, user("more"))).usage
    assert later.cached_tokens == 112  # all that the first call sent, in whole blocks
    assert later.cached_tokens <= first.prompt_tokens


# ---- the rename swarm's script


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "Done: 0 edits."),
        ("foo = foo_2\n", "Done: 1 edit."),
        ("foo = 1\n" * 4, "Done: 4 edits."),
        ("foo = 1\n" * 9, "Done: 1 edit."),  # restarted after every fourth
    ],
)
async def test_a_sub_agent_renames_a_file(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "a.py").write_text(text)
    workspace = DirectoryWorkspace(tmp_path)
    result = await run_agent(
        ScriptedBackend(), "rename", "Rename foo to bar.", "a.py", workspace, model="scripted"
    )
    assert (result.status, result.message) == ("succeeded", sentence)
    assert (tmp_path / "a.py").read_text() == text.replace("foo ", "bar ")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [("gone.py", None, "Failed: no file."), ("a.py", "def foo(): pass\n", "Failed: syntax error.")],
)
async def test_a_sub_agent_gives_up_in_words(
    tmp_path: Path, name: str, text: str | None, sentence: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    result = await run_agent(
        ScriptedBackend(), "rename", "Rename foo to class.", name, DirectoryWorkspace(tmp_path), model="m"
    )
    assert (result.status, result.message) == ("failed", sentence)


class Primitives:
    """The swarm's side of the protocol: pages of paths, tasks that fail at first, a status."""

    def __init__(self, files: list[str], fails_at_first: set[str], page: int = 8) -> None:
        self.files = files
        self.fails = set(fails_at_first)
        self.page = page
        self.done: list[str] = []
        self.gave_up: set[str] = set()

    def answer(self, call: ToolCall) -> str:
        arguments = json.loads(call.arguments)
        match call.name:
            case "create_subagent":
                assert arguments == {"name": "renamer", "system_prompt": "Rename foo to bar."}
                return "ok"
            case "list_files":
                assert arguments["dir"] == "src"
                shown = self.files[(arguments["page"] - 1) * self.page : arguments["page"] * self.page]
                last = arguments["page"] * self.page >= len(self.files)
                return "\n".join([*shown, "last page" if last else f"next page: {arguments['page'] + 1}"])
            case "assign_task":
                return self._assign(arguments["prompt"])
            case _:
                return self._status()

    def _assign(self, path: str) -> str:
        if path in self.gave_up:
            return f"error: {path} was given up"
        if path in self.fails:
            self.fails.remove(path)
            return "Failed: loop."
        self.done.append(path)
        return "Done: 1 edit."

    def _status(self) -> str:
        head = f"{len(self.done)} of {len(self.files)} files done"
        missing = [path for path in self.files if path not in self.done]
        return "\n".join([f"{head}, {len(missing)} not done:", *missing[: self.page]]) if missing else head


async def lead(primitives: Primitives, goal: str = "Rename foo to bar in src.") -> Done:
    """Run the orchestrator over the primitives to its end."""
    backend = ScriptedBackend()
    state = start(bundled_profile("orchestrate-rename"), model="scripted", prompt=goal)
    while not isinstance(action := next_action(state), Done):
        match action:
            case CallModel():
                state = apply(state, AnswerRecord(await complete(backend, action.request)))
            case RunTools():
                for call in action.calls:
                    text = primitives.answer(call)
                    state = apply(state, ToolRecord(call.id, text, not text.startswith("error:")))
            case Restart():
                state = apply(state, RestartRecord(action.reason))
    return action


@pytest.mark.parametrize("count", [1, 8, 20, 60])
async def test_the_orchestrator_hands_out_every_file_once(count: int) -> None:
    primitives = Primitives([f"src/m{number}.py" for number in range(count)], set())
    assert await lead(primitives) == Done("succeeded", f"Finished: {count} of {count} files done.")
    assert primitives.done == primitives.files


async def test_the_orchestrator_gives_out_again_what_is_not_done() -> None:
    files = [f"src/m{number}.py" for number in range(30)]
    primitives = Primitives(files, set(files[3:25:2]))
    assert await lead(primitives) == Done("succeeded", "Finished: 30 of 30 files done.")
    assert sorted(primitives.done) == sorted(files)


async def test_the_orchestrator_stops_at_files_that_were_given_up() -> None:
    primitives = Primitives([f"src/m{number}.py" for number in range(9)], set())
    primitives.gave_up = {"src/m3.py"}
    assert await lead(primitives) == Done("succeeded", "Finished: 8 of 9 files done.")


async def test_a_goal_without_a_directory_is_refused() -> None:
    ended = await lead(Primitives([], set()), goal="Make it fast.")
    assert ended.status == "failed"
