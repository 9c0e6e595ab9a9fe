"""Kernels are optional, and so would be missed in silence where they can be built."""

import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from gradscope.kernels import ABSENT, VARIABLE

HEADER = Path(sysconfig.get_paths()["include"], "Python.h")


@pytest.mark.skipif(os.environ.get(VARIABLE) == "0", reason="switched off")
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="another machine")
@pytest.mark.skipif(not shutil.which("gcc") or not HEADER.exists(), reason="nothing to build them with")
def test_where_they_can_be_built_they_are_there():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert not ABSENT or not {"avx2", "fma"} <= flags, ABSENT
