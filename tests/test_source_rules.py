"""What no file of the package may do, whatever it is for: make SQL out of text, unpickle, evaluate, start a
shell, turn off TLS's checks, fetch by a client of its own."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "perilune"

SQL = re.compile(
    r"\b(SELECT\b.*\bFROM|INSERT\b.*\bINTO|UPDATE\b.*\bSET|DELETE FROM|(CREATE|ALTER|DROP)\b.*\b(TABLE|INDEX)"
    r"|PRAGMA \w|(FROM|WHERE|VALUES|ORDER BY) ?[\w(?])",
    re.DOTALL,
)
RUNS_SQL = {"execute", "executemany", "executescript"}
MAKES_TEXT = {"format", "format_map", "join", "replace"}
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")

EXCEPTIONS = {
    ("accounts/books.py", "owner"): "from the tuple of two names in the line above",
    ("accounts/books.py", "column"): "from the same tuple",
    ("accounts/keyring.py", "statement"): "handed on within the file; its texts are seen where they stand",
    ("agent/search/index_tables.py", "statement"): "the file's own SCHEMA, cut at its semicolons",
    ("store/sqlite.py", "0 if later else CHECKPOINT_PAGES"): "two numbers",
    ("store/sqlite.py", "len(schema)"): "a number",
    ("store/sqlite.py", "how"): "one of two words",
    ("store/reader.py", "sql"): "handed on: its texts are seen where they stand",
    ("store/sqlite.py", "statement"): "of a schema, which is constant",
    ("swarm/journal.py", "marks"): "question marks, as many as there are parameters",
}
"""(file, expression within SQL) -> why it cannot hold anything from outside."""

FORBIDDEN_IMPORTS = {
    "pickle": "unpickling runs what a file says",
    "_pickle": "unpickling runs what a file says",
    "cloudpickle": "unpickling runs what a file says",
    "dill": "unpickling runs what a file says",
    "joblib": "it unpickles",
    "shelve": "it unpickles",
    "marshal": "it loads code",
    "multiprocessing": "it unpickles what comes through its pipes",
    "yaml": "its loaders make objects",
    "xml.etree": "entities: expat is set up by hand where it is needed",
    "xml.dom": "entities",
    "xml.sax": "entities",
    "httpx": "one way out: aiohttp or plain_http, without proxies and redirects",
    "requests": "one way out",
    "urllib.request": "one way out",
}
FORBIDDEN_CALLS = {
    "eval": "evaluates text",
    "exec": "evaluates text",
    "compile": "evaluates text",
    "__import__": "imports by a name made up at run time",
    "os.system": "starts a shell",
    "os.popen": "starts a shell",
    "torch.load": "unpickles",
    "tempfile.mktemp": "another may take the name first",
    "asyncio.create_subprocess_shell": "starts a shell",
    "subprocess.getoutput": "starts a shell",
    "ssl._create_unverified_context": "turns off TLS's checks",
}
FORBIDDEN_ARGUMENTS = {
    ("shell", True): "starts a shell",
    ("verify", False): "turns off TLS's checks",
    ("verify_ssl", False): "turns off TLS's checks",
    ("ssl", False): "turns off TLS's checks",
    ("trust_env", True): "takes a proxy from the environment",
    ("allow_redirects", True): "an endpoint would choose where our key goes",
    ("allow_pickle", True): "unpickles",
    ("weights_only", False): "unpickles",
}
FETCH = re.compile(r"session\.(get|post|put|delete|head|request)$")
FORBIDDEN_NAMES = {"CERT_NONE": "turns off TLS's checks"}


def sql_breaches(text: str, file: str) -> Iterator[str]:
    for node in ast.walk(parsed(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.JoinedStr) and SQL.search(_shape(node)):
            for part in node.values:
                if isinstance(part, ast.FormattedValue) and not _constant(part.value, file):
                    yield f"{file}:{line}: {ast.unparse(part.value)} is put into SQL"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            if SQL.search(_shape(node.left)) or SQL.search(_shape(node.right)):
                yield f"{file}:{line}: SQL is put together by + or %"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in MAKES_TEXT and SQL.search(_shape(node.func.value)):
                yield f"{file}:{line}: SQL is made by {node.func.attr}"
            if node.func.attr in RUNS_SQL and node.args and not _text(node.args[0], file):
                yield f"{file}:{line}: {ast.unparse(node.args[0])} is run as SQL"


def _shape(node: ast.AST) -> str:
    """The text of a string in the source, with `?` for what is put in; empty for what is no string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_shape(part) or "?" for part in node.values)
    return ""


def _constant(node: ast.expr, file: str) -> bool:
    named = isinstance(node, ast.Name) and bool(CONSTANT.fullmatch(node.id))
    return named or (file, ast.unparse(node)) in EXCEPTIONS


def _text(node: ast.expr, file: str) -> bool:
    return isinstance(node, ast.Constant | ast.JoinedStr) or _constant(node, file)


def other_breaches(text: str, file: str) -> Iterator[str]:
    for node in ast.walk(parsed(text)):
        for what, why in _forbidden(node):
            yield f"{file}:{getattr(node, 'lineno', 0)}: {what}: {why}"


