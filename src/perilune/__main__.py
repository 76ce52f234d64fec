"""`python -m perilune` is the command `perilune`."""

from __future__ import annotations

import sys

from perilune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
