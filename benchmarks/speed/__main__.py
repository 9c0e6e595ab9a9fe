"""The program's entry."""

import sys

from benchmarks.speed.commands import main

sys.exit(main())
