"""The light install: everything but the engine's rooms imports without the engine's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "perilune"
NEEDS_TORCH = ("model/", "engine/", "backends/embedded.py", "chat/pictures.py", "chat/videos.py")
LIGHT_ALL_THE_SAME = {
    "engine/__init__.py",
    "engine/client.py",
    "engine/protocol.py",
    "model/__init__.py",
    "model/config.py",
    "model/config_fields.py",
    "model/content_hash.py",
    "model/headers.py",
    "model/inspection.py",
    "model/inspection_json.py",
    "model/json_files.py",
    "model/layout.py",
    "model/names.py",
    "model/vision_config.py",
}

PROGRAM = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors", "llguidance", "numpy", "PIL", "av"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocked())
for module in sys.argv[1:]:
    importlib.import_module(module)
print(*sorted(name for name in sys.modules if name.startswith("perilune.")))
"""


def run(*modules: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules],
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def light_modules() -> list[str]:
    files = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]
    light = [name for name in files if name in LIGHT_ALL_THE_SAME or not name.startswith(NEEDS_TORCH)]
    return [
        "perilune." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in light
    ]


def test_everything_light_imports_without_torch() -> None:
    modules = light_modules()
    assert len(modules) > 20
    done = run(*modules)
    assert done.returncode == 0, done.stderr


def test_the_block_works() -> None:
    done = run("perilune.model.text")
    assert done.returncode != 0
    assert "blocked: torch" in done.stderr


def test_the_command_line_loads_no_room_before_a_command_runs() -> None:
    done = run("perilune.cli.main")
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[1] for name in done.stdout.split()}
    assert loaded <= {"cli", "errors"}
