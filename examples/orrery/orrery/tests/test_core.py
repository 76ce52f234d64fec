import math
import unittest
from datetime import UTC, datetime

from orrery.core import constants, epochs, kepler
from orrery.core.elements import Elements, axis_of, eccentricity_of, inclination_of
from orrery.core.frames import to_equator
from orrery.core.motion import StateVector

ORBIT = Elements(axis=12_000.0, eccentricity=0.3, inclination=0.7, node=1.1, periapsis=2.0, anomaly=0.4)


class MotionTest(unittest.TestCase):
    def test_a_circle_has_no_radial_speed(self) -> None:
        state = StateVector((7_000.0, 0.0, 0.0), (0.0, 7.5, 0.0))
        self.assertEqual(state.radial_speed, 0.0)
        self.assertEqual(state.momentum, (0.0, 0.0, 52_500.0))

    def test_drift_goes_straight_on(self) -> None:
        moved = StateVector((0.0, 0.0, 0.0), (1.0, 2.0, 3.0), 5.0).drift(2.0)
        self.assertEqual((moved.position, moved.time), ((2.0, 4.0, 6.0), 7.0))

    def test_the_printed_form_names_the_class(self) -> None:
        text = repr(ORBIT.at(0.0, constants.EARTH))
        self.assertTrue(text.startswith(StateVector.__name__ + "("))


class OrbitTest(unittest.TestCase):
    def test_elements_come_back_from_motion(self) -> None:
        state = ORBIT.at(1_234.0, constants.EARTH)
        self.assertAlmostEqual(axis_of(state, constants.EARTH), 12_000.0, places=6)
        self.assertAlmostEqual(eccentricity_of(state, constants.EARTH), 0.3, places=9)
        self.assertAlmostEqual(inclination_of(state), 0.7, places=9)

    def test_two_ways_forward_agree(self) -> None:
        start = ORBIT.at(0.0, constants.EARTH)
        carried = kepler.propagate(start, 5_000.0, constants.EARTH)
        for mine, other in zip(carried.position, ORBIT.at(5_000.0, constants.EARTH).position, strict=True):
            self.assertAlmostEqual(mine, other, places=5)

    def test_a_parabola_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            kepler.eccentric_anomaly(1.0, 1.0)


class TimeAndFrameTest(unittest.TestCase):
    def test_the_epoch_is_noon(self) -> None:
        self.assertEqual(epochs.julian_day(0.0), 2_451_545.0)
        day = datetime(2000, 1, 2, 12, tzinfo=UTC)
        self.assertEqual(epochs.moment(epochs.seconds(day)), day)

    def test_a_turn_keeps_lengths(self) -> None:
        state = ORBIT.at(0.0, constants.EARTH)
        self.assertAlmostEqual(to_equator(state).radius, state.radius, places=8)
        self.assertTrue(math.isclose(to_equator(state).speed, state.speed))
