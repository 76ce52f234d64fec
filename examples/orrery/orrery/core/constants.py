"""Gravity and size of the bodies that a StateVector may circle.

Gravitational parameters in km^3/s^2, radii in km.
"""

SUN = 132_712_440_018.0
MERCURY = 22_032.0
VENUS = 324_859.0
EARTH = 398_600.4418
MARS = 42_828.37
JUPITER = 126_686_534.0
SATURN = 37_931_187.0
NEPTUNE = 6_836_529.0

AU = 149_597_870.7
LIGHT_SPEED = 299_792.458
DAY = 86_400.0
YEAR = 365.25 * DAY

RADIUS = {
    "sun": 695_700.0,
    "mercury": 2_439.7,
    "venus": 6_051.8,
    "earth": 6_378.137,
    "mars": 3_396.2,
    "jupiter": 71_492.0,
    "saturn": 60_268.0,
    "neptune": 24_764.0,
}
