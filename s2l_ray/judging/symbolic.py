"""Equality of mathematics beyond numbers, by math-verify in a process of its own.

Comparing expressions may take for ever, so each comparison has a wall clock; the process that exceeds it is killed and
a new one started for the next. A comparison that had no end counts as not equal, and is counted.
Source: https://github.com/huggingface/Math-Verify
"""

import json
import selectors
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from s2l_ray.errors import StageFailed
from s2l_ray.judging.packages import check_package
from s2l_ray.judging.plain_math import latex

PACKAGE = "math_verify"
MEMORY_BYTES = 4 * 2**30
"""Address space of the process."""
START_SECONDS = 120.0
"""Longest start on a busy machine."""
SECONDS = 10.0
"""Longest comparison [s]."""


def check_installed() -> None:
    """Refuse to begin without math-verify.

    Raises:
        ConfigError: it is not installed.
    """
    check_package(PACKAGE, name="math-verify", extra="math", asked="judging mathematics")


class MathVerify:
    """A judge of LaTeX: call it with a reference and an answer. Its process starts with the first question."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Take the wall clock of one comparison [s]."""
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._judge = lru_cache(maxsize=4096)(self._asked)
        self.unsettled = 0
        """Comparisons that had no end."""

    def __enter__(self) -> "MathVerify":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, reference: str, answer: str) -> bool:
        """Return whether an answer is equal to the reference as mathematics."""
        return self._judge(reference, answer)

    def _asked(self, reference: str, answer: str) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps([latex(reference), latex(answer)]) + "\n")
        process.stdin.flush()
        verdict = _line(process, self._seconds)
        if verdict is None:
            self.unsettled += 1
            self._stop()
        return verdict == "true"

    def _start(self) -> "subprocess.Popen[str]":
        check_installed()
        program = Path(__file__).with_name("math_verify_process.py")
        # -P: the folder of the program is no place to import from.
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", str(program), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if _line(process, START_SECONDS) is None:
            self._stop()
            raise StageFailed(
                f"math-verify did not start within {START_SECONDS:.0f} s. Try `{sys.executable} -c 'import {PACKAGE}'`."
            )
        return process

    def _stop(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()


def _line(process: "subprocess.Popen[str]", seconds: float) -> str | None:
    """Return the process's next line; None where none comes in time, or it has died."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return (process.stdout.readline().strip() or None) if selector.select(seconds) else None
