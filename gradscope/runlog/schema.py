"""What the lines of a run log are called, and which version of them this package writes and reads."""

from __future__ import annotations

import re

#: The version of the schema; a change that older readers would misread raises it.
VERSION = 1

#: The key that marks a header; its value is the version.
MARK = "gradscope_run_log"

#: How a run log begins, whatever wrote its spaces.
HEADER = re.compile(rb'\s*\{\s*"' + MARK.encode() + rb'"\s*:')
