"""The run log: a file of JSON lines, the first with the model's parameter table, then one per window.

A log holds every scalar that a report is made of, so that the report can be printed again, from another terminal or
after the run; it holds no tensors and no code.
"""

from __future__ import annotations

from gradscope.runlog.reader import RunLog, RunLogFollower, read_run_log
from gradscope.runlog.writer import RunLogWriter

__all__ = ["RunLog", "RunLogFollower", "RunLogWriter", "read_run_log"]
