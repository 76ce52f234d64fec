import math
import unittest

from orrery.bodies import earth
from orrery.burns import escape, hohmann, phasing, tilting
from orrery.burns.impulse import Burn, prograde
from orrery.core.constants import EARTH
from orrery.core.elements import axis_of, inclination_of
from orrery.core.motion import StateVector


class BurnTest(unittest.TestCase):
    def setUp(self) -> None:
        self.ship: StateVector = earth.circular(400.0)

    def test_a_transfer_reaches_its_goal(self) -> None:
        after = hohmann.departure(self.ship, 42_164.0, EARTH).apply(self.ship)
        self.assertAlmostEqual(axis_of(after, EARTH), (self.ship.radius + 42_164.0) / 2.0, places=4)
        self.assertAlmostEqual(hohmann.plan(self.ship.radius, 42_164.0, EARTH).cost, 3.86, delta=0.02)

    def test_escape_leaves_nothing_or_the_spare(self) -> None:
        after = escape.escape(self.ship, EARTH, spare=3.0).apply(self.ship)
        self.assertAlmostEqual(after.energy(EARTH), 4.5, places=6)
        self.assertTrue(escape.is_bound(self.ship, EARTH))
        self.assertAlmostEqual(escape.escape_speed(6_378.137, EARTH), 11.18, delta=0.01)

    def test_tilting_turns_the_plane_alone(self) -> None:
        after = tilting.turn(self.ship, 0.2).apply(self.ship)
        self.assertAlmostEqual(inclination_of(after), 0.2, places=9)
        self.assertAlmostEqual(after.speed, self.ship.speed, places=9)
        slow = StateVector(self.ship.position, (0.0, 1.0, 0.0))
        self.assertIs(tilting.cheapest([self.ship, slow]), slow)

    def test_catching_up_lowers_the_orbit(self) -> None:
        ahead = StateVector((0.0, self.ship.radius, 0.0), (-self.ship.speed, 0.0, 0.0))
        angle = phasing.lead(self.ship, ahead)
        self.assertAlmostEqual(angle, math.pi / 2.0)
        after = phasing.catch_up(self.ship, angle, 10, EARTH).apply(self.ship)
        self.assertLess(axis_of(after, EARTH), self.ship.radius)

    def test_fuel(self) -> None:
        self.assertAlmostEqual(Burn((0.0, 9.5, 0.0)).fuel_share(450.0), 0.884, delta=0.001)
        self.assertAlmostEqual(prograde(self.ship, -0.1).cost, 0.1)
