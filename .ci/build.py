"""Build wheel and sdist without a warning, and install the wheel into a clean environment that then runs ``doctor``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Tracked files that only a checkout needs.
NOT_IN_THE_SDIST = {".gitignore"}


def main() -> None:
    """Build, look into the archives, install, run."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "dist")
        run(sys.executable, "-m", "build", "--outdir", str(built), str(ROOT), forbid=r"\bwarning\b|deprecat")
        (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            held = {name.partition("/")[2] for name in archive.getnames()}
        tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
        if missing := {name for name in tracked if name} - held - NOT_IN_THE_SDIST:
            sys.exit(f"{sdist.name} lacks {', '.join(sorted(missing))}: see MANIFEST.in")
        clean = Path(folder, "env")
        venv.create(clean, with_pip=True)
        constraints = str(ROOT / "constraints.txt")
        run(str(clean / "bin/pip"), "install", "--quiet", "--constraint", constraints, str(wheel))
        # Not from ROOT: there the package would be imported from the checkout, not from the wheel.
        run(str(clean / "bin/gradscope"), "doctor", cwd=folder)
        print(f"{wheel.name} and {sdist.name} build without a warning and install into a clean environment")


def run(*command: str, forbid: str | None = None, cwd: str | Path = ROOT) -> None:
    """Run ``command``; stop with its output where it fails or prints a line that matches ``forbid``."""
    # Setuptools warns where it is kept from writing byte code; that would be the machine's warning, not the build's.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    warnings = [line for line in done.stdout.splitlines() if forbid and re.search(forbid, line, re.IGNORECASE)]
    if done.returncode or warnings:
        sys.exit(f"{done.stdout}\n{' '.join(command)} ended with status {done.returncode}; warnings: {warnings}")
    if not forbid:
        print(done.stdout, end="")


if __name__ == "__main__":
    main()
