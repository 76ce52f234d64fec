"""Write the example project: `python examples/make_project.py DEST --files 60`.

The 60 files are `examples/orrery` as it stands. Above that, a survey of invented minor planets is added, one
module each, so that a swarm of 300 has 300 files to work on. The same call writes the same bytes every time.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "orrery"
GOAL = "Rename StateVector to OrbitState in orrery."
"""The goal that fits the project: every file of `orrery/` uses the name."""
LEAST, MOST = 60, 1300
_PER_FOLDER = 30

_HEAD = '''"""Minor planet {name}, {story}."""

import math

from orrery.core.constants import AU, SUN
from orrery.core.elements import Elements
from orrery.core.motion import StateVector

ORBIT = Elements(
    axis={axis} * AU,
    eccentricity={eccentricity},
    inclination=math.radians({inclination}),
    node=math.radians({node}),
    periapsis=math.radians({periapsis}),
    anomaly=math.radians({anomaly}),
)


def at(time: float) -> StateVector:
    return ORBIT.at(time, SUN)
'''

# What is told of a minor planet, and the function that goes with it.
_KINDS = (
    (
        "a slow tumbler of the outer belt",
        '''

def is_outside(state: StateVector) -> bool:
    """Beyond the middle of its orbit."""
    return state.radius > ORBIT.axis
''',
    ),
    (
        "one half of a loose pair",
        '''

def apart(other: StateVector) -> float:
    """How far its companion has strayed, in km."""
    return at(other.time).seen_from(other).radius
''',
    ),
    (
        "seen on four nights only",
        '''
NIGHTS = (0.0, 86_400.0, 259_200.0, 604_800.0)


def track() -> list[StateVector]:
    """Where it was on the nights of its discovery."""
    return [at(night) for night in NIGHTS]
''',
    ),
    (
        "a dark stone on a steep orbit",
        '''

def height(state: StateVector) -> float:
    """Above the plane of the planets, in km."""
    return state.position[2]


def below(state: StateVector) -> bool:
    return height(state) < 0.0
''',
    ),
    (
        "fast where it is near",
        '''

def hurry(state: StateVector) -> float:
    """Its speed against that of a circle at the same distance."""
    return state.speed / math.sqrt(SUN / state.radius)
''',
    ),
    (
        "a target for small probes",
        '''

def meeting_speed(probe: StateVector) -> float:
    return probe.seen_from(at(probe.time)).speed


def coast(probe: StateVector, hours: float) -> StateVector:
    """A probe nearby, some hours later."""
    return probe.drift(3_600.0 * hours)
''',
    ),
)
_FIRST = ("al", "ber", "cor", "dra", "el", "far", "gal", "hel", "il", "jun", "kor", "lu", "mir", "nor")
_MIDDLE = ("a", "e", "i", "o", "u", "ami", "eno", "ila")
_LAST = ("da", "lis", "mara", "nia", "pe", "ra", "sta", "thea", "tis", "va", "xa", "zor")

_TEST = '''"""Every minor planet of the survey moves as a StateVector on its orbit."""

import importlib
import pkgutil
import unittest

from orrery import survey
from orrery.core.motion import StateVector


class SurveyTest(unittest.TestCase):
    def test_all_stay_on_their_orbits(self) -> None:
        found = [entry.name for entry in pkgutil.walk_packages(survey.__path__, "orrery.survey.")]
        modules = [importlib.import_module(name) for name in found]
        bodies = [module for module in modules if hasattr(module, "at")]
        for body in bodies:
            state = body.at(1.0e8)
            self.assertIsInstance(state, StateVector)
            reach = body.ORBIT.axis * (1.0 + body.ORBIT.eccentricity)
            self.assertLessEqual(state.radius, reach + 1.0)
'''


def project_files(files: int = LEAST) -> dict[str, bytes]:
    """All files by path, of which exactly `files` are .py files below `orrery/`."""
    if not LEAST <= files <= MOST:
        raise ValueError(f"--files must be from {LEAST} to {MOST}, not {files}")
    written = {
        path.relative_to(SOURCE).as_posix(): path.read_bytes()
        for path in sorted(SOURCE.rglob("*"))
        if path.suffix in (".py", ".md") and "__pycache__" not in path.parts
    }
    written[".gitignore"] = b"__pycache__/\n"
    return {**written, **{path: text.encode() for path, text in _survey(files - LEAST).items()}}


def _survey(count: int) -> dict[str, str]:
    """`count` files: the survey's package, its test and folders first, then one body each."""
    made: dict[str, str] = {}
    fixed = {
        "orrery/survey/__init__.py": '"""Minor planets; each module answers with a StateVector."""\n',
        "orrery/tests/test_survey.py": _TEST,
    }
    number = 0
    while len(made) < count:
        if len(made) < len(fixed):
            path = list(fixed)[len(made)]
            made[path] = fixed[path]
            continue
        folder, inside = divmod(number, _PER_FOLDER)
        field = f"orrery/survey/f{folder:02}"
        if inside == 0 and f"{field}/__init__.py" not in made and count - len(made) > 1:
            made[f"{field}/__init__.py"] = f'"""Field {folder}: each body a StateVector in time."""\n'
            continue
        name = _name(number)
        made[f"{field}/{name}.py"] = _body(name, number)
        number += 1
    return made


def _name(number: int) -> str:
    number, last = divmod(number, len(_LAST))
    number, first = divmod(number, len(_FIRST))
    # The steps of 5 and 3 shuffle the order; they share no factor with the lengths.
    return _FIRST[first * 5 % len(_FIRST)] + _MIDDLE[number * 3 % len(_MIDDLE)] + _LAST[last * 5 % len(_LAST)]


def _body(name: str, number: int) -> str:
    digest = hashlib.sha256(name.encode()).digest()
    part = [byte / 256.0 for byte in digest]
    story, more = _KINDS[number % len(_KINDS)]
    head = _HEAD.format(
        name=name.capitalize(),
        story=story,
        axis=f"{2.1 + 1.2 * part[0]:.3f}",
        eccentricity=f"{0.3 * part[1]:.4f}",
        inclination=f"{25.0 * part[2]:.2f}",
        node=f"{360.0 * part[3]:.2f}",
        periapsis=f"{360.0 * part[4]:.2f}",
        anomaly=f"{360.0 * part[5]:.2f}",
    )
    return head + more


def write_project(dest: Path, files: int = LEAST) -> int:
    """Write the project into a folder that is empty or not there. Returns the number of files written."""
    contents = project_files(files)
    if dest.exists() and any(dest.iterdir()):
        raise FileExistsError(f"{dest} is not empty")
    for path, content in contents.items():
        target = dest / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return len(contents)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the example project.")
    parser.add_argument("dest", type=Path, help="a folder that is empty or not there")
    parser.add_argument("--files", type=int, default=LEAST, help="Python files in it (60)")
    options = parser.parse_args()
    try:
        write_project(options.dest, options.files)
    except (ValueError, OSError) as error:
        print(f"make_project: {error}", file=sys.stderr)
        return 2
    print(f"{options.dest}: {options.files} files. Goal: {GOAL}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
