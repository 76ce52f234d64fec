"""The loop: what follows from which records. Pure, so every case is data."""

import json
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perilune.agent.loop import (
    Action,
    AgentState,
    AnswerRecord,
    CallModel,
    Done,
    NoteRecord,
    Record,
    Restart,
    RestartRecord,
    RunTools,
    ToolRecord,
    apply,
    fold,
    next_action,
    start,
)
from perilune.agent.profiles import Profile, bundled_profile, parse_profile
from perilune.chat.messages import Completion, FinishReason, Message, ToolCall, Usage

RENAME = bundled_profile("rename")
ORCHESTRATE = bundled_profile("orchestrate-rename")
CODE = bundled_profile("code")
GOAL = "Rename foo to bar in app."


def agent(profile: Profile = RENAME, **changes: object) -> AgentState:
    if profile is ORCHESTRATE:
        state = start(profile, model="m", prompt=GOAL)
    else:
        state = start(profile, model="m", system_prompt="Rename foo to bar.", prompt="app/a.py")
    return msgspec.structs.replace(state, **changes) if changes else state


def said(
    text: str = "",
    *calls: tuple[str, dict[str, object] | str],
    tokens: int = 100,
    finish: FinishReason | None = None,
) -> AnswerRecord:
    made = tuple(
        ToolCall("whatever", name, arguments if isinstance(arguments, str) else json.dumps(arguments))
        for name, arguments in calls
    )
    return AnswerRecord(
        Completion(
            message=Message(role="assistant", content=text, tool_calls=made),
            finish_reason=finish or ("tool_calls" if made else "stop"),
            usage=Usage(prompt_tokens=tokens, completion_tokens=10),
        )
    )


def search(path: str = "app/a.py", name: str = "foo") -> tuple[str, dict[str, object] | str]:
    return ("search", {"path": path, "name": name})


def edit(line: int = 1) -> tuple[str, dict[str, object] | str]:
    return ("replace_word", {"path": "app/a.py", "line": line, "old_name": "foo", "new_name": "bar"})


def answered(state: AgentState, *results: ToolRecord | tuple[str, bool]) -> AgentState:
    """Answer the open calls in order."""
    action = next_action(state)
    assert isinstance(action, RunTools)
    for call, result in zip(action.calls, results, strict=True):
        record = result if isinstance(result, ToolRecord) else ToolRecord("", result[0], ok=result[1])
        state = apply(state, msgspec.structs.replace(record, call_id=call.id))
    return state


def request_messages(state: AgentState) -> tuple[Message, ...]:
    action = next_action(state)
    assert isinstance(action, CallModel), action
    return action.request.messages


def test_the_first_request_holds_tools_instructions_task_and_choices() -> None:
    action = next_action(agent(cache_salt="org", seed=7))
    assert isinstance(action, CallModel)
    request = action.request
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "Rename foo to bar."),
        ("user", "app/a.py"),
    ]
    assert request.tools == RENAME.tools
    assert request.argument_choices["search"]["name"] == ("Rename", "foo", "to", "bar")
    assert (request.temperature, request.max_tokens, request.thinking) == (0.0, 128, False)
    assert (request.cache_salt, request.seed) == ("org", 7)


def test_a_whole_task() -> None:
    state = apply(agent(), said("", search()))
    action = next_action(state)
    assert isinstance(action, RunTools)
    assert [call.id for call in action.calls] == ["functions.search:0"]
    state = answered(state, ("1 hit\n1: foo", True))
    state = answered(
        apply(state, said("", edit())), ToolRecord("", "ok, 0 left, 1 edit", mutated=True, settled=True)
    )
    state = apply(state, said("Done: 1 edit."))
    assert next_action(state) == Done("succeeded", "Done: 1 edit.")
    assert (state.steps, state.total_edits) == (3, 1)


