"""What the grammar lets a model write, judged by llguidance itself token by token."""

import json
from pathlib import Path

import llguidance
import msgspec
import pytest

from perilune.agent.profiles import bundled_profile
from perilune.backends.grammar import callable_tools, grammar_of
from perilune.chat.messages import Message, Request, Tool
from perilune.chat.template import Piece, Special, encode
from perilune.chat.tokenizer import (
    CALL_ARGUMENTS,
    CALL_BEGIN,
    CALL_END,
    SECTION_BEGIN,
    SECTION_END,
    Tokenizer,
)
from perilune.errors import InputError
from perilune.model.tiny import write_byte_tokenizer

SEARCH = Tool(
    name="search",
    parameters={
        "type": "object",
        "properties": {"path": {"type": "string"}, "line": {"type": "integer"}},
        "required": ["path"],
        "additionalProperties": False,
    },
)
NOTHING = Tool(name="status", parameters={"type": "object", "properties": {}, "additionalProperties": False})
ASKED = (Message(role="user", content="go"),)
REQUEST = Request(model="m", messages=ASKED, tools=(SEARCH, NOTHING), thinking=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return Tokenizer.load(folder)


class Judge:
    """Says whether an answer obeys the grammar of a request."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokenizer.token_bytes()
        self.special_token_ids = list(tokenizer.specials.values())
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = None
        self.vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self))

    def __call__(self, text: bytes) -> list[int]:
        return self.tokenizer.encode(text.decode())

    def matcher(self, request: Request, first_call: int = 0, strict: bool = True) -> llguidance.LLMatcher:
        grammar = grammar_of(request, self.tokenizer, first_call, strict=strict)
        assert grammar is not None
        matcher = llguidance.LLMatcher(self.vocabulary, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def allows(self, request: Request, *pieces: Piece, first_call: int = 0, strict: bool = True) -> bool:
        """Whether these pieces are a whole answer."""
        matcher = self.matcher(request, first_call, strict)
        ids = encode(pieces, self.tokenizer)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.fixture(scope="module")
def judge(tokenizer: Tokenizer) -> Judge:
    return Judge(tokenizer)


def call(header: str, arguments: str) -> tuple[Piece, ...]:
    return Special(CALL_BEGIN), header, Special(CALL_ARGUMENTS), arguments, Special(CALL_END)


def section(*calls: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return Special(SECTION_BEGIN), *(piece for one in calls for piece in one), Special(SECTION_END)


def with_fields(**fields: object) -> Request:
    return msgspec.structs.replace(REQUEST, **fields)


def test_text_calls_or_both(judge: Judge) -> None:
    calls = section(call("functions.search:0", '{"path": "a"}'))
    assert judge.allows(REQUEST, "Hello 🌙\n")
    assert judge.allows(REQUEST, *calls)
    assert judge.allows(REQUEST, "I look.", *calls)
    assert not judge.allows(REQUEST, *calls, "more")
    assert not judge.allows(REQUEST, *calls, *calls)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"path": "a"}',
        '{"path":"a","line":3}',
        '{\n  "path": "é\\n\\"",\n  "line": -3\n}',
    ],
)
def test_arguments_that_fit_the_schema(judge: Judge, arguments: str) -> None:
    assert judge.allows(REQUEST, *section(call("functions.search:0", arguments)))


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "{}",
        '{"line": 3, "path": "a"}',
        '{"path": 3}',
        '{"path": "a", "other": 1}',
        '{"path": "a"',
        '{"path": "a"} ',
        '{"path":' + " " * 100 + '"a"}',
    ],
)
def test_arguments_that_do_not(judge: Judge, arguments: str) -> None:
    assert not judge.allows(REQUEST, *section(call("functions.search:0", arguments)))


def test_headers_name_declared_tools_and_count_on(judge: Judge) -> None:
    for header in (
        "functions.other:0",
        "search:0",
        "functions.search",
        "functions.search:1",
        "functions.status:07",
    ):
        assert not judge.allows(REQUEST, *section(call(header, '{"path": "a"}')))
    two = (call("functions.status:7", "{}"), call("functions.search:8", '{"path": "a"}'))
    assert judge.allows(REQUEST, *section(*two), first_call=7)
    assert not judge.allows(REQUEST, *section(*two[::-1]), first_call=7)
    assert not judge.allows(REQUEST, *section(*two))
    assert not judge.allows(REQUEST, *section())


@pytest.mark.parametrize("limit", [1, 3, 16, 20])
def test_at_most_the_wanted_number_of_calls(judge: Judge, limit: int) -> None:
    request = with_fields(max_parallel_calls=limit)
    calls = [call(f"functions.status:{index}", "{}") for index in range(limit + 1)]
    assert judge.allows(request, *section(*calls[:limit]))
    assert not judge.allows(request, *section(*calls))


def test_many_calls_without_a_limit(judge: Judge) -> None:
    calls = [call(f"functions.status:{index}", "{}") for index in range(300)]
    assert judge.allows(REQUEST, *section(*calls))


def test_bound_arguments_hold_only_their_choices(judge: Judge) -> None:
    odd = 'we"ird\\é'
    request = with_fields(argument_choices={"search": {"path": ("src/a.py", odd, "src/a.py")}})
    assert judge.allows(request, *section(call("functions.search:0", '{"path": "src/a.py"}')))
    assert judge.allows(
        request, *section(call("functions.search:0", json.dumps({"path": odd}, ensure_ascii=False)))
    )
    assert not judge.allows(request, *section(call("functions.search:0", '{"path": "src/b.py"}')))
    assert not judge.allows(request, *section(call("functions.search:0", '{"path": "src/a.p"}')))
    assert judge.allows(request, *section(call("functions.status:0", "{}")))


def test_a_tool_without_choices_cannot_be_called(judge: Judge) -> None:
    request = with_fields(argument_choices={"search": {"path": ()}})
    assert callable_tools(request) == (NOTHING,)
    assert not judge.allows(request, *section(call("functions.search:0", '{"path": "a"}')))
    with pytest.raises(InputError, match="no tool can be called"):
        callable_tools(msgspec.structs.replace(request, tool_choice="tool:search"))


def test_tool_choice(judge: Judge, tokenizer: Tokenizer) -> None:
    search, status = call("functions.search:0", '{"path": "a"}'), call("functions.status:0", "{}")
    required = with_fields(tool_choice="required")
    assert judge.allows(required, *section(search))
    assert not judge.allows(required, "Hello")
    assert not judge.allows(required, "Hello", *section(search))
    named = with_fields(tool_choice="tool:status")
    assert judge.allows(named, *section(status))
    assert not judge.allows(named, *section(search))
    assert grammar_of(with_fields(tool_choice="none"), tokenizer, 0) is None
    assert grammar_of(with_fields(tools=()), tokenizer, 0) is None
    with pytest.raises(InputError, match="no declared tool is called other"):
        grammar_of(with_fields(tool_choice="tool:other"), tokenizer, 0)
    with pytest.raises(InputError, match="no tool can be called"):
        grammar_of(with_fields(tools=(), tool_choice="required"), tokenizer, 0)


def test_json_answers(judge: Judge) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    request = with_fields(tools=(), json_schema=schema)
    assert judge.allows(request, '{"x": 1}')
    assert not judge.allows(request, '{"x": "1"}')
    assert not judge.allows(request, "Hello")
    anything = with_fields(tools=(), json_schema={})
    assert judge.allows(anything, '{"a": [1, {"b": null}]}')
    assert not judge.allows(anything, "[1]")
    both = with_fields(json_schema=schema)
    assert judge.allows(both, '{"x": 1}')
    assert judge.allows(both, *section(call("functions.status:0", "{}")))
    assert judge.allows(with_fields(tools=(), json_schema={"enum": ["a", 1]}), "1")


def test_loose_tools_and_the_loose_grammar_take_any_object(judge: Judge) -> None:
    loose = msgspec.structs.replace(SEARCH, strict=False)
    calls = section(call("functions.search:0", '{"what": [1]}'))
    assert judge.allows(with_fields(tools=(loose,)), *calls)
    assert judge.allows(REQUEST, *calls, strict=False)
    assert not judge.allows(REQUEST, *section(call("functions.search:0", "[1]")), strict=False)


def test_schemas_with_references_and_unknown_keywords(judge: Judge) -> None:
    tree = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "left": {"$ref": "#"},
            "n": {"$ref": "#/$defs/N"},
            "u": {"type": "string", "format": "no-such"},
            "l": {"type": "array", "uniqueItems": True},
        },
        "$defs": {"N": {"type": "integer", "minimum": 1, "maximum": 7}},
        "additionalProperties": False,
    }
    request = with_fields(tools=(Tool(name="t", parameters=tree),))
    assert judge.allows(
        request, *section(call("functions.t:0", '{"left": {"n": 7}, "n": 1, "u": "x", "l": [1]}'))
    )
    assert not judge.allows(request, *section(call("functions.t:0", '{"left": {"n": 8}}')))


@pytest.mark.parametrize("name", ['we"ird', "dash-ed.name", "名前", "back\\slash"])
def test_names_cannot_break_out_of_the_grammar(judge: Judge, name: str) -> None:
    request = with_fields(tools=(Tool(name=name),))
    assert judge.allows(request, *section(call(f"functions.{name}:0", "{}")))
    assert not judge.allows(request, *section(call("functions.x:0", "{}")))


def test_what_the_template_writes_is_allowed_as_it_is_cut(judge: Judge, tokenizer: Tokenizer) -> None:
    """A model trained on rendered conversations never has to leave its tokens."""
    for profile_name, name, arguments in (
        ("rename", "search", {"path": "a/b.py", "name": "old"}),
        ("rename", "replace_word", {"path": "a/b.py", "line": 3, "old_name": "old", "new_name": "new"}),
        ("orchestrate-rename", "assign_task", {"agent": "one", "prompt": "a/b.py"}),
    ):
        profile = bundled_profile(profile_name)
        choices = {name: {key: (str(arguments[key]),) for key in profile.bind[name]}}
        request = with_fields(
            tools=profile.tools, argument_choices=choices, max_parallel_calls=profile.max_parallel_calls
        )
        for separators in ((", ", ": "), (",", ":")):
            text = json.dumps(arguments, separators=separators)
            assert judge.allows(request, *section(call(f"functions.{name}:12", text)), first_call=12)


def test_every_cut_of_forced_text_is_open(tokenizer: Tokenizer) -> None:
    """The model was trained on our template's cut, which the grammar cannot know."""
    merges = {bytes([byte]): byte for byte in range(256)} | {b"fu": 256, b"nc": 257, b"func": 258}
    merged = Tokenizer(merges, {name: token + 3 for name, token in tokenizer.specials.items()})
    matcher = Judge(merged).matcher(with_fields(tool_choice="required"))
    assert matcher.consume_tokens(encode((Special(SECTION_BEGIN), Special(CALL_BEGIN)), merged))
    assert matcher.compute_ff_tokens() == []
    allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
    assert allowed == [ord("f"), 256, 258]
