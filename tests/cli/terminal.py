"""A command in a terminal of its own, and in a pipe."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte

COMMAND = [sys.executable, "-m", "gradscope"]
PATIENCE = 60.0  # seconds; reached only by a test that fails


class Terminal:
    """``gradscope`` with these arguments, in a pseudo-terminal of that size."""

    def __init__(self, *arguments, columns=80, lines=24, **environment):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before = termios.tcgetattr(theirs)
        ours_alone = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        kept = {key: value for key, value in os.environ.items() if key not in ours_alone}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env=kept | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"} | environment,
        )  # fmt: skip
        self._ours, self._theirs = ours, theirs
        self.output = ""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)

    def wait_for(self, pattern):
        """Read until the pattern has come; what was read up to it."""
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.output, re.DOTALL)):
            assert time.monotonic() < end, f"{pattern!r} did not come: {self.output[-2000:]!r}"
            self._read()
        seen, self.output = self.output[: found.end()], self.output[found.end() :]
        return seen

    def shows(self, *patterns):
        """Read until the screen shows all of them; its lines."""
        end = time.monotonic() + PATIENCE
        while not all(re.search(pattern, "\n".join(self._screen.display)) for pattern in patterns):
            assert time.monotonic() < end, "\n".join(self._screen.display)
            assert self.process.poll() is None, self.output[-2000:]
            self._read()
        return [line.rstrip() for line in self._screen.display]

    @property
    def styles(self):
        """Colours and weights on the screen."""
        cells = [cell for row in self._screen.buffer.values() for cell in row.values()]
        return {cell.fg for cell in cells} | {cell.bg for cell in cells}

    def resize(self, columns, lines):
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)
        os.kill(self.process.pid, signal.SIGWINCH)

    def press(self, keys):
        os.write(self._ours, keys.encode())

    def interrupt(self):
        os.kill(self.process.pid, signal.SIGINT)

    def finish(self):
        """Read to the end; the exit status."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still running: {self.output[-2000:]!r}"
            self._read()
        self._read()
        return self.process.returncode

    def settings(self):
        return termios.tcgetattr(self._theirs)

    def _read(self):
        if select.select([self._ours], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):
                read = os.read(self._ours, 65536)
                self._stream.feed(read)
                self.output += read.decode("utf-8", "replace")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


def piped(*arguments, **environment):
    """``gradscope`` with its output in a pipe: (status, standard output, standard error), as bytes."""
    kept = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL,
        env=kept | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr
