"""What reaches the terminal: escaped, without passwords, on stderr, with an honest estimate."""

import io
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from s2l_ray import log
from s2l_ray.log import Display, Task, duration, plain, without_user_info


@pytest.fixture
def display() -> Display:
    display = Display()
    display._console = Console(file=io.StringIO(), markup=False, emoji=False, highlight=False, soft_wrap=True)
    display._console.width = log.LOG_WIDTH
    return display


def written(display: Display) -> str:
    return display._console.file.getvalue()


# -------------------------------------------------------------------------------------------------------------- plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("over\rwritten", "over\\x0dwritten"),
        ("back\x08\x7f", "back\\x08\\x7f"),
        ("nul\x00", "nul\\x00"),
        ("gnp.\u202etxt", "gnp.\\u202etxt"),
        ("\u2066isolate\u2069", "\\u2066isolate\\u2069"),
        ("undecodable\udcff", "undecodable\\udcff"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("emoji 😀 עברית é", "emoji 😀 עברית é"),
        ("[bold]markup[/bold] :smile:", "[bold]markup[/bold] :smile:"),
    ],
)
def test_plain_escapes_what_could_steer_a_terminal_and_nothing_else(text, shown):
    assert plain(text) == shown


@given(st.text())
@settings(deadline=None)
def test_plain_leaves_no_control_character(text):
    shown = plain(text)
    assert not any((ord(c) < 0x20 and c not in "\t\n") or 0x7F <= ord(c) <= 0x9F for c in shown)
    assert plain(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/dir", "s3://[redacted]@bucket/dir"),
        ("see https://user:p@ss@host/a and s3://k@b", "see https://[redacted]@host/a and s3://[redacted]@b"),
        ("s3://bucket/dir/a@b", "s3://bucket/dir/a@b"),
        ("s3://bucket mail me@home", "s3://bucket mail me@home"),
        ('["s3://bucket", "me@home"]', '["s3://bucket", "me@home"]'),
        ("me@home:/path", "me@home:/path"),
    ],
)
def test_user_info_of_urls_is_hidden(text, shown):
    assert without_user_info(text) == shown
    assert plain(text) == shown


# ------------------------------------------------------------------------------------------------------------- output


def test_say_warn_and_error_print_data_as_it_is(display):
    text = "a:car:b [red]x[/red] \x1b[31m s3://canary@b"
    for speak in (display.say, display.warn, display.error):
        speak(text)
    lines = written(display).splitlines()
    assert len(lines) == 3
    assert all("a:car:b [red]x[/red] \\x1b[31m s3://[redacted]@b" in line for line in lines)
    assert "canary" not in written(display)


def test_real_console_reads_no_markup_and_no_emoji_and_writes_to_stderr(capsys):
    Display().say("a:car:b [red]x[/red]")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "a:car:b [red]x[/red]\n"


def test_quiet_hides_progress_and_tables_but_no_warning_and_no_error(display):
    display.quiet = True
    display.say("hidden")
    display.table(["hidden"], [["hidden"]])
    display.warn("seen one")
    display.error("seen two")
    assert "hidden" not in written(display)
    assert "seen one" in written(display)
    assert "seen two" in written(display)


def test_long_line_is_not_broken(display):
    path = "/a" * 400
    display.say(path)
    assert written(display) == path + "\n"


def test_table_shows_every_cell_escaped(display):
    display.table(["", "arm"], [["rows", "1200"], ["[b]:car:", "\x1b[0m"]])
    text = written(display)
    assert all(part in text for part in ("arm", "rows", "1200", "[b]:car:", "\\x1b[0m"))
    assert "\x1b[0m" not in text


@pytest.mark.parametrize("width", [60, 100, log.LOG_WIDTH])
def test_table_that_ends_in_text_keeps_its_other_columns_whole(display, width):
    display._console.width = width
    rows = [["scores [full]", "evaluate_target", "will run", "after " + "x" * 60], ["tokens", "t", "cached", "here"]]
    display.table(["artifact", "stage", "state", "why"], rows, ends_in_text=True)
    text = written(display)
    assert all(cell in text for row in rows for cell in row[:3])
    assert (rows[0][3] in text) == (width >= 112)
    assert all(len(line) <= width for line in text.splitlines())


