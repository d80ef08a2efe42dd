"""Programs that a model wrote: what contains them, tried with hostile ones, and what their answers come to."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from s2l_ray.errors import ConfigError
from s2l_ray.judging.execution import Limits, check_allowed, run_program
from s2l_ray.judging.programs import assertions_of, computed_answer, computes_right, numbers_in, passes

LIMITS = Limits(cpu_seconds=2, wall_seconds=20)
SHORT = Limits(wall_seconds=1)
MARK = "s2l-canary-7c1f"


def is_running(mark):
    """Whether any process of this machine has a mark among its arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                return True
        except OSError:
            continue
    return False


@pytest.fixture(scope="module")
def isolated():
    if not run_program("pass", LIMITS).isolated:
        pytest.skip("the kernel gives no namespaces here: only limits contain a program")


def test_program_says_what_it_prints_and_how_it_ended():
    assert run_program("import math\nprint(math.sqrt(16))", LIMITS).output == "4.0\n"
    assert run_program("import sys\nsys.exit(3)", LIMITS).ended == "3"
    failed = run_program("1 / 0", LIMITS)
    assert not failed.succeeded
    assert "ZeroDivisionError" in failed.output
    assert run_program("print('\\u00e9')", LIMITS).output == "é\n"


def test_program_in_an_endless_loop_ends_with_its_cpu_seconds():
    assert run_program("while True: pass", replace(LIMITS, cpu_seconds=1, wall_seconds=120)).ended == "137"


def test_program_that_sleeps_ends_with_the_clock():
    assert run_program("import time\ntime.sleep(1000)", SHORT).ended == "clock"


def test_program_that_ignores_signals_ends_with_the_clock():
    source = "import signal, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    assert run_program(source, SHORT).ended == "clock"


def test_program_gets_no_more_memory_than_it_may():
    assert "MemoryError" in run_program(f"bytearray({LIMITS.memory_bytes})", LIMITS).output


def test_program_writes_no_larger_file_than_it_may():
    source = f"file = open('large', 'wb')\nfile.write(b'x' * {4 * LIMITS.file_bytes})\nfile.flush()"
    assert not run_program(source, LIMITS).succeeded


def test_program_fills_no_disk_with_many_files(isolated):
    source = "for n in range(100): open(f'f{n}', 'wb').write(b'x' * 100_000)"
    assert "No space left" in run_program(source, LIMITS).output


def test_program_opens_no_more_files_than_it_may():
    assert "Too many open files" in run_program("kept = [open('a', 'w') for _ in range(100)]", LIMITS).output


def test_program_that_prints_without_end_is_cut():
    outcome = run_program("while True: print('x' * 1000)", LIMITS)
    assert outcome.ended == "output"
    assert len(outcome.output) <= LIMITS.output_bytes


def test_program_sees_no_environment(monkeypatch):
    monkeypatch.setenv("S2L_SECRET", MARK)
    outcome = run_program("import os\nprint(dict(os.environ))", LIMITS)
    assert outcome.succeeded
    assert MARK not in outcome.output


def test_program_cannot_read_the_environment_of_other_processes(isolated, monkeypatch):
    source = (
        "import glob\nfor path in glob.glob('/proc/[0-9]*/environ'):\n"
        "    try:\n        print(open(path).read())\n    except OSError:\n        pass\nprint('looked')"
    )
    # Of this very process, whose environment was given at its start.
    known = next(iter(Path("/proc/self/environ").read_text().split("\0")))
    outcome = run_program(source, LIMITS)
    assert "looked" in outcome.output
    assert known not in outcome.output


def test_program_has_no_network(isolated):
    source = "import socket\nsocket.create_connection(('127.0.0.1', {}), timeout=5)\nprint('connected')"
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = run_program(source.format(server.getsockname()[1]), LIMITS)
    assert "unreachable" in outcome.output
    assert "connected" not in outcome.output


def test_program_starts_nothing_that_outlives_it():
    spread = (
        "import os, sys, time\n"
        "for _ in range(20):\n"
        "    try:\n        new = os.fork()\n    except OSError:\n        break\n"
        "    if new == 0:\n"
        "        os.setsid()\n        sleeper = 'import time; time.sleep(600)'\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', sleeper, '{MARK}'])\n"
        "time.sleep({})\n"
    )
    assert run_program(spread.format(0.5), LIMITS).succeeded
    assert not is_running(MARK)
    assert run_program(spread.format(600), replace(SHORT, wall_seconds=2)).ended == "clock"
    assert not is_running(MARK)


@pytest.mark.skipif(os.getuid() == 0, reason="the kernel limits no processes of root")
def test_program_forks_no_more_than_it_may():
    assert "BlockingIOError" in run_program("import os\nos.fork()", LIMITS).output


@pytest.mark.parametrize("victim", ["os.getppid()", "-1", "0"])
def test_program_that_kills_whom_it_can_kills_nobody_but_itself(isolated, victim):
    outcome = run_program(f"import os, signal\nos.kill({victim}, signal.SIGKILL)", LIMITS)
    assert outcome.ended in ("0", "1", "137")


