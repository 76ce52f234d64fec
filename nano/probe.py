"""The words that the weights are trained on, as one hash: the prompts of two fixed conversations."""

from __future__ import annotations

import hashlib

from perilune.agent.profiles import bundled_profile
from perilune.chat.messages import Message, ToolCall
from perilune.chat.template import render_text


def prompt_hash() -> str:
    """SHA-256 over the rendered prompts of both profiles. A change of template, tool declaration or tool
    schema changes it, and voids the training."""
    text = "\n".join(_prompt(name) for name in ("rename", "orchestrate-rename"))
    return hashlib.sha256(text.encode()).hexdigest()


def _prompt(profile: str) -> str:
    tool = bundled_profile(profile).tools[0]
    call = ToolCall(id=f"functions.{tool.name}:0", name=tool.name, arguments='{"path": "a.py", "name": "b"}')
    messages = (
        Message(role="system", content="Rename b to c."),
        Message(role="user", content="a.py"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="0 hits", tool_call_id=call.id, name=tool.name),
    )
    return render_text(messages, bundled_profile(profile).tools, thinking=False)
