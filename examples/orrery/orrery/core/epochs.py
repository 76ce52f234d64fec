"""Calendar dates as the `time` of a StateVector: seconds since J2000."""

from datetime import UTC, datetime, timedelta

J2000 = datetime(2000, 1, 1, 12, tzinfo=UTC)
J2000_DAY = 2_451_545.0


def seconds(moment: datetime) -> float:
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return (moment - J2000).total_seconds()


def moment(time: float) -> datetime:
    return J2000 + timedelta(seconds=time)


def julian_day(time: float) -> float:
    return J2000_DAY + time / 86_400.0


def centuries(time: float) -> float:
    """Julian centuries since J2000, the unit of slow drifts."""
    return time / (86_400.0 * 36_525.0)
