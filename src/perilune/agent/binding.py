"""Copy-bound arguments: which strings a tool argument may hold, given the conversation.

A profile's `bind` maps a tool's string argument to a *kind*:

    words    words of the agent's own instructions (system message, else the first user message)
    prompt   words of its user message
    spans    runs of instruction words, joined by one space and closed by "."
    listed   paths shown by tool results that are still in the context
    agents   names of the sub-agents created so far

The kinds narrow what may be copied; they never decide which value is right. Our engine's grammar
enforces the choices; for any other endpoint `violation` finds what was not copied and the model gets a
tool error that it can answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from perilune.agent.profiles import Profile
from perilune.chat.messages import Message, ToolCall

Choices = Mapping[str, Mapping[str, tuple[str, ...]]]

SPAN_WORDS = 12
"""Longest run offered as a span: the number of runs grows with the square of the goal's length."""

NOT_A_PATH = re.compile(r"next page: \d+|last page|error: .*|\d+ of \d+ files done.*|ok")

ANSWERS_ITSELF = frozenset({"search", "replace_word", "list_files"})
"""Tools whose refusal says more than the violation (the next hit, the folder): they check themselves."""


class Violation(msgspec.Struct, frozen=True):
    argument: str
    kind: str
    value: str
    """The offending word, or the whole argument where it is not made of words."""

    def text(self) -> str:
        """The tool error that the model gets."""
        match self.kind:
            case "spans":
                return f"error: {self.value} is not in the goal"
            case "agents":
                return f"error: no agent {self.value}"
            case "listed":
                return f"error: {self.value} is not listed"
            case _:
                return f"error: {self.value} is not in your task"


def words_of(text: str) -> tuple[str, ...]:
    """Whitespace-separated words without trailing `.,:;`, each once, in order."""
    stripped = (word.rstrip(".,:;") for word in text.split())
    return tuple(dict.fromkeys(word for word in stripped if word))


def spans_of(text: str) -> tuple[str, ...]:
    """Every run of up to SPAN_WORDS consecutive words, closed by a full stop."""
    words = [stripped for word in text.split() if (stripped := word.rstrip(".,:;"))]
    runs = (
        " ".join(words[start:end]) + "."
        for start in range(len(words))
        for end in range(start + 1, min(start + SPAN_WORDS, len(words)) + 1)
    )
    return tuple(dict.fromkeys(runs))


def resolve(profile: Profile, messages: Sequence[Message]) -> Choices:
    """The strings each bound argument may hold now. An argument may have none (nothing listed yet)."""
    kinds = {kind for arguments in profile.bind.values() for kind in arguments.values()}
    values = {kind: _values(kind, profile, messages) for kind in kinds}
    return {
        tool: {argument: values[kind] for argument, kind in arguments.items()}
        for tool, arguments in profile.bind.items()
    }


def offered(choices: Choices) -> Choices:
    """The choices as the request carries them: an empty set cannot be written into a grammar, so such
    an argument stays free there and is refused when it is used."""
    full = {
        tool: {argument: values for argument, values in arguments.items() if values}
        for tool, arguments in choices.items()
    }
    return {tool: arguments for tool, arguments in full.items() if arguments}


def violation(
    profile: Profile, choices: Choices, tool: str, arguments: Mapping[str, object]
) -> Violation | None:
    """The first bound argument of this call that was not copied from where it must come from."""
    for argument, kind in profile.bind.get(tool, {}).items():
        value = arguments.get(argument)
        allowed = choices.get(tool, {}).get(argument, ())
        if not isinstance(value, str) or value in allowed:
            continue
        if kind == "spans":
            known = {word for span in allowed for word in words_of(span)}
            strangers = [word for word in words_of(value) if word not in known]
            return Violation(argument, kind, strangers[0] if strangers else value.rstrip("."))
        return Violation(argument, kind, value)
    return None


def _values(kind: str, profile: Profile, messages: Sequence[Message]) -> tuple[str, ...]:
    match kind:
        case "words":
            return words_of(_first(messages, "system") or _first(messages, "user"))
        case "prompt":
            return words_of(_first(messages, "user"))
        case "spans":
            return spans_of(_first(messages, "system") or _first(messages, "user"))
        case "listed":
            results = _results(messages, profile.context.round_starts or ("list_files", "status"))
            lines = (line.strip() for text in results for line in text.splitlines())
            return tuple(dict.fromkeys(line for line in lines if line and not NOT_A_PATH.fullmatch(line)))
        case _:
            return created_agents(messages)


def created_agents(messages: Sequence[Message]) -> tuple[str, ...]:
    """Names given to `create_subagent` calls that were answered without an error."""
    names: list[str] = []
    for call, result in _answered(messages, ("create_subagent",)):
        if not result.startswith("error:"):
            arguments = msgspec.json.decode(call.arguments)
            names.append(str(arguments["name"]))
    return tuple(dict.fromkeys(names))


def _first(messages: Sequence[Message], role: str) -> str:
    for message in messages:
        if message.role == role:
            return message.content if isinstance(message.content, str) else ""
    return ""


def _results(messages: Sequence[Message], tools: Sequence[str]) -> Iterable[str]:
    return (result for _, result in _answered(messages, tools))


def _answered(messages: Sequence[Message], tools: Sequence[str]) -> Iterable[tuple[ToolCall, str]]:
    """Calls of these tools with the text of their answers, within the messages given."""
    calls: dict[str, ToolCall] = {}
    for message in messages:
        for call in message.tool_calls:
            calls[call.id] = call
        if message.role == "tool" and message.tool_call_id in calls:
            call = calls[message.tool_call_id]
            if call.name in tools and isinstance(message.content, str):
                yield call, message.content