def test_label_belongs_to_its_thread(display):
    inside, checked = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(10)
        display.warn("from the other thread")
        checked.set()

    thread = threading.Thread(target=other)
    thread.start()
    with display.labelled(["s2l", "random"]):
        inside.set()
        checked.wait(10)
        display.warn("from this thread")
        with display.progress("scoring") as task:
            assert task.label == "scoring [s2l, random]"
        with display.labelled(["inner"]):
            display.warn("from inside")
        display.warn("from this thread again")
    thread.join()
    display.warn("after")
    lines = written(display).splitlines()
    assert [("[s2l, random]" in line, "[inner]" in line) for line in lines] == [
        (False, False),
        (True, False),
        (False, True),
        (True, False),
        (False, False),
    ]


def test_label_ends_with_an_exception(display):
    with pytest.raises(ValueError, match="x"), display.labelled(["s2l"]):
        raise ValueError("x")
    display.warn("after")
    assert "s2l" not in written(display)


def test_label_of_no_arms_is_nothing(display):
    with display.labelled([]), display.progress("scoring") as task:
        assert task.label == "scoring"


# ----------------------------------------------------------------------------------------------------------- durations


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (3.14, "3.1 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 0 s"),
        (60, "1 min 0 s"),
        (250, "4 min 10 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_duration_in_two_units(seconds, shown):
    assert duration(seconds) == shown


# ------------------------------------------------------------------------------------------------------------ progress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def test_describe_says_how_far_how_long_and_how_long_yet(display, clock):
    task = Task(display, "scoring", 100, "rows")
    task.update(0)
    clock[0] += 10
    task.update(20, note="fast")
    assert task.describe() == "scoring: 20/100 rows (20%), 10.0 s, 40.0 s left fast"


def test_describe_does_not_count_what_an_earlier_attempt_did(display, clock):
    task = Task(display, "scoring", 100, "rows")
    task.update(50)
    assert "left" not in task.describe()
    clock[0] += 10
    task.update(60)
    assert "40.0 s left" in task.describe()


def test_describe_does_not_count_how_long_processes_took_to_start(display, clock):
    task = Task(display, "train", 100, "steps")
    clock[0] += 30
    task.update(10)  # the first word of a worker
    clock[0] += 20
    task.update(20)
    assert task.describe() == "train: 20/100 steps (20%), 50.0 s, 2 min 40 s left"


def test_describe_without_a_total_says_how_long(display, clock):
    task = Task(display, "waiting", None, "")
    clock[0] += 3
    task.advance()
    assert task.describe() == "waiting: 3.0 s"


def test_advance_adds_up_and_counts_from_nothing(display, clock):
    task = Task(display, "scoring", 4, "rows")
    task.advance()
    task.advance(2)
    clock[0] += 3
    assert task.done == 3
    assert "3/4 rows (75%)" in task.describe()
    assert "1.0 s left" in task.describe()


def test_describe_writes_many_rows_in_full(display):
    task = Task(display, "read", 100_000_000, "rows")
    task.update(9_000_000)
    assert task.describe().startswith("read: 9,000,000/100,000,000 rows (9%)")


def test_update_can_change_the_total(display):
    task = Task(display, "scoring", None, "rows")
    task.update(5, total=10)
    task.update(6)
    assert task.total == 10


def test_progress_off_a_terminal_is_a_line_now_and_then(display, clock):
    with display.progress("scoring", 100, "rows") as task:
        task.update(0)
        assert written(display) == ""
        for _ in range(40):
            clock[0] += 1
            task.advance()
    lines = written(display).splitlines()
    assert 2 <= len(lines) <= 5
    assert all("scoring" in line for line in lines)


def test_progress_when_quiet_is_silent(display, clock):
    display.quiet = True
    with display.progress("scoring", 100, "rows") as task:
        clock[0] += 100
        task.advance()
    assert written(display) == ""


def test_progress_on_a_terminal_cleans_up_after_itself(clock):
    display = Display()
    display._console = Console(file=io.StringIO(), force_terminal=True, width=80)

    def fail() -> None:
        with display.progress("scoring [b]", 10, "rows") as task:
            clock[0] += 5
            task.update(3)
            assert display._bars.tasks[0].completed == 3
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert not display._bars.tasks
    assert not display._bars.live.is_started
