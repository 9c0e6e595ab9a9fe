"""Scripts, run plainly and under ``gradscope run``: in processes that are forked from one that has torch, or in new ones."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
PATIENCE = 120.0  # seconds; reached only by a test that fails
ENVIRONMENT = {
    key: value
    for key, value in os.environ.items()
    if key not in ("RANK", "FORCE_COLOR", "NO_COLOR", "COLUMNS") and not key.startswith(("SLURM_", "COV_"))
} | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Ended:
    """What a run has left: its status, what it printed, and what it complained of."""

    status: int
    out: str
    err: str

    @property
    def said(self):
        """What gradscope said: all lines on standard error from its first on."""
        return self.err[self.err.find("gradscope") :] if "gradscope" in self.err else ""


class Server:
    """Runs scripts in forked processes, one after the other."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
        )

    def run(self, folder, *arguments, gradscope=True):
        """``gradscope run ARGUMENTS``, or ``python ARGUMENTS``, in that folder."""
        out, err = Path(folder) / "out.txt", Path(folder) / "err.txt"
        request = {"folder": str(folder), "arguments": list(map(str, arguments)), "gradscope": gradscope}
        print(json.dumps(request | {"out": str(out), "err": str(err)}), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return Ended(status, out.read_text("utf-8"), err.read_text("utf-8"))

    def close(self):
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


def started(folder, *arguments, gradscope=True, **environment):
    """A process of its own that has begun with the script."""
    command = [sys.executable, *(["-m", "gradscope", "run"] if gradscope else []), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
    )  # fmt: skip


def finished(process):
    """What a process has left, at its end."""
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err)


def run(folder, *arguments, gradscope=True, **environment):
    """The same in a process of its own, to its end."""
    return finished(started(folder, *arguments, gradscope=gradscope, **environment))