def test_an_agent_that_says_it_failed_has_failed() -> None:
    assert next_action(apply(agent(), said("Failed: no file."))) == Done("failed", "Failed: no file.")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (("search", "{"), "error: arguments are not JSON"),
        (("search", "[" * 100_000), "error: arguments are not JSON"),
        (("search", "[]"), "error: arguments are not a JSON object"),
        (("fly", {}), "error: no tool fly"),
        (("search", {"path": "app/a.py"}), "error: name is missing"),
        (("search", {"path": 1, "name": "foo"}), "error: path is not of type string"),
        (("replace_word", {"path": "a", "line": True, "old_name": "a", "new_name": "b"}), "integer"),
        (("replace_word", {"path": "a", "line": "1", "old_name": "a", "new_name": "b"}), "integer"),
        (("search", {"path": "a", "name": "b", "x": 1}), "error: search takes no argument x"),
    ],
)
def test_a_malformed_call_is_answered_without_being_run(
    call: tuple[str, dict[str, object] | str], text: str
) -> None:
    state = apply(agent(), said("", call))
    last = request_messages(state)[-1]
    assert last.role == "tool"
    assert isinstance(last.content, str)
    assert text in last.content


def test_calls_beyond_the_limit_are_refused_and_the_others_run() -> None:
    state = apply(agent(), said("", search(), search("app/a.py", "bar")))
    action = next_action(state)
    assert isinstance(action, RunTools)
    assert len(action.calls) == 1
    messages = request_messages(answered(state, ("0 hits", True)))
    assert messages[-1].content == "error: at most 1 calls in one answer"


def test_answers_may_arrive_in_any_order_and_are_sent_in_the_order_of_the_calls() -> None:
    state = apply(agent(CODE), said("", ("view", {"path": "a"}), ("view", {"path": "b"})))
    action = next_action(state)
    assert isinstance(action, RunTools)
    first, second = action.calls
    state = apply(state, ToolRecord(second.id, "B"))
    assert next_action(state) == msgspec.structs.replace(action, calls=(first,), earlier=(second,))
    state = apply(state, ToolRecord(first.id, "A"))
    assert [m.content for m in request_messages(state)[-2:]] == ["A", "B"]


def test_the_same_failing_call_three_times_in_a_row_is_a_loop() -> None:
    state = agent()
    for attempt in range(3):
        assert not isinstance(next_action(state), Done), attempt
        state = answered(apply(state, said("", search("app/a.py", "fo"))), ("error: fo is not", False))
    assert next_action(state) == Done("failed", "Failed: loop.")


def test_another_call_or_a_success_between_breaks_the_count() -> None:
    state = agent()
    for name, ok in [("x", False), ("x", False), ("y", False), ("x", False), ("x", True), ("x", False)] * 2:
        state = answered(apply(state, said("", search("app/a.py", name))), ("text", ok))
    assert isinstance(next_action(state), CallModel)


def test_a_loop_is_seen_across_key_order_malformed_json_and_repeats_within_one_answer() -> None:
    state = agent(ORCHESTRATE)
    twice = [("list_files", '{"dir":"x","page":1}'), ("list_files", '{"page":1, "dir":"x"}')]
    for _ in range(2):
        state = answered(apply(state, said("", *twice)), ("error: no directory x", False), ("error", False))
        assert isinstance(next_action(state), CallModel), "repeats within an answer count once"
    state = answered(apply(state, said("", twice[1])), ("error: no directory x", False))
    assert next_action(state) == Done("failed", "Failed: loop.")
    state = fold(agent(), [said("", ("search", "{"))] * 3)
    assert next_action(state) == Done("failed", "Failed: loop.")


def test_an_endless_successful_repeat_ends_too() -> None:
    state = agent()
    for _ in range(12):
        assert isinstance(next_action(state), CallModel)
        state = answered(apply(state, said("", search(), tokens=10)), ("0 hits", True))
    assert next_action(state) == Done("failed", "Failed: loop.")


