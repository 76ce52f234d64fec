"""The import law of docs/structure.md: which room may import which, and what from outside each may use."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "perilune"

ROOTS = {"errors", "settings", "homefile", "store", "__init__", "__main__"}
LAW: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "settings": {"homefile", "errors"},
    "homefile": {"store", "errors"},
    "store": {"errors"},
    "chat": {"errors"},
    "model": {"errors"},
    "engine": {"model", "errors"},
    "accounts": {"store", "settings", "errors"},
    "backends": {"chat", "accounts", "settings", "errors"},
    "agent": {"chat", "backends", "errors"},
    "swarm": {"agent", "backends", "chat", "accounts", "store", "settings", "errors"},
    "api": {"swarm", "agent", "backends", "accounts", "chat", "store", "settings", "errors"},
    "evals": {"agent", "swarm", "backends", "chat", "settings", "errors"},
    "deploy": {"model", "settings", "errors"},
    "cli": {"errors"},
}
"""Room -> rooms it may import, at module level and inside functions alike."""

MEDIA = {"numpy", "PIL", "av"}
MEDIA_FILES = ("chat/media.py", "chat/pictures.py", "chat/videos.py")
"""Files that may use what `perilune[media]` installs."""

DOCUMENTS = {"pypdf"}
DOCUMENT_FILES = ("chat/documents/pdf.py",)
"""Files that may use a parser of documents: they run in a process of their own."""

EXCEPTIONS: dict[str, set[str]] = {
    "backends/embedded.py": {"engine", "model"},
    "backends/seeing.py": {"engine", "model"},
}
"""File -> rooms it may import besides."""

MODULES_ONLY = {("deploy", "model"): {"perilune.model.config"}}
"""Where a room may see only some files of another."""

TORCH = {"torch", "safetensors", "numpy", "llguidance"}
OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"msgspec"},
    "homefile": set(),
    "store": {"msgspec"},
    "chat": {"msgspec", "tiktoken", "regex", "jinja2"},
    "model": {"msgspec", "torch", "safetensors", "numpy"},
    "engine": {"msgspec", *TORCH},
    "accounts": {"msgspec"},
    "backends": {"msgspec", "aiohttp", "httptools"},
    "agent": {"msgspec", "regex", "aiohttp"},
    "swarm": {"msgspec", "regex"},
    "api": {"msgspec", "starlette", "uvicorn", "uvloop", "httptools"},
    "evals": {"msgspec"},
    "deploy": {"msgspec"},
    "cli": {"msgspec"},
}
"""Room -> packages it may use besides the standard library."""

TORCH_FREE = (
    "engine/__init__.py",
    "engine/client.py",
    "engine/protocol.py",
    "model/__init__.py",
    "model/config.py",
    "model/content_hash.py",
    "model/config_fields.py",
    "model/headers.py",
    "model/inspection.py",
    "model/inspection_json.py",
    "model/json_files.py",
    "model/layout.py",
    "model/names.py",
    "model/vision_config.py",
)


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str
    at_top: bool
    """Runs when the file is imported, so not inside a function."""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def room_of(name: str) -> str:
    """The room of a file (`chat/wire.py`, `errors.py`) or of a module (`perilune.chat.wire`)."""
    parts = name.removesuffix(".py").replace("/", ".").removeprefix("perilune.").split(".")
    return parts[0]


def imports_of(path: Path, root: Path = PACKAGE) -> Iterator[Import]:
    name = path.relative_to(root).as_posix()
    yield from _walk(ast.parse(path.read_text(encoding="utf-8")), name, at_top=True)


def _walk(node: ast.AST, file: str, *, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(file, child.lineno, alias.name, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}:{child.lineno}: write absolute imports"
            for alias in child.names:
                yield Import(file, child.lineno, f"{child.module}.{alias.name}", at_top)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from _walk(child, file, at_top=at_top and not inside and not for_types)


def breaches(found: Import) -> str | None:
    """What is wrong with one import; None when the law allows it."""
    room, (top, *_) = room_of(found.file), found.module.split(".")
    if top != "perilune":
        if top in sys.stdlib_module_names or room in ROOTS - OUTSIDE.keys():
            return None
        allowed = OUTSIDE[room] | (TORCH if found.file == "backends/embedded.py" else set())
        allowed |= MEDIA if found.file in MEDIA_FILES else set()
        allowed |= DOCUMENTS if found.file in DOCUMENT_FILES else set()
        return None if top in allowed else f"{found.where}: not a package that {room} may use"
    target = room_of(found.module)
    if target in {room, "perilune", "__version__"}:  # the package itself holds only its version
        return None
    if room == "cli" and not found.at_top:
        return None
    if target not in LAW[room] | EXCEPTIONS.get(found.file, set()):
        return f"{found.where}: {room} may not import {target}"
    only = MODULES_ONLY.get((room, target))
    if only and not any(found.module == one or found.module.startswith(f"{one}.") for one in only):
        return f"{found.where}: {room} may see only {', '.join(only)}"
    return None


ALL = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]


def test_every_import_obeys_the_law() -> None:
    assert [text for found in ALL if (text := breaches(found))] == []


def test_every_room_is_in_the_law() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")}
    rooms |= {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= LAW.keys()


def test_torch_free_files_reach_no_torch() -> None:
    """Followed through every import of theirs, function-level ones included."""
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    pending = [module_of(PACKAGE / name) for name in TORCH_FREE if (PACKAGE / name).exists()]
    assert pending
    seen: set[str] = set()
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        for found in imports_of(files[module]):
            assert found.module.split(".")[0] not in TORCH, found.where
            pending += [one for one in candidates(found.module) if one in files]


def test_no_file_imports_itself_in_a_circle() -> None:
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    graph = {
        module: sorted(
            {one for found in imports_of(path) if found.at_top if (one := first(found.module, files))}
        )
        for module, path in files.items()
    }
    assert circle(graph) is None


def module_of(path: Path) -> str:
    parts = ("perilune", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def candidates(module: str) -> tuple[str, str]:
    """`from a.b import c` is written a.b.c here; c may be a file or a name in a.b."""
    return module, module.rpartition(".")[0]


def first(module: str, files: dict[str, Path]) -> str | None:
    return next((one for one in candidates(module) if one in files), None)


def circle(graph: dict[str, list[str]]) -> list[str] | None:
    """A path that ends where it began, if there is one."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for target in graph[module]:
            if target != module and (found := visit(target, [*path, module])):
                return found
        done.add(module)
        return None

    return next((found for module in graph if (found := visit(module, []))), None)


# ---- the law's own test: what it must catch


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("chat/wire.py", "from perilune.settings import Settings"),
        ("swarm/session.py", "def f():\n    from perilune.engine.client import EngineClient"),
        ("backends/upstream.py", "import perilune.engine.client"),
        ("backends/upstream.py", "import torch"),
        ("api/app.py", "import aiohttp"),
        ("api/files.py", "import pypdf"),
        ("deploy/plan.py", "from perilune.model.text import TextDecoder"),
        ("cli/main.py", "from perilune.api.serve import serve"),
        ("errors.py", "import msgspec"),
    ],
)
def test_the_law_catches(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    assert [text for found in imports_of(path, tmp_path) if (text := breaches(found))]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("backends/embedded.py", "from perilune.engine.client import EngineClient"),
        ("cli/main.py", "def f():\n    from perilune.api.serve import serve"),
        ("deploy/plan.py", "from perilune.model.config import load_config"),
        ("swarm/session.py", "import asyncio\nfrom perilune.accounts.prices import PriceBook"),
    ],
)
def test_the_law_allows(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    assert [text for found in imports_of(path, tmp_path) if (text := breaches(found))] == []


def test_a_circle_is_found() -> None:
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == ["a", "b", "c", "a"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) is None
