"""One agent alone: a scripted model that answers from what it reads, real files, real tools."""

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from perilune.agent.loop import AnswerRecord, Done, fold, next_action, start
from perilune.agent.profiles import bundled_profile
from perilune.agent.solo import run_agent
from perilune.agent.workspace import DirectoryWorkspace
from perilune.backends.base import ModelEntry
from perilune.chat.messages import (
    Event,
    Finished,
    Request,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from perilune.errors import BackendUnreachable, ContextTooLong

Answer = str | list[tuple[str, dict[str, object]]]


class Answering:
    """A backend whose answer is a function of the request."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self._answer = answer
        self.requests: list[Request] = []

    async def models(self) -> tuple[ModelEntry, ...]:
        return ()

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        self.requests.append(request)
        answer = self._answer(request)
        if isinstance(answer, str):
            yield TextDelta(answer)
        else:
            for index, (name, arguments) in enumerate(answer):
                yield ToolCallStarted(index, f"functions.{name}:{index}", name)
                yield ToolCallDelta(index, json.dumps(arguments))
        usage = Usage(prompt_tokens=100, cached_tokens=40, completion_tokens=10)
        yield Finished("stop" if isinstance(answer, str) else "tool_calls", usage)

    async def count_tokens(self, request: Request) -> int | None:
        return None

    async def close(self) -> None:
        return None


def renamer(request: Request) -> Answer:
    """Follows the protocol as the bundled model is trained to."""
    task, last = request.messages[1].content, str(request.messages[-1].content)
    old, new = re.findall(r"Rename (\w+) to (\w+)\.", str(request.messages[0].content))[0]
    if request.messages[-1].role == "user":
        return [("search", {"path": task, "name": old})]
    if edits := re.search(r"ok, 0 left, (\d+ edits?)", last):
        return f"Done: {edits[1]}."
    if line := re.search(r"^(\d+): ", last, re.MULTILINE):
        return [("replace_word", {"path": task, "line": int(line[1]), "old_name": old, "new_name": new})]
    return "Done: 0 edits." if last == "0 hits" else "Failed: no file."


@pytest.mark.parametrize(
    ("count", "sentence", "restarts"),
    [(0, "Done: 0 edits.", 0), (1, "Done: 1 edit.", 0), (4, "Done: 4 edits.", 0), (9, "Done: 1 edit.", 2)],
)
async def test_a_rename_of_a_whole_file(tmp_path: Path, count: int, sentence: str, restarts: int) -> None:
    (tmp_path / "a.py").write_text("foo = foo_2\n" * count + "x = 1\n")
    backend = Answering(renamer)
    workspace = DirectoryWorkspace(tmp_path)
    result = await run_agent(backend, "rename", "Rename foo to bar.", "a.py", workspace, model="nano")
    assert (result.status, result.message) == ("succeeded", sentence)
    assert (tmp_path / "a.py").read_text() == "bar = foo_2\n" * count + "x = 1\n"
    assert result.steps == len(backend.requests)
    assert result.usage == Usage(
        prompt_tokens=100 * result.steps, cached_tokens=40 * result.steps, completion_tokens=10 * result.steps
    )
    first = start(bundled_profile("rename"), model="nano", system_prompt="Rename foo to bar.", prompt="a.py")
    final = fold(first, result.records)
    assert final.restarts == restarts
    assert next_action(final) == Done("succeeded", sentence)


async def test_a_missing_file_fails_in_words(tmp_path: Path) -> None:
    result = await run_agent(
        Answering(renamer), "rename", "Rename a to b.", "gone.py", DirectoryWorkspace(tmp_path), model="m"
    )
    assert (result.status, result.message) == ("failed", "Failed: no file.")


async def test_a_model_that_repeats_a_failing_call_is_stopped(tmp_path: Path) -> None:
    backend = Answering(lambda request: [("search", {"path": "gone.py", "name": "a"})])
    result = await run_agent(
        backend, "rename", "Rename a to b.", "gone.py", DirectoryWorkspace(tmp_path), model="m"
    )
    assert (result.status, result.message, result.steps) == ("failed", "Failed: loop.", 3)


async def test_a_code_agent_works_with_several_calls_in_one_answer(tmp_path: Path) -> None:
    def coder(request: Request) -> Answer:
        match len(request.messages):
            case 2:
                return [("create", {"path": "a.py", "content": "x = 1\n"}), ("view", {"path": "a.py"})]
            case 5:
                assert [m.content for m in request.messages[-2:]] == ["ok, 1 lines", "1  x = 1"]
                return [("replace", {"path": "a.py", "old": "1", "new": "2"})]
            case _:
                return [("submit", {"summary": "x is 2."})]

    result = await run_agent(
        Answering(coder), "code", "Be brief.", "Make x two.", DirectoryWorkspace(tmp_path), model="k2.6"
    )
    assert (result.status, result.message) == ("succeeded", "x is 2.")
    assert (tmp_path / "a.py").read_text() == "x = 2\n"


async def test_errors_of_the_backend_are_the_callers(tmp_path: Path) -> None:
    def unreachable(request: Request) -> Answer:
        raise BackendUnreachable("refused")

    with pytest.raises(BackendUnreachable):
        await run_agent(
            Answering(unreachable), "rename", "Rename a to b.", "a", DirectoryWorkspace(tmp_path), model="m"
        )


async def test_a_prompt_that_never_fits_ends_the_agent(tmp_path: Path) -> None:
    def too_long(request: Request) -> Answer:
        raise ContextTooLong("too long")

    backend = Answering(too_long)
    result = await run_agent(
        backend, "rename", "Rename a to b.", "a", DirectoryWorkspace(tmp_path), model="m"
    )
    assert (result.status, result.message) == ("failed", "Failed: context full.")
    assert not any(isinstance(record, AnswerRecord) for record in result.records)