def test_an_empty_answer_is_nudged_once() -> None:
    state = apply(agent(), said(""))
    assert request_messages(state)[-1].role == "user"
    assert all(m.content for m in request_messages(state)), "an empty assistant message is not sent"
    assert next_action(apply(state, said("  "))) == Done("failed", "Failed: empty answer.")
    recovered = answered(apply(state, said("", search())), ("0 hits", True))
    assert isinstance(next_action(apply(recovered, said(""))), CallModel), "a new chance after an answer"


def test_a_cut_answer_is_nudged_once() -> None:
    state = apply(agent(), said("Done: 1", finish="length"))
    assert isinstance(next_action(state), CallModel)
    assert next_action(apply(state, said("Done: 1", finish="length"))) == Done(
        "failed", "Failed: answer too long."
    )


def test_the_step_limit_ends_the_agent_after_its_tools_are_answered() -> None:
    state = apply(agent(steps=RENAME.max_steps - 1), said("", search()))
    assert isinstance(next_action(state), RunTools)
    assert next_action(answered(state, ("0 hits", True))) == Done("failed", "Failed: step limit.")


def edited(state: AgentState, line: int, *, settled: bool = False, tokens: int = 100) -> AgentState:
    record = ToolRecord("", "ok", mutated=True, settled=settled)
    return answered(apply(state, said("", edit(line), tokens=tokens)), record)


def test_after_four_edits_the_context_starts_afresh() -> None:
    state = agent()
    for line in range(1, 5):
        assert isinstance(next_action(state), CallModel)
        state = edited(state, line)
    assert next_action(state) == Restart("4 edits in this context")
    state = apply(state, RestartRecord("4 edits in this context"))
    assert request_messages(state) == request_messages(agent())
    assert (state.edits, state.total_edits, state.restarts, state.steps) == (0, 4, 1, 4)


def test_no_restart_when_nothing_is_left() -> None:
    state = agent()
    for line in range(1, 5):
        state = edited(state, line, settled=line == 4)
    assert isinstance(next_action(state), CallModel)
    assert next_action(apply(state, said("Done: 4 edits."))) == Done("succeeded", "Done: 4 edits.")


def test_a_full_context_restarts_and_two_idle_ones_in_a_row_give_up() -> None:
    state = agent()
    for _ in range(2):
        state = answered(apply(state, said("", search(), tokens=1_500)), ("0 hits", True))
        assert isinstance(next_action(state), Restart)
        state = apply(state, RestartRecord("full"))
    assert next_action(state) == Done("failed", "Failed: context full.")
    state = apply(edited(agent(), 1, tokens=1_500), RestartRecord("full"))
    assert state.idle_restarts == 0


def test_tool_results_count_before_any_usage_does() -> None:
    state = answered(apply(agent(), said("", search(), tokens=600)), ("x" * 2_000, True))
    assert isinstance(next_action(state), Restart)


def test_submit_ends_a_code_agent_with_its_summary() -> None:
    state = apply(agent(CODE), said("", ("submit", {"summary": " It works. "})))
    assert isinstance(next_action(state), RunTools)
    assert next_action(answered(state, ("ok", True))) == Done("succeeded", "It works.")


def test_a_code_agent_is_told_that_it_was_restarted() -> None:
    messages = request_messages(apply(agent(CODE), RestartRecord("full")))
    assert [m.role for m in messages] == ["system", "user", "user"]
    assert "started afresh" in str(messages[-1].content)


def test_a_note_reaches_the_agent_and_reopens_a_finished_one() -> None:
    state = apply(apply(agent(), said("Done: 0 edits.")), NoteRecord("The check still fails."))
    assert [(m.role, m.content) for m in request_messages(state)[-2:]] == [
        ("assistant", "Done: 0 edits."),
        ("user", "The check still fails."),
    ]


