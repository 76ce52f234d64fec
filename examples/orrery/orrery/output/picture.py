"""An SVG of an orbit, seen from above."""

from collections.abc import Iterable

from orrery.core.motion import StateVector

SIZE = 400


def picture(path: Iterable[StateVector]) -> str:
    points = [(state.position[0], -state.position[1]) for state in path]
    reach = max((max(abs(x), abs(y)) for x, y in points), default=1.0) or 1.0
    half = SIZE / 2.0
    marks = " ".join(
        f"{half + 0.95 * half * x / reach:.1f},{half + 0.95 * half * y / reach:.1f}" for x, y in points
    )
    line = f'<polyline points="{marks}" fill="none" stroke="black"/>'
    centre = f'<circle cx="{half:.0f}" cy="{half:.0f}" r="4"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}">{centre}{line}</svg>\n'
