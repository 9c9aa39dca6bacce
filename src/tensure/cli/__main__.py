"""`python -m tensure.cli`, which is `tensure`."""

from __future__ import annotations

import sys

from tensure.cli import main

if __name__ == "__main__":
    sys.exit(main())
