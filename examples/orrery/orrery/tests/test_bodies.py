import unittest

from orrery.bodies import earth, jupiter, mars, mercury, neptune, saturn, venus
from orrery.bodies.planet import between
from orrery.core.constants import AU, DAY, YEAR
from orrery.core.motion import StateVector
from orrery.moons import europa, io, luna, phobos, titan

PLANETS = (mercury, venus, earth, mars, jupiter, saturn, neptune)


class PlanetTest(unittest.TestCase):
    def test_planets_keep_their_distance(self) -> None:
        for module in PLANETS:
            state = module.at(3.0e8)
            self.assertIsInstance(state, StateVector)
            orbit = module.PLANET.orbit
            self.assertGreaterEqual(state.radius, orbit.axis * (1.0 - orbit.eccentricity) - 1.0)
            self.assertLessEqual(state.radius, orbit.axis * (1.0 + orbit.eccentricity) + 1.0)

    def test_years_and_days(self) -> None:
        self.assertAlmostEqual(earth.PLANET.year / YEAR, 1.0, places=3)
        self.assertAlmostEqual(mercury.solar_day() / DAY, 175.9, delta=0.1)
        self.assertAlmostEqual(earth.PLANET.surface_gravity, 9.8, delta=0.05)
        self.assertAlmostEqual(mars.sols(mars.at(0.0), mars.at(mars.SOL)), 1.0)

    def test_mars_is_never_nearer_than_it_can_be(self) -> None:
        for day in range(0, 800, 10):
            self.assertGreater(between(mars.PLANET, earth.PLANET, day * DAY).radius, 0.36 * AU)

    def test_stories(self) -> None:
        self.assertGreater(abs(jupiter.tug_on_sun(jupiter.at(0.0))[0]), 100_000.0)
        self.assertLess(abs(saturn.ring_opening(earth.at(0.0), 0.0)), 0.5)
        self.assertAlmostEqual(neptune.laps_since_discovery(neptune.at(0.0)), 0.93, delta=0.02)
        self.assertIn(venus.is_evening_star(earth.at(0.0), 0.0), (True, False))


class MoonTest(unittest.TestCase):
    def test_months(self) -> None:
        self.assertAlmostEqual(luna.MOON.month / DAY, 27.4, delta=0.2)
        self.assertAlmostEqual(europa.resonance(), 2.0, delta=0.02)

    def test_motion_about_planet_and_sun(self) -> None:
        self.assertTrue(phobos.outruns_ground(phobos.at(0.0)))
        self.assertGreater(io.flux_tube_speed(io.at(0.0)), 50.0)
        self.assertLess(luna.MOON.about_sun(0.0).seen_from(earth.at(0.0)).radius, 410_000.0)
        self.assertFalse(luna.is_supermoon(StateVector((400_000.0, 0.0, 0.0), (0.0, 1.0, 0.0))))
        self.assertAlmostEqual(luna.apparent_size(luna.at(0.0)), 0.009, delta=0.001)

    def test_a_probe_enters_the_air_of_titan(self) -> None:
        self.assertTrue(titan.in_air(titan.at(60.0), 60.0))
        self.assertGreater(europa.from_io(0.0).radius, 200_000.0)
