import math
import unittest

from orrery.bodies import earth, jupiter, mars, venus
from orrery.core.constants import AU
from orrery.core.motion import StateVector
from orrery.sky import lighttime, phases, shadow
from orrery.sky.direction import look
from orrery.sky.horizon import Place

SUN = StateVector((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
BERLIN = Place(math.radians(52.52), math.radians(13.4))


class SkyTest(unittest.TestCase):
    def test_the_sun_is_never_far_from_the_equator(self) -> None:
        for month in range(12):
            seen = look(SUN, earth.at(month * 2_630_000.0))
            self.assertLess(abs(seen.declination), math.radians(23.5))

    def test_the_sun_is_up_for_half_of_the_year(self) -> None:
        hours = [StateVector(SUN.position, SUN.velocity, 3_600.0 * hour) for hour in range(0, 8_766, 7)]
        up = sum(BERLIN.is_up(hour) for hour in hours)
        self.assertAlmostEqual(up / len(hours), 0.5, delta=0.03)

    def test_venus_stays_near_the_sun(self) -> None:
        viewer = earth.at(1.0e8)
        apart = look(venus.at(1.0e8), viewer).separation(look(SUN, viewer))
        self.assertLess(math.degrees(apart), 48.0)

    def test_outer_planets_look_almost_full(self) -> None:
        self.assertGreater(phases.lit_share(jupiter.at(0.0), earth.at(0.0)), 0.98)

    def test_light_takes_eight_minutes_from_the_sun(self) -> None:
        self.assertAlmostEqual(lighttime.delay(SUN, earth.at(0.0)) / 60.0, 8.3, delta=0.2)
        seen = lighttime.as_seen(mars.at, earth.at(0.0))
        self.assertLess(seen.time, 0.0)

    def test_the_moon_goes_dark_behind_the_earth(self) -> None:
        here = StateVector((AU, 0.0, 0.0), (0.0, 30.0, 0.0))
        behind = StateVector((384_400.0, 0.0, 0.0), (0.0, 1.0, 0.0))
        self.assertTrue(shadow.in_shadow(behind, here, 6_371.0))
        before = StateVector((-384_400.0, 0.0, 0.0), (0.0, -1.0, 0.0))
        self.assertFalse(shadow.in_shadow(before, here, 6_371.0))
        self.assertAlmostEqual(shadow.sun_size(here, behind), 0.0093, delta=0.0002)
