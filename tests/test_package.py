"""What goes to users: the wheel holds the package and nothing else, and pulls in few others."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "perilune"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MOST_PACKAGES = 25
"""Of `pip install perilune`, all that come with it counted. Each is somebody whose stolen token is ours."""
KINDS = {".py", ".toml", ".json", ".md", ".model", ".sha256", ".safetensors", ".typed"}


def closure(names: list[str]) -> set[str]:
    """The packages that these requirements bring, with theirs, on this machine."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if name not in found:
            found.add(name)
            waiting += [Requirement(one) for one in metadata.requires(name) or []]
        for extra in wanted.extras:
            inner = [Requirement(one) for one in metadata.requires(name) or []]
            waiting += [one for one in inner if one.marker and one.marker.evaluate({"extra": extra})]
    return found


def test_few_packages_come_along() -> None:
    brought = closure(PROJECT["project"]["dependencies"])
    assert {"starlette", "aiohttp", "yarl"} <= brought
    assert len(brought) <= MOST_PACKAGES, sorted(brought)


def test_every_one_of_them_is_pinned_for_whoever_wants_that() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line and line[0] != "#"}
    extras = PROJECT["project"]["optional-dependencies"]
    brought = closure([*PROJECT["project"]["dependencies"], *extras["engine"], *extras["media"]])
    assert brought - pinned - {"setuptools"} == set()


def test_the_flaw_in_the_hosts_header_is_ruled_out() -> None:
    """Starlette below 1.0.1 makes request.url from a Host that the client chose (CVE-2026-48710)."""
    wanted = [one for one in map(Requirement, PROJECT["project"]["dependencies"]) if one.name == "starlette"]
    assert len(wanted) == 1 and not wanted[0].specifier.contains("1.0.0")


def tracked() -> set[str]:
    """The package's files as git has them."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "src/perilune"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return {name.removeprefix("src/") for name in done.stdout.split("\0") if name}


def test_the_wheel_is_what_git_has(tmp_path: Path) -> None:
    """Built from the tree as it is, as a release would be; a file more or less than git's is told."""
    pytest.importorskip("setuptools", minversion="77")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    names = tracked()
    tree = tmp_path / "tree"
    for name in (*(f"src/{name}" for name in names), "pyproject.toml", "README.md", "LICENSE"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(ROOT / name)
    code = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tree, capture_output=True, check=True, text=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        packed = {
            name for name in wheel.namelist() if not name.startswith(f"perilune-{version()}.dist-info/")
        }
        about = {name.rpartition("/")[2] for name in set(wheel.namelist()) - packed}
        assert packed == names
        assert about == {"METADATA", "WHEEL", "RECORD", "LICENSE", "entry_points.txt", "top_level.txt"}
        for name in packed:
            assert wheel.read(name) == (ROOT / "src" / name).read_bytes()
        said = wheel.read(f"perilune-{version()}.dist-info/entry_points.txt").decode()
    assert re.findall(r"^\w+ = .*$", said, re.MULTILINE) == ["perilune = perilune.cli.main:main"]


def test_nothing_in_it_runs_by_itself() -> None:
    """Not by being installed (setup.py), by Python's start (.pth), or by being read (pickles, binaries)."""
    kinds = {path.suffix for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= KINDS
    assert not [name for name in ("setup.py", "setup.cfg", "MANIFEST.in") if (ROOT / name).exists()]
    assert set(PROJECT["project"]["scripts"]) == {"perilune"}
    assert PROJECT["build-system"]["build-backend"] == "setuptools.build_meta"


def version() -> str:
    found: str = PROJECT["project"]["version"]
    return found