def test_program_writes_nothing_outside_of_its_folder(isolated, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("whole")
    for attempt in (f"open({str(canary)!r}, 'w')", f"import os; os.remove({str(canary)!r})", "open('/dev/shm/x', 'w')"):
        assert not run_program(attempt, LIMITS).succeeded
    assert canary.read_text() == "whole"
    assert run_program("open('own', 'w').write('x')\nprint(open('own').read())", LIMITS).output == "x\n"


def test_program_can_read_what_its_user_can_read(tmp_path):
    """What is not contained; the documentation says so."""
    (tmp_path / "readable").write_text(MARK)
    assert MARK in run_program(f"print(open({str(tmp_path / 'readable')!r}).read())", LIMITS).output


def test_program_leaves_no_folder_behind(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_program("open('own', 'w').write('x')", LIMITS)
    assert not list(tmp_path.iterdir())


def test_programs_are_refused_without_a_word_on_the_command_line():
    with pytest.raises(ConfigError, match="--allow-code-execution"):
        check_allowed("pass_at_1", False)
    check_allowed("pass_at_1", True)


QUESTION = "Write a function to add two numbers.\nYour code should pass: assert add(1, 2) == 3"


def test_assertions_of_a_prompt():
    assert assertions_of(QUESTION) == ["assert add(1, 2) == 3"]
    assert assertions_of(QUESTION + "\nassert add(0, 0) == 0") == ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]
    assert assertions_of("He will assert his rights.") == []


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("def add(a, b):\n    return a + b", True),
        ("Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds.", True),
        ("def add(a, b):\n    return a + b\n\n### Instruction:\nAnother one", True),
        ("def add(a, b):\n    return a - b", False),
        ("def add(a, b):\n    return", False),
        ("def add(a, b)", False),
        ("import sys\nsys.exit(0)", False),
        ("", False),
    ],
)
def test_program_passes_the_assertions_of_its_prompt_or_not(text, passed):
    assert passes(QUESTION, text) is passed


def test_program_without_assertions_is_not_judged():
    assert passes("Write a function.", "def f(): pass") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("def solution():\n    result = 6 * 7\n    return result", "42"),
        ("x = 6\nanswer = x * 7\nprint('so')", "42"),
        ("print('working')\nprint(6 * 7)", "42"),
        ("```python\nfrom fractions import Fraction\nans = Fraction(1, 3)\n```", "1/3"),
        ("print(1 / 0)", ""),
        ("The answer is 42", "The answer is 42"),
    ],
)
def test_answer_that_a_program_computes(text, answer):
    assert computed_answer(text) == answer


def test_program_is_right_where_it_computes_the_references_answer():
    program = "def solution():\n    return 0.1 + 0.2"
    assert computes_right("How much?", "The answer is 0.3", program) is True
    assert computes_right("How much?", program, "answer = 3 / 10") is True
    assert computes_right("How much?", program, "The answer is 0.3.") is True
    assert computes_right("How much?", "The answer is 4", program) is False
    assert (
        computes_right("Prove it.", "That is so because it is so, and nobody has ever said otherwise.", program) is None
    )


@pytest.mark.parametrize(
    ("printed", "several"),
    [
        ("5 3", "5, 3"),
        ("5.0, 3.0", "5.0, 3.0"),
        ("[5, 3]", "5, 3"),
        ("(5, -3/2)", "5, -3/2"),
        ("{x: 5, y: 3}", "5, 3"),
        ("[(5, 3)]", "5, 3"),
        ("{'x': 5e-05, 'y': 3.}", "5e-05, 3."),
        ("x = 5 y = 3", "5, 3"),
        ("[5]", None),
        ("5,300", None),
        ("5 apples", None),
        ("[sqrt(2), 3]", None),
        ("", None),
    ],
)
def test_several_numbers_that_a_program_prints_are_a_list(printed, several):
    assert numbers_in(printed) == several


@pytest.mark.parametrize(
    ("reference", "line", "right"),
    [
        ("5, 3", "print(3.0, 5.0)", True),
        ("5, 3", "print([5, 3])", True),
        ("5, 3", "print({'x': 5, 'y': 3})", True),
        ("5, 3", "print(5, 4)", False),
        ("5, 3", "print(5)", False),
        ("5", "print(5, 3)", False),
        ("(5, 3)", "print((5, 3))", True),
        ("(5, 3)", "print((3, 5))", False),
        ("(5, 3)", "print(5, 3)", False),
        ("[3, 5]", "print([3, 5])", True),
    ],
)
def test_program_that_computes_several_numbers_is_right_where_the_reference_lists_them(reference, line, right):
    assert computes_right("Find them.", reference, f"import math\n{line}") is right


def test_programs_of_real_data_pass_and_compute_their_own_answers(data_folder):
    def rows(name):
        return [json.loads(line) for line in (data_folder / name).read_text(encoding="utf-8").strip().split("\n")]

    for row in rows("code_train.jsonl")[::150]:
        assert passes(row["instruction"], row["output"]) is True, row
    programs = [row for row in rows("math_train.jsonl") if row["source"] == "gsm_hard_pot"]
    for row in programs[::400]:
        assert computes_right(row["instruction"], row["output"], row["output"]) is True, row
