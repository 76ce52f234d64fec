"""Perilune: a self-hosted platform for Kimi K2.6. See docs/structure.md for the map."""

__version__ = "0.1.0"
