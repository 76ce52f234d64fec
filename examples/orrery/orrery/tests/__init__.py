"""Tests of StateVector and all that is built on it: `python -m unittest`."""
