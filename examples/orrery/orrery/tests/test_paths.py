import unittest

from orrery.bodies import earth, mars
from orrery.core.constants import AU, DAY, YEAR
from orrery.core.motion import StateVector
from orrery.events import approach, apsides, nodes, opposition
from orrery.moons import luna
from orrery.output import commas, picture
from orrery.output.table import HEAD, table

MONTH = [luna.at(day * DAY) for day in range(28)]


class EventTest(unittest.TestCase):
    def test_the_moon_is_near_once_a_month(self) -> None:
        times = list(apsides.nearest(luna.at, 0.0, 300.0 * DAY, DAY))
        self.assertEqual(len(times), 11)
        self.assertTrue(all(luna.at(time).radius < 364_000.0 for time in times))
        far = next(apsides.farthest(luna.at, 0.0, 60.0 * DAY, DAY))
        self.assertGreater(luna.at(far).radius, 405_000.0)

    def test_nodes_alternate(self) -> None:
        up = list(nodes.ascending(luna.at, 0.0, 100.0 * DAY, DAY))
        down = list(nodes.descending(luna.at, 0.0, 100.0 * DAY, DAY))
        self.assertEqual(sorted(up + down)[::2], up if up[0] < down[0] else down)

    def test_mars_stands_opposite_every_other_year(self) -> None:
        times = list(opposition.oppositions(mars.PLANET, 0.0, 10.0 * YEAR, 5.0 * DAY))
        self.assertIn(len(times), (4, 5))
        self.assertAlmostEqual(opposition.synodic_period(mars.PLANET) / DAY, 779.9, delta=1.0)

    def test_the_nearest_meeting_with_mars(self) -> None:
        meeting = approach.closest(mars.at, earth.at, 0.0, 8.0 * YEAR, 5.0 * DAY)
        self.assertIsInstance(meeting, StateVector)
        self.assertAlmostEqual(meeting.radius / AU, 0.373, delta=0.01)


class OutputTest(unittest.TestCase):
    def test_commas_come_back_exactly(self) -> None:
        self.assertEqual(commas.load(commas.dump(MONTH)), MONTH)
        with self.assertRaises(ValueError):
            commas.load("a,b\n")

    def test_a_table_has_a_row_for_each_state(self) -> None:
        lines = table(MONTH).splitlines()
        self.assertEqual((lines[0], len(lines)), (HEAD, 29))
        self.assertTrue(lines[1].startswith("2000-01-01 12:00"))

    def test_a_picture_is_drawn(self) -> None:
        self.assertEqual(picture.picture(MONTH).count(","), 28)
