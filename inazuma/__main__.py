"""`python -m inazuma` is the same as `inazuma`."""

from __future__ import annotations

import sys

from inazuma.cli import main

if __name__ == "__main__":
    sys.exit(main())
