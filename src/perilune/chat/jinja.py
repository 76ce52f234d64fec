"""A checkpoint's own chat template, run in a sandbox: text in, text out, nothing else within reach.

It is `chat_template.jinja`, or `chat_template` in tokenizer_config.json, as older exports have it.

jinja2 comes with the `engine` extra and is imported here when a template is read, not before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Self

import msgspec

from perilune.chat.declaration import declare_typescript, plain_tools
from perilune.chat.messages import ImagePart, Message, Request, TextPart, Tool, ToolCall, VideoPart
from perilune.chat.model_files import COPY_AGAIN, read_bounded
from perilune.chat.template import (
    canonical_calls,
    is_partial,
    refuse_surrogates,
    spelt,
    times_of_each,
    video_pieces,
)
from perilune.chat.tokenizer import CONFIG_FILE, END_THINK, THINK, Tokenizer
from perilune.errors import CheckpointError, ConfigError, InputError, UnsupportedInput

TEMPLATE_FILE = "chat_template.jinja"
LARGEST_TEMPLATE = 1 << 20
LARGEST_CONFIG = 16 << 20
VIDEO_PLACEHOLDER = "<|kimi_k25_video_placeholder|>"
"""What templates write for a video. It is no token: the video's pieces take its place in the text."""
NO_TEXT = re.compile("[\0\ud800-\udfff]")
GUARD = "\ue0f5\uf8a1"
"""Put behind each character of a message that can begin a control token, while the template runs: so only
what the template itself writes becomes control tokens. Nobody sends this pair of private characters."""


def has_template(folder: Path) -> bool:
    """Raises CheckpointError as `JinjaTemplate.load` does."""
    return _source(folder) is not None


class _Named(msgspec.Struct):
    name: str
    template: str


class _Config(msgspec.Struct):
    chat_template: str | list[_Named] | None = None


def _source(folder: Path) -> tuple[str, Path] | None:
    """The template and the file it is in. Raises CheckpointError for what cannot be read."""
    path = folder / TEMPLATE_FILE
    try:
        if path.exists():
            return read_bounded(path, LARGEST_TEMPLATE).decode("utf-8"), path
        path = folder / CONFIG_FILE
        if not path.exists():
            return None
        found = msgspec.json.decode(read_bounded(path, LARGEST_CONFIG), type=_Config).chat_template
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), mend=COPY_AGAIN) from error
    if isinstance(found, list):
        found = next((one.template for one in found if one.name == "default"), None)
    return None if found is None else (found, path)


