"""What may be copied into which argument, and what the model is told when it was not."""

import json

from perilune.agent.binding import offered, resolve, spans_of, violation, words_of
from perilune.agent.profiles import bundled_profile
from perilune.chat.messages import Message, ToolCall

RENAME = bundled_profile("rename")
ORCHESTRATE = bundled_profile("orchestrate-rename")
GOAL = "Rename load_cfg to read_config in app/core."


def user(text: str) -> Message:
    return Message(role="user", content=text)


def call(name: str, index: int, /, **arguments: object) -> Message:
    made = ToolCall(f"functions.{name}:{index}", name, json.dumps(arguments))
    return Message(role="assistant", content="", tool_calls=(made,))


def answer(name: str, index: int, text: str) -> Message:
    return Message(role="tool", content=text, tool_call_id=f"functions.{name}:{index}")


def test_words_lose_closing_punctuation_and_repeats() -> None:
    assert words_of("Rename a.b to c, to d; x: ...") == ("Rename", "a.b", "to", "c", "d", "x")


def test_spans_are_runs_closed_by_a_full_stop() -> None:
    spans = spans_of(GOAL)
    assert "Rename load_cfg to read_config." in spans
    assert "Rename load_cfg read_config." not in spans
    assert len(spans_of(" ".join(f"w{i}" for i in range(100)))) < 1_200


def test_a_sub_agent_copies_names_from_its_system_message_and_the_path_from_its_task() -> None:
    messages = [Message(role="system", content="Rename a to b."), user("app/core/x.py")]
    choices = resolve(RENAME, messages)
    assert choices["replace_word"] == {
        "path": ("app/core/x.py",),
        "old_name": ("Rename", "a", "to", "b"),
        "new_name": ("Rename", "a", "to", "b"),
    }


def test_paths_come_from_tool_results_in_the_context_and_agents_from_answered_calls() -> None:
    messages = [
        user(GOAL),
        call("create_subagent", 0, name="renamer", system_prompt="Rename load_cfg to read_config."),
        answer("create_subagent", 0, "ok"),
        call("create_subagent", 1, name="second", system_prompt="x"),
        answer("create_subagent", 1, "error: x is not in the goal"),
        call("list_files", 2, dir="app/core", page=1),
        answer("list_files", 2, "app/core/a.py\napp/core/b c.py\nnext page: 2"),
        call("assign_task", 3, agent="renamer", prompt="app/core/a.py"),
        answer("assign_task", 3, "Done: 2 edits."),
        call("status", 4),
        answer("status", 4, "1 of 2 files done, 1 not done:\napp/core/b c.py"),
    ]
    choices = resolve(ORCHESTRATE, messages)
    assert choices["assign_task"] == {
        "agent": ("renamer",),
        "prompt": ("app/core/a.py", "app/core/b c.py"),
    }
    assert "app/core" in choices["list_files"]["dir"]


def test_an_empty_choice_is_not_offered_but_still_refused() -> None:
    choices = resolve(ORCHESTRATE, [user(GOAL)])
    assert choices["assign_task"] == {"agent": (), "prompt": ()}
    assert "assign_task" not in offered(choices)
    found = violation(ORCHESTRATE, choices, "assign_task", {"agent": "renamer", "prompt": "a.py"})
    assert found is not None
    assert found.text() == "error: no agent renamer"


def test_a_system_prompt_with_a_name_that_is_not_in_the_goal_is_refused_by_that_name() -> None:
    choices = resolve(ORCHESTRATE, [user(GOAL)])

    def refusal(system_prompt: str) -> str | None:
        arguments = {"name": "renamer", "system_prompt": system_prompt}
        found = violation(ORCHESTRATE, choices, "create_subagent", arguments)
        return found.text() if found else None

    assert refusal("Rename load_cfg to read_config.") is None
    assert refusal("Rename load_cfg to read_confg.") == "error: read_confg is not in the goal"
    assert refusal("Rename load_cfg read_config.") == "error: Rename load_cfg read_config is not in the goal"


def test_arguments_that_are_not_bound_are_free() -> None:
    choices = resolve(ORCHESTRATE, [user(GOAL)])
    assert violation(ORCHESTRATE, choices, "status", {}) is None
    assert violation(bundled_profile("code"), {}, "bash", {"command": "ls"}) is None