def test_records_that_cannot_follow_are_refused() -> None:
    state = apply(agent(), said("", search()))
    for record in (said("x"), RestartRecord("x"), NoteRecord("x"), ToolRecord("other", "x")):
        with pytest.raises(ValueError, match=r"open|while"):
            apply(state, record)


# ---- the orchestrator's rolling context


def started() -> AgentState:
    prompt = "Rename foo to bar."
    state = apply(agent(ORCHESTRATE), said("", ("create_subagent", {"name": "r", "system_prompt": prompt})))
    return answered(state, ("ok", True))


def a_round(state: AgentState, page: int, paths: Sequence[str]) -> AgentState:
    state = apply(state, said("", ("list_files", {"dir": "app", "page": page})))
    state = answered(state, ("\n".join(paths) + f"\nnext page: {page + 1}", True))
    state = apply(state, said("", *(("assign_task", {"agent": "r", "prompt": path}) for path in paths)))
    return answered(state, *[("Done: 1 edit.", True)] * len(paths))


def test_only_the_goal_the_sub_agents_and_the_current_round_are_sent() -> None:
    state = a_round(a_round(started(), 1, ["app/a.py", "app/b.py"]), 2, ["app/c.py"])
    messages = request_messages(state)
    assert [message.role for message in messages] == [
        *("user", "assistant", "tool"),
        *("assistant", "tool"),
        *("assistant", "tool"),
    ]
    assert messages[0].content == GOAL
    ids = [call.id for message in messages for call in message.tool_calls]
    assert ids == ["functions.create_subagent:0", "functions.list_files:1", "functions.assign_task:2"]
    assert [m.tool_call_id for m in messages if m.role == "tool"] == ids
    action = next_action(state)
    assert isinstance(action, CallModel)
    assert action.request.argument_choices["assign_task"] == {"agent": ("r",), "prompt": ("app/c.py",)}


def test_the_old_round_is_sent_until_the_new_one_begins() -> None:
    state = a_round(started(), 1, ["app/a.py"])
    before = request_messages(state)
    state = apply(state, said("", ("list_files", {"dir": "app", "page": 2})))
    assert len(request_messages(answered(state, ("last page", True)))) == len(before) - 2


def test_three_hundred_rounds_take_no_more_memory_than_one() -> None:
    state = started()
    for page in range(1, 40):
        state = a_round(state, page, [f"app/{page}_{i}.py" for i in range(8)])
    assert len(state.turns) <= 4
    action = next_action(apply(state, said("", ("status", {}))))
    assert isinstance(action, RunTools)
    assert action.calls[0].id == f"functions.status:{state.calls}", "an id names one call for ever"


def test_a_path_of_an_earlier_round_is_not_listed_any_more() -> None:
    state = a_round(a_round(started(), 1, ["app/a.py"]), 2, ["app/b.py"])
    state = apply(state, said("", ("assign_task", {"agent": "r", "prompt": "app/a.py"})))
    assert request_messages(state)[-1].content == "error: app/a.py is not listed"


def test_a_failed_create_subagent_is_dropped_with_its_round() -> None:
    wrong = ("create_subagent", {"name": "r", "system_prompt": "Rename fo to bar."})
    state = apply(agent(ORCHESTRATE), said("", wrong))
    assert request_messages(state)[-1].content == "error: fo is not in the goal"
    right = ("create_subagent", {"name": "r", "system_prompt": "Rename foo to bar."})
    state = a_round(answered(apply(state, said("", right)), ("ok", True)), 1, ["app/a.py"])
    assert len(request_messages(state)) == 7


# ---- properties

