"""Writing a path of StateVector rows down."""

from orrery.output.table import table

__all__ = ["table"]
