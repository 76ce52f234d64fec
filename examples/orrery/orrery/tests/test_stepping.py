import unittest

from orrery.bodies import earth
from orrery.core import kepler
from orrery.core.constants import EARTH
from orrery.core.motion import StateVector
from orrery.stepping import euler, flight, leapfrog, runge
from orrery.stepping.forces import drag, gravity, together

START = earth.circular(400.0)
PULL = gravity(EARTH)


def end_of(step: flight.Step, dt: float = 10.0, time: float = 5_000.0) -> StateVector:
    return flight.until(flight.fly(START, PULL, dt, step), time)[-1]


class SteppingTest(unittest.TestCase):
    def test_better_methods_err_less(self) -> None:
        errors = []
        for step in (euler.step, leapfrog.step, runge.step):
            end = end_of(step)
            truth = kepler.propagate(START, end.time, EARTH)
            errors.append(end.seen_from(truth).radius)
        self.assertGreater(errors[0], 100.0 * errors[1])
        self.assertGreater(errors[1], 100.0 * errors[2])

    def test_leapfrog_keeps_the_energy(self) -> None:
        self.assertAlmostEqual(end_of(leapfrog.step).energy(EARTH), START.energy(EARTH), places=4)

    def test_drag_lowers_an_orbit(self) -> None:
        air = drag(earth.PLANET.radius + 400.0, 1e-9, 60.0, 1.0)
        path = flight.fly(START, together(PULL, air), 10.0, runge.step)
        end = flight.until(path, 5_000.0)[-1]
        self.assertLess(end.energy(EARTH), START.energy(EARTH))