class JinjaTemplate:
    """Made by `load`; immutable, and safe to share between threads."""

    def __init__(self, source: str, path: Path) -> None:
        """Raises ConfigError without jinja2, CheckpointError for what is no template."""
        try:
            from jinja2 import TemplateError, nodes
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise ConfigError(
                "chat templates of checkpoints need jinja2",
                field=str(path),
                mend="pip install 'perilune[engine]'",
            ) from error
        self.path = path
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            parsed = environment.parse(source)
            texts = [node.data for node in parsed.find_all(nodes.TemplateData)]
            texts += [node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)]
            self._template = environment.from_string(parsed)
        except (TemplateError, RecursionError) as error:
            raise self._wrong(f"is no template: {error}") from error
        if any(NO_TEXT.search(text) for text in texts):
            raise self._wrong("writes NUL or half a surrogate pair, which are no text")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises CheckpointError where there is none that can be read, and as the constructor does."""
        found = _source(folder)
        if found is None:
            raise CheckpointError(f"has no {TEMPLATE_FILE}", field=str(folder), mend=COPY_AGAIN)
        return cls(*found)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        thinking: bool,
        keep_thinking: bool = False,
        generate: bool = True,
        video_times: Sequence[Sequence[str]] | None = None,
    ) -> str:
        """Raises CheckpointError when the template fails, UnsupportedInput when it does not show as many
        videos as there are in `video_times`."""
        given: dict[str, Any] = {
            "messages": [_message(message) for message in canonical_calls(messages)],
            "add_generation_prompt": generate,
            "thinking": thinking,
            "preserve_thinking": keep_thinking,
        }
        if tools:
            given |= {"tools": plain_tools(tools), "tools_ts_str": declare_typescript(tools)}
        try:
            text = self._template.render(given)
        except InputError:
            raise
        except Exception as error:
            raise self._wrong(f"fails: {type(error).__name__}: {error}") from error
        return _with_videos(text, video_times or ())

    def prompt_ids(
        self, request: Request, tokenizer: Tokenizer, *, video_times: Sequence[Sequence[str]] | None = None
    ) -> list[int]:
        """Token ids of the prompt that this template makes; messages make no control tokens here either."""
        if is_partial(request.messages):
            raise UnsupportedInput(
                "a partial message cannot be gone on from under the checkpoint's own template",
                field=f"messages[{len(request.messages) - 1}].partial",
                mend='leave partial out, or serve without `template = "jinja"`',
            )
        refuse_surrogates(request)
        times = tuple(times_of_each(request.messages, video_times))
        guards = {ord(name[0]): name[0] + GUARD for name in tokenizer.specials}
        text = self.render(
            msgspec.convert(_guarded(msgspec.to_builtins(request.messages), guards), tuple[Message, ...]),
            msgspec.convert(_guarded(msgspec.to_builtins(request.tools), guards), tuple[Tool, ...]),
            thinking=request.thinking,
            keep_thinking=request.keep_thinking,
            video_times=times,
        )
        ids = _encode(text, tokenizer)
        marks = [tokenizer.special(THINK), tokenizer.special(END_THINK)]
        if ids[-1:] not in (marks[:1], marks[1:]):
            # The model would write the first mark itself; see template.prompt_ids.
            ids += marks[:1] if request.thinking else marks
        return ids

    def _wrong(self, problem: str) -> CheckpointError:
        return CheckpointError(problem, field=str(self.path), mend="copy it again from the model's source")


# ---- control tokens


def _guarded(value: Any, guards: dict[int, str]) -> Any:
    """The value with every text in it guarded; the tags of parts hold none of the guarded characters."""
    if isinstance(value, str):
        return value.translate(guards)
    if isinstance(value, dict):
        return {_guarded(key, guards): _guarded(inner, guards) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(inner, guards) for inner in value]
    return value


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of what a template wrote: control tokens by their spelling, the rest as text."""
    names = "|".join(re.escape(name) for name in sorted(tokenizer.specials, key=len, reverse=True))
    ids: list[int] = []
    for part in re.split(f"({names})", text):
        if part in tokenizer.specials:
            ids.append(tokenizer.special(part))
        else:
            ids.extend(tokenizer.encode(part.replace(GUARD, "")))
    return ids


def _with_videos(text: str, times: Sequence[Sequence[str]]) -> str:
    """What a template wrote, with each video's pieces in its place."""
    first, *rest = text.split(VIDEO_PLACEHOLDER)
    if len(rest) != len(times):
        raise UnsupportedInput(
            f"the checkpoint's own template shows {len(rest)} of {len(times)} videos",
            field="messages.content",
            mend='leave videos out, or serve without `template = "jinja"`',
        )
    videos = (spelt(video_pieces(one)) for one in times)
    return first + "".join(part for pair in zip(videos, rest, strict=True) for part in pair)


# ---- what templates are given


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if isinstance(message.content, tuple):
        said["content"] = [_part(part) for part in message.content]
    optional = {
        "name": message.name,
        "reasoning_content": message.reasoning,
        "tool_call_id": message.tool_call_id,
        "tool_calls": [_call(call) for call in message.tool_calls] or None,
    }
    return said | {name: value for name, value in optional.items() if value is not None}


def _part(part: TextPart | ImagePart | VideoPart) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": text}
        case ImagePart(url=url):
            return {"type": "image_url", "image_url": {"url": url}}
        case VideoPart(url=url):
            return {"type": "video_url", "video_url": {"url": url}}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _to_json(value: Any, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """What these templates expect of `tojson`: nothing escaped for HTML, characters kept."""
    if separators is not None:
        separators = tuple(separators)
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise InputError(message, field="messages", mend="the checkpoint's template does not take this")


def _now(form: str) -> str:
    return datetime.now().strftime(form)
