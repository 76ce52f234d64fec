"""Which chat format a checkpoint's own template writes, found out by rendering the same conversations twice.

Our template always renders, for one text of a Jinja template cannot tell control tokens from what users say.
The checkpoint's template is the oracle: the variant that agrees with it on every probe is the checkpoint's.
Where none does, serving is refused with the difference, unless the checkpoint's template itself is asked for.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Protocol

from perilune.chat.jinja import TEMPLATE_FILE, JinjaTemplate, has_template
from perilune.chat.messages import Request
from perilune.chat.probes import Probe, probes
from perilune.chat.template import prompt_ids, render_text
from perilune.chat.tokenizer import Tokenizer
from perilune.chat.variants import K26, VARIANTS, Variant, candidates
from perilune.errors import CheckpointError, ConfigError, PeriluneError

log = logging.getLogger("perilune.chat")

JINJA = "jinja"
MEND = (
    "serve it with --template jinja to use this file as it is, or name one of our formats: "
    f"--template {'|'.join(VARIANTS)}"
)
LONGEST_DIFF = 12
"""Lines logged of the first probe that differs."""
CLIP = 80
"""Characters of a line that the error shows, from a few before the first that differs."""


class Prompter(Protocol):
    """Makes the token ids of a request's prompt; `video_times` say when the pieces of each video begin."""

    def __call__(
        self, request: Request, tokenizer: Tokenizer, *, video_times: Sequence[Sequence[str]] | None = None
    ) -> list[int]: ...


def open_template(folder: Path, choice: str = "", *, default_system: bool = False) -> Prompter:
    """What makes prompts for the checkpoint in `folder`.

    `choice` is empty (the checkpoint decides), the name of a variant, or `jinja` (the checkpoint's own
    file renders). `default_system` introduces Kimi whatever the format says. Raises CheckpointError with
    the difference when the checkpoint's template is none that we know, ConfigError for an odd choice."""
    if choice == JINJA:
        return _own_template(folder)
    variant = chosen_variant(folder, choice)
    if default_system:
        variant = replace(variant, default_system=True)
    return partial(prompt_ids, variant=variant)


def chosen_variant(folder: Path, choice: str = "") -> Variant:
    """The variant named, or that of the checkpoint's template; K2.6 where it brings none."""
    if choice:
        if choice not in VARIANTS:
            known = ", ".join((*VARIANTS, JINJA))
            raise ConfigError(f"there is no chat format {choice!r}", field="template", mend=f"use {known}")
        return VARIANTS[choice]
    if not has_template(folder):
        return K26
    if importlib.util.find_spec("jinja2") is None:
        log.warning("the template of %s is not compared with ours: jinja2 is not installed", folder)
        return K26
    return variant_of(JinjaTemplate.load(folder))


def variant_of(template: JinjaTemplate) -> Variant:
    """The variant that renders every probe as the template does. Raises CheckpointError with the first
    difference from the one that comes nearest, and logs all lines of it."""
    theirs = {probe: _rendered(template, probe) for probe in probes()}
    wrong = {variant: _differences(theirs, variant) for variant in candidates()}
    nearest = min(wrong, key=lambda variant: len(wrong[variant]))
    if not wrong[nearest]:
        return nearest
    first = wrong[nearest][0]
    ours, own = _lines(_ours(first, nearest)), _lines(theirs[first])
    diff = "\n".join(_diff(ours, own))
    log.error("%s differs in `%s` (- ours, + its own):\n%s", template.path, first.name, diff)
    raise CheckpointError(
        f"renders {len(wrong[nearest])} of {len(theirs)} conversations otherwise than {nearest.name}, which "
        f"is nearest; first `{first.name}`: {_first_difference(ours, own)}",
        field=str(template.path),
        mend=MEND,
    )


def _own_template(folder: Path) -> Prompter:
    if not has_template(folder):
        raise ConfigError(f"{folder} has no {TEMPLATE_FILE}", field="template", mend="leave the setting out")
    template = JinjaTemplate.load(folder)
    log.warning(
        "prompts are made by %s, which our own template is not compared with: what it makes of unusual "
        "messages is its own affair",
        template.path,
    )
    return template.prompt_ids


def _rendered(template: JinjaTemplate, probe: Probe) -> str:
    try:
        return template.render(
            probe.messages,
            probe.tools,
            thinking=probe.thinking,
            keep_thinking=probe.keep_thinking,
            generate=probe.generate,
            video_times=probe.video_times,
        )
    except PeriluneError as error:
        return f"({error.message})"


def _ours(probe: Probe, variant: Variant) -> str:
    return render_text(
        probe.messages,
        probe.tools,
        thinking=probe.thinking,
        keep_thinking=probe.keep_thinking,
        generate=probe.generate,
        variant=variant,
        video_times=probe.video_times,
    )


def _differences(theirs: Mapping[Probe, str], variant: Variant) -> list[Probe]:
    """The probes that the variant renders otherwise; pictures say nothing about a format for text."""
    return [
        probe
        for probe, text in theirs.items()
        if (variant.has_media or not probe.has_media) and _ours(probe, variant) != text
    ]


def _diff(ours: Sequence[str], own: Sequence[str]) -> list[str]:
    lines = list(difflib.unified_diff(ours, own, lineterm="", n=1))
    return [line for line in lines[2:] if not line.startswith("@@")][:LONGEST_DIFF]


def _first_difference(ours: Sequence[str], own: Sequence[str]) -> str:
    one, other = next(pair for pair in zip_longest(ours, own, fillvalue="") if pair[0] != pair[1])
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    at = max(same - CLIP // 4, 0)
    return f"ours `{one[at : at + CLIP]}`, its own `{other[at : at + CLIP]}`"


def _lines(prompt: str) -> list[str]:
    """One line for each turn and each line within; blanks and ends of lines made visible."""
    turns = prompt.replace("<|im_end|>", "<|im_end|>\n").split("\n")
    return [repr(line)[1:-1] for line in turns]
