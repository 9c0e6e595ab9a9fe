"""Compiles the simulated device: ``python build.py LIBRARY``."""

import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).parent / "device.cpp"


def build(library):
    """A shared library that makes the device known to torch once it is loaded."""
    library.parent.mkdir(parents=True, exist_ok=True)
    places = [f"-isystem{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", "-w", abi, *places, str(SOURCE), "-ltorch_cpu", "-lc10"]
    subprocess.run([*command, "-o", str(library)], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
