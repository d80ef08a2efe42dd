"""What the user sees while a run goes on: lines, tables, and progress with an estimate of the time left.

On a terminal progress is a bar; elsewhere a plain line appears now and then. Text from data or from the
system is printed as it is, never read as markup, and control characters are shown escaped. All of it goes to
stderr: stdout is for what other programs read.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

STAGE_THREAD = "stage"
"""Threads that stages run in are called so."""
QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0
COLUMN_GAP, LEAST_TEXT = 3, 10
"""Between the columns of a table, and what a last column of text has at least."""
LOG_WIDTH = 200
"""Columns of a table where there is no terminal to ask."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls but tab and newline, the marks that turn the direction of text, and what is no character."""
_SECRET = re.compile(r"token|key|secret|password", re.IGNORECASE)
_USER_INFO = re.compile(r"(\w://)[^/\s\"]+@")


def without_user_info(text: str) -> str:
    """Return text whose URLs show no user and no password."""
    return _USER_INFO.sub(r"\1[redacted]@", text)


def redacted(value: Any, name: str = "") -> Any:
    """Return a config without what looks like a secret: values of telling names, user names in URLs."""
    if isinstance(value, Mapping):
        return {key: redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    if isinstance(value, str):
        return "[redacted]" if _tells_a_secret(name) else without_user_info(value)
    return value


def _tells_a_secret(name: str) -> bool:
    # Arms and sweeps name settings by their paths, several of them with `+`.
    keys = (path.strip().rpartition(".")[2] for path in name.split("+"))
    return any(_SECRET.search(key) and key != "tokenizer" for key in keys)


def plain(text: str) -> str:
    """Return text as it may stand on a terminal: controls escaped, so that data cannot steer it, and no passwords."""
    return _CONTROL.sub(_escaped, without_user_info(text))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def duration(seconds: float) -> str:
    """Return a duration in the largest two units that matter: `3.1 s`, `4 min 10 s`, `2 h 5 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _amount(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"


class Display:
    """The one place that writes to the user. Thread-safe: stages of several arms may run side by side."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._local = threading.local()
        self.quiet = False
        self.stdout = sys.stdout

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
        if not console.is_terminal:
            console.width = LOG_WIDTH
        return console

    @cached_property
    def _bars(self) -> Progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,
        )

    def say(self, text: str = "") -> None:
        """Print a line for the user."""
        if not self.quiet:
            self._console.print(plain(text))

    def hand_out(self, text: str) -> None:
        """Print what was asked for itself, on stdout: to look through, or to keep."""
        if not self.quiet:
            print(plain(text), file=self.stdout)

    def warn(self, text: str) -> None:
        """Print a warning; it goes out even with `quiet`."""
        self._console.print(f"warning: {plain(text)}{self._arms()}")

    def error(self, text: str) -> None:
        """Print an error; it goes out even with `quiet`."""
        self._console.print(f"error: {plain(text)}")

    @contextmanager
    def labelled(self, arms: Sequence[str]) -> Iterator[None]:
        """Name the arms that this thread works for in its progress and warnings."""
        before = self._arms()
        self._local.arms = f" [{', '.join(arms)}]" if arms else ""
        try:
            yield
        finally:
            self._local.arms = before

    def _arms(self) -> str:
        return getattr(self._local, "arms", "")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], *, ends_in_text: bool = False) -> None:
        """Print a table; every column but the first is aligned to the right.

        Args:
            ends_in_text: the last column is text, and all that is cut where a terminal is narrow.
        """
        if self.quiet:
            return
        from rich import box
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        last, left = len(header) - 1, self._console.width
        for index, (name, *cells) in enumerate(zip(header, *rows, strict=True)):
            is_text = index == 0 or (ends_in_text and index == last)
            width = max(cell_len(plain(cell)) for cell in (name, *cells)) if ends_in_text else None
            if width is not None:
                width = min(width, max(LEAST_TEXT, left - COLUMN_GAP)) if index == last else width
                left -= width + COLUMN_GAP
            table.add_column(name, justify="left" if is_text else "right", no_wrap=True, width=width)
        for row in rows:
            table.add_row(*(Text(plain(cell)) for cell in row))
        self._console.print(table)

    @contextmanager
    def progress(self, label: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """Show progress for the length of the block."""
        task = Task(self, f"{label}{self._arms()}", total, unit)
        own = self._own_tasks()
        own.append(task)
        try:
            yield task
        finally:
            own.remove(task)
            with self._lock:
                task.close()

    def doing(self) -> Callable[[], str]:
        """Return a function that tells, whatever thread asks it, how far the work of this thread is."""
        own = self._own_tasks()
        # A copy: the thread itself goes on with the list.
        return lambda: next((task.describe() for task in reversed(list(own))), "")

    def _own_tasks(self) -> list[Task]:
        if not hasattr(self._local, "tasks"):
            self._local.tasks = []
        tasks: list[Task] = self._local.tasks
        return tasks

    def _draw(self, task: Task) -> None:
        with self._lock:
            now = time.monotonic()
            if self.quiet or now - task.started < QUIET_SECONDS:
                return
            if self._console.is_terminal:
                if not self._bars.live.is_started:
                    self._bars.start()
                task.draw_bar(self._bars)
            elif now - task.last_line > LINE_SECONDS:
                task.last_line = now
                self.say(f"  {task.describe()}")

    def _erase(self, bar: int) -> None:
        from rich.progress import TaskID

        self._bars.remove_task(TaskID(bar))
        if not self._bars.tasks:
            self._bars.stop()


class Task:
    """Progress of one piece of work, in units of its own."""

    def __init__(self, display: Display, label: str, total: float | None, unit: str) -> None:
        self._display = display
        self._bar: int | None = None
        self.label, self.total, self.unit = label, total, unit
        self.started = time.monotonic()
        self.last_line = 0.0
        self.done: float = 0
        self.note = ""
        self._first: tuple[float, float] | None = None

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Set how much is done; the first call says from where, and from when, the pace is reckoned.

        What an earlier attempt had done does not count, nor, of a training, the time until its workers' first word.
        """
        if self._first is None:
            self._first = (done, time.monotonic())
        self.done, self.note = done, note
        self.total = self.total if total is None else total
        self._display._draw(self)

    def advance(self, amount: float = 1) -> None:
        """Add to how much is done."""
        if self._first is None:
            self._first = (0, self.started)
        self.update(self.done + amount)

    def describe(self) -> str:
        """Return one line: how far, how long, how long yet."""
        elapsed = time.monotonic() - self.started
        if not self.total:
            return f"{self.label}: {duration(elapsed)} {self.note}".rstrip()
        first, since = self._first or (0, self.started)
        fresh, working = self.done - first, time.monotonic() - since
        left = f", {duration(working / fresh * (self.total - self.done))} left" if fresh > 0 else ""
        share = f"{_amount(self.done)}/{_amount(self.total)} {self.unit} ({self.done / self.total:.0%})"
        return f"{self.label}: {share}, {duration(elapsed)}{left} {self.note}".rstrip()

    def draw_bar(self, bars: Progress) -> None:
        """Draw as a bar on a terminal."""
        from rich.progress import TaskID

        if self._bar is None:
            self._bar = int(bars.add_task(self.label, total=self.total, unit=self.unit, note=self.note))
        bars.update(TaskID(self._bar), completed=self.done, total=self.total, note=self.note)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._display._erase(self._bar)


display = Display()