CALLS = st.sampled_from(
    [
        ("list_files", {"dir": "app", "page": 1}),
        ("list_files", {"dir": "app", "page": 2}),
        ("status", {}),
        ("assign_task", {"agent": "r", "prompt": "app/a.py"}),
        ("assign_task", "{broken"),
        ("create_subagent", {"name": "r", "system_prompt": "Rename foo to bar."}),
    ]
)
EDITS = st.sampled_from(
    [search(), search("app/a.py", "bar"), edit(1), edit(2), ("fly", {}), ("replace_word", "[")]
)
RESULTS = st.builds(
    ToolRecord,
    call_id=st.just(""),
    content=st.sampled_from(["ok", "app/a.py\nlast page", "0 hits", "error: no"]),
    ok=st.booleans(),
    mutated=st.booleans(),
    settled=st.booleans(),
)


def answers(calls: st.SearchStrategy[tuple[str, object]]) -> st.SearchStrategy[AnswerRecord]:
    return st.builds(
        lambda text, made, tokens, finish: said(text, *made, tokens=tokens, finish=finish),
        st.sampled_from(["", "", "", "Done: 1 edit."]),
        st.lists(calls, max_size=3),
        st.integers(1, 1_600),
        st.sampled_from([None, None, "length"]),
    )


def live(
    state: AgentState, data: st.DataObject, calls: st.SearchStrategy[tuple[str, object]]
) -> list[tuple[Record | None, AgentState, Action]]:
    """An agent run to its end (or 25 records), with all states on the way."""
    seen: list[tuple[Record | None, AgentState, Action]] = [(None, state, next_action(state))]
    while len(seen) < 25 and not isinstance(action := seen[-1][2], Done):
        match action:
            case CallModel():
                record: Record = data.draw(answers(calls))
            case RunTools():
                call = data.draw(st.sampled_from(action.calls))
                record = msgspec.structs.replace(data.draw(RESULTS), call_id=call.id)
            case Restart():
                record = RestartRecord(action.reason)
        state = apply(state, record)
        seen.append((record, state, next_action(state)))
    return seen


@pytest.mark.parametrize(
    ("profile", "calls"), [(RENAME, EDITS), (ORCHESTRATE, CALLS)], ids=["rename", "rolling"]
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_prefix_of_the_records_folds_to_the_live_state(
    profile: Profile, calls: st.SearchStrategy[tuple[str, object]], data: st.DataObject
) -> None:
    first = agent(profile)
    seen = live(first, data, calls)
    written = [msgspec.json.encode(record) for record, _, _ in seen[1:]]
    records = [msgspec.json.decode(line, type=Record) for line in written]
    for end, (_, state, action) in enumerate(seen):
        folded = fold(first, records[:end])
        assert folded == state
        assert next_action(folded) == action
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(seen[-1][1]), type=AgentState)
    assert next_action(stored) == seen[-1][2], "a snapshot serves as well as a fold"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_within_a_context_each_request_begins_with_the_one_before(data: st.DataObject) -> None:
    """Byte-stable prefixes: what a prefix cache has seen is never rewritten."""
    previous: tuple[Message, ...] = ()
    for record, _, action in live(agent(), data, EDITS):
        if isinstance(record, RestartRecord):
            previous = ()
        if isinstance(action, CallModel):
            messages = action.request.messages
            assert msgspec.json.encode(messages).startswith(msgspec.json.encode(previous).removesuffix(b"]"))
            previous = messages


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_request_is_well_formed(data: st.DataObject) -> None:
    """Each tool call has exactly one answer right after it; ids count from 0."""
    for _, _, action in live(agent(ORCHESTRATE), data, CALLS):
        if not isinstance(action, CallModel):
            continue
        ids = [call.id for message in action.request.messages for call in message.tool_calls]
        assert [int(name.rsplit(":", 1)[1]) for name in ids] == list(range(len(ids)))
        assert [m.tool_call_id for m in action.request.messages if m.role == "tool"] == ids


def test_a_profile_without_bindings_runs_any_tool() -> None:
    profile = parse_profile('{"name": "p", "tools": [{"name": "t", "parameters": {"type": "object"}}]}')
    state = apply(start(profile, model="m", prompt="go"), said("", ("t", {})))
    assert isinstance(next_action(state), RunTools)
