from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from nano.batches import MAKERS, Batches
from nano.corpus import Record
from nano.names import Pool
from nano.traces import Answer, Encoder, Trace, run

from nano import merges, orchestrate_traces, rename_traces
from perilune.agent.binding import resolve, violation
from perilune.agent.calls import arguments_of
from perilune.agent.loop import start
from perilune.agent.profiles import bundled_profile
from perilune.chat.messages import Message
from perilune.chat.template import encode, render
from perilune.chat.tokenizer import IM_END, Tokenizer
from perilune.model.tiny import write_tokenizer

TEXT = "def load(path, count=1):\n    return path * count\n\n\nprint(load('a', count=2))\n"
RECORDS = (
    Record("pkg/one.py", "count", ((1, "def load(path, count=1):"), (2, "    return path * count"))),
    Record("pkg/two.py", "load", ((1, "def load(path, count=1):"),)),
    Record("pkg/sub/three.py", "value", tuple((n, f"    value = value + {n}") for n in range(3, 12))),
)
WORDS = ("orbit", "state", "vector", "moon", "phase", "table", "edge", "node", "path", "load")
NAMES = tuple(f"{a}_{b}" for a in WORDS for b in WORDS)
POOL = Pool(NAMES, WORDS, tuple(record.path for record in RECORDS), RECORDS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(merges.learn([TEXT * 5, " ".join(NAMES)], merges.protocol_texts(), 340), folder)
    return Tokenizer.load(folder)


def made(kind: str, count: int = 25) -> list[Trace]:
    rng = random.Random(f"test-{kind}")
    return [trace for _ in range(count) for trace in MAKERS[kind](POOL, rng)]


def oracle_of(trace: Trace) -> object:
    return rename_traces.oracle if trace.state.profile.name == "rename" else orchestrate_traces.oracle


def answers(trace: Trace) -> list[tuple[int, Message, bool]]:
    places = [place for place, message in enumerate(trace.messages) if message.role == "assistant"]
    assert len(places) == len(trace.trained)
    return [(place, trace.messages[place], flag) for place, flag in zip(places, trace.trained, strict=True)]


def as_answer(message: Message) -> Answer:
    calls = tuple((call.name, arguments_of(call)) for call in message.tool_calls)
    return Answer(text=str(message.content or ""), calls=calls)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_trained_answer_follows_from_its_context_alone(kind: str) -> None:
    checked = 0
    for trace in made(kind):
        oracle = oracle_of(trace)
        for place, message, trained in answers(trace):
            if trained:
                assert oracle(trace.messages[:place]) == as_answer(message)  # type: ignore[operator]
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("kind", MAKERS)
def test_trained_calls_are_copied_from_where_the_profile_says(kind: str) -> None:
    for trace in made(kind):
        profile = trace.state.profile
        for place, message, trained in answers(trace):
            choices = resolve(profile, trace.messages[:place])
            for call in message.tool_calls if trained else ():
                assert violation(profile, choices, call.name, arguments_of(call)) is None


@pytest.mark.parametrize("kind", MAKERS)
def test_the_tokens_before_each_answer_are_the_prompt_that_the_product_sends(
    kind: str, tokenizer: Tokenizer
) -> None:
    encoder = Encoder(tokenizer)
    for trace in made(kind, 8):
        ids, weights = encoder(trace)
        ends = 0
        for place, _, trained in answers(trace):
            prompt = render(trace.messages[:place], trace.state.profile.tools, thinking=False)
            sent = encode(prompt, tokenizer)
            assert ids[: len(sent)] == sent
            end = ids.index(tokenizer.special(IM_END), len(sent)) + 1
            assert not any(weights[ends : len(sent)]), "nothing of a prompt is a target"
            assert all(weight > 0 for weight in weights[len(sent) : end]) == trained
            ends = end


def test_requests_of_a_run_are_those_of_its_traces(tokenizer: Tokenizer) -> None:
    """Each request that the loop made is the beginning of a trace, message for message."""
    seen: list[tuple[Message, ...]] = []

    def watched(messages: Sequence[Message]) -> Answer:
        seen.append(tuple(messages))
        return rename_traces.oracle(messages)

    workspace = rename_traces.OneFile("a.py", "x = 1\n" * 6)
    state = start(bundled_profile("rename"), model="m", prompt="a.py", system_prompt="Rename x to y.")
    traces = list(run(state, watched, rename_traces.tools_over(workspace)))
    assert workspace.text == "y = 1\n" * 6
    assert len(traces) == 2, "four edits, a restart, two edits"
    assert traces[1].messages[-1].content == "Done: 2 edits."
    begun = [trace.messages[: len(messages)] for messages in seen for trace in traces]
    assert all(messages in begun for messages in seen)


def test_rename_traces_hold_recoveries_restarts_and_failures() -> None:
    rng = random.Random(3)
    traces = [trace for _ in range(400) for trace in rename_traces.traces(POOL, rng)]
    texts = [str(message.content) for trace in traces for message in trace.messages]
    for wanted in ("error: no file", "is not in your task", "syntax error, rolled back", ", next ", "0 hits"):
        assert any(wanted in text for text in texts), wanted
    for wanted in ("Failed: no file.", "Done: 0 edits.", "Done: 1 edit."):
        assert wanted in texts, wanted
    assert any(not all(trace.trained) for trace in traces), "slips are context, not targets"


def test_a_page_is_assigned_in_order_and_followed_by_the_next() -> None:
    for trace in made("round", 10):
        listed, assigned = trace.messages[-1 - 2 :], trace.messages
        calls = [call for message in assigned for call in message.tool_calls if call.name == "assign_task"]
        shown = [
            line
            for message in trace.messages
            if message.role == "tool" and message.name == "list_files"
            for line in str(message.content).splitlines()
            if "/" in line
        ]
        if calls and trace.messages[-1].tool_calls[0].name in ("list_files", "status"):
            assert [arguments_of(call)["prompt"] for call in calls] == shown
        assert listed


def test_batches_are_the_same_for_the_same_seed_and_place(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nano.batches.POOL", 1)

    def first(place: int) -> list[int]:
        batches = Batches(POOL, Encoder(tokenizer), tokenizer.special("[PAD]"), "1-0")
        batches.place = place
        batch = batches.next(0.05)
        assert batch.tokens.shape == batch.weights.shape and batch.tokens.shape[1] % 64 == 0
        return [int(token) for token in batch.tokens.flatten()]

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_the_learning_stages_cover_the_whole_training() -> None:
    from nano.batches import STAGES

    assert [stage.until for stage in STAGES] == sorted(stage.until for stage in STAGES)
    assert STAGES[-1].until > 1
    assert all(set(stage.mix) <= set(MAKERS) for stage in STAGES)


def test_evaluation_tasks_are_real_renames(tmp_path: Path) -> None:
    from nano.corpus import Corpus
    from nano.tasks import rename_tasks

    held = Record("held/one.py", "count", ((1, ""), (2, ""), (5, "")), TEXT)
    corpus = Corpus(RECORDS, (held,), NAMES, NAMES, WORDS, WORDS, ("a/b.py",), ("held/one.py",))
    (task,) = rename_tasks(corpus, 1)
    assert task.wanted != task.text and "count" not in task.wanted.replace("_count", "").replace("count_", "")
    assert task == rename_tasks(corpus, 1)[0]
    assert rename_tasks(corpus, 1, phrased=True)[0].instructions != task.instructions
