"""The program's entry."""

import sys

from benchmarks.speed.cli import main

sys.exit(main())