def _forbidden(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        base = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for alias in node.names:
            module = ".".join([*base, alias.name])
            yield from (
                (module, why)
                for name, why in FORBIDDEN_IMPORTS.items()
                if f"{module}.".startswith(f"{name}.")
            )
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS:
            yield called, FORBIDDEN_CALLS[called]
        named = {given.arg for given in node.keywords}
        if FETCH.search(called) and named and "allow_redirects" not in named:
            yield (
                called,
                "follows redirects unless told otherwise: an endpoint would choose where our key goes",
            )
        for given in node.keywords:
            if isinstance(given.value, ast.Constant):
                pair = (given.arg or "", given.value.value)
                if isinstance(pair[1], bool) and pair in FORBIDDEN_ARGUMENTS:
                    yield f"{pair[0]}={pair[1]}", FORBIDDEN_ARGUMENTS[pair]
    elif isinstance(node, ast.Attribute | ast.Name):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if name in FORBIDDEN_NAMES:
            yield name, FORBIDDEN_NAMES[name]


@functools.cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


@functools.cache
def sources() -> list[tuple[str, str]]:
    found = sorted(PACKAGE.rglob("*.py"))
    return [(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")) for path in found]


def test_no_sql_is_made_of_text() -> None:
    assert [found for file, text in sources() for found in sql_breaches(text, file)] == []


def test_every_exception_is_needed() -> None:
    texts = dict(sources())
    unneeded = []
    for file, expression in EXCEPTIONS:
        without = {key: why for key, why in EXCEPTIONS.items() if key != (file, expression)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "EXCEPTIONS", without)
            if not list(sql_breaches(texts[file], file)):
                unneeded.append((file, expression))
    assert unneeded == []


def test_constants_in_sql_are_constant() -> None:
    """A name in capitals within SQL stands for a text, or is made of such, at the head of its file."""
    files = {file: parsed(text) for file, text in sources()}
    used = {
        (file, part.value.id)
        for file, tree in files.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) and SQL.search(_shape(node))
        for part in node.values
        if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name)
        if CONSTANT.fullmatch(part.value.id)
    }
    assert {"UP_TO", "ENTRIES"} <= {name for _, name in used}
    for file, name in used:
        values = list(_values(files, file, name))
        assert values and all(isinstance(one, ast.Constant | ast.JoinedStr) for one in values), (file, name)


def _values(files: dict[str, ast.Module], file: str, name: str) -> Iterator[ast.expr]:
    """What a name at the head of a file is set to, there or where it is imported from."""
    for node in files[file].body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == [name]:
            yield node.value
        elif isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            assert node.module is not None
            yield from _values(files, f"{node.module.removeprefix('perilune.').replace('.', '/')}.py", name)


def test_likeness_is_never_asked_of_a_database() -> None:
    """No LIKE or GLOB, so no wildcard of a client's to escape."""
    asked = [
        f"{file}:{node.lineno}"
        for file, text in sources()
        for node in ast.walk(parsed(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"\b(LIKE|GLOB|REGEXP)\b +(\?|'|:)", node.value)
    ]
    assert asked == []


def test_nothing_is_unpickled_evaluated_or_left_unchecked() -> None:
    assert [found for file, text in sources() for found in other_breaches(text, file)] == []


def test_there_is_one_way_to_models() -> None:
    """What is reserved, charged and allowed is decided in `backends/metered.py`: no door, agent or swarm
    calls a backend past it, so no route can forget it."""
    callers = {
        file
        for file, text in sources()
        for node in ast.walk(parsed(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".stream", ".serving"))
    }
    outside = {file for file in callers if not file.startswith("backends/")}
    assert outside == {"cli/chat.py"}  # which is given a metered one, or another server's
    assert "backends/metered.py" in callers


@pytest.mark.parametrize(
    "code",
    [
        'db.execute(f"SELECT 1 FROM key WHERE id = {name}")',
        'store.read(f"{ROWS} WHERE id = {name!r}")',
        'store.read("SELECT 1 FROM key WHERE id = %s" % name)',
        'store.read("SELECT 1 FROM key WHERE id = \'" + name + "\'")',
        'store.read("SELECT 1 FROM key WHERE id = {}".format(name))',
        'statement = f"DELETE FROM key {where}"',
        "db.execute(statement)",
        "db.executescript(given[0])",
        'sql = f"""UPDATE key SET a = {a}"""',
    ],
)
def test_the_rule_on_sql_catches(code: str) -> None:
    assert list(sql_breaches(code, "api/any.py"))


@pytest.mark.parametrize(
    "code",
    [
        'db.execute("SELECT 1 FROM key WHERE id = ?", (name,))',
        'db.execute(f"SELECT {COLUMNS} FROM key", ())',
        "db.execute(_INSERT, row)",
        'raise InputError(f"{name} is not in the list", mend=f"choose from {names}")',
    ],
)
def test_the_rule_on_sql_allows(code: str) -> None:
    assert list(sql_breaches(code, "api/any.py")) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from multiprocessing import Pool",
        "from xml.etree import ElementTree",
        "def f():\n    from urllib import request",
        "eval(text)",
        "torch.load(path)",
        "subprocess.run(line, shell=True)",
        "session.get(url, ssl=False)",
        "session.get(url, allow_redirects=True)",
        "await self._session.post(url, data=body)",
        "context.verify_mode = ssl.CERT_NONE",
    ],
)
def test_the_other_rules_catch(code: str) -> None:
    assert list(other_breaches(code, "any.py"))


def test_the_other_rules_allow() -> None:
    code = (
        "model.eval()\nre.compile(x)\nfrom xml.parsers import expat\nsession.get(url, allow_redirects=False)"
    )
    assert list(other_breaches(code, "any.py")) == []
