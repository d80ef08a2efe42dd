"""The command `s2l`: its arguments, signals and exit codes. `python -m s2l_ray` is the same.

What each command does stands in `commands`.
"""

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, get_args

from s2l_ray import commands, looking
from s2l_ray.commands import Document
from s2l_ray.config import FormatName
from s2l_ray.errors import S2LError
from s2l_ray.log import STAGE_THREAD, display, without_user_info

FORMATS = get_args(FormatName)[1:]
"""How rows may be laid out, where it is not told by their columns."""
INTERRUPTED = 130
"""The exit code says what came of it, not which signal asked: interrupted, and the same command goes on."""
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what `ray job stop`, Slurm and Kubernetes send."""
UNWIND_SECONDS = 2.0
"""How long what was interrupted may take to come to its end: `ray job stop` kills after three."""
_interrupted = threading.Event()
_last_word = threading.Lock()
"""Held by the thread that says what interrupted us, and ends the process."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 the run failed, 2 config or data are wrong, 130 interrupted."""
    options = _parser().parse_args(arguments)
    display.quiet, display.stdout = bool(options.json), sys.stdout
    try:
        # Ray prints notices of its own, which have no place in a document.
        with _interruptible(), redirect_stdout(sys.stderr):
            document = options.command(options)
        if options.json:
            print(without_user_info(json.dumps(document)), flush=True)
        code = 0
    except S2LError as error:
        display.error(str(error))
        code = error.exit_code
    except KeyboardInterrupt as interrupt:
        if _interrupted.is_set():
            _last_word.acquire()
        display.error(str(interrupt) or "interrupted. The same command goes on from here.")
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except BaseException:
        # A fault, or the machine: the traceback is what helps.
        if _stages_are_at_work():
            traceback.print_exc()
            _end_process(1)
        raise
    if code and (_stages_are_at_work() or _interrupted.is_set()):
        _end_process(code)
    return code


@contextmanager
def _interruptible() -> Iterator[None]:
    """End in good order at the first signal that asks for it, at once at the second; one that is ignored stays so."""
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, handler)


def _interrupt(number: int, _: object) -> None:
    for each in INTERRUPTS:
        signal.signal(each, signal.SIG_DFL)
    _interrupted.set()
    message = f"interrupted by {signal.Signals(number).name}. The same command goes on from here."
    # Ray may be on its way out by the same signal, and whoever waits for an answer of it waits long.
    last = threading.Timer(UNWIND_SECONDS, _end_unfinished, [message])
    last.daemon = True
    last.start()
    raise KeyboardInterrupt(message)


def _end_unfinished(message: str) -> None:
    if _last_word.acquire(blocking=False):
        display.error(message)
        _end_process(INTERRUPTED)


def _stages_are_at_work() -> bool:
    return any(thread.name.startswith(STAGE_THREAD) for thread in threading.enumerate())


def _end_process(code: int) -> None:
    """End at once, without waiting for what is at work in Ray and cannot be called back.

    What was finished is there for the same command to go on from.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # Before that module is there, or while it is being imported, Ray has started nothing.
    kill_workers = getattr(sys.modules.get("s2l_ray.stages.runtime"), "kill_workers", None)
    if kill_workers is not None:
        kill_workers()
    os._exit(code)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="s2l", description="Which part of this data is worth fine-tuning on?")
    added = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], Document], name: str = "", **more: Any) -> ArgumentParser:
        text = more.get("text") or (function.__doc__ or "").partition("\n")[0]
        sub = added.add_parser(
            name or function.__name__, help=text[:1].lower() + text[1:].rstrip("."), description=text
        )
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout and no progress")
        return sub

    def experiment(sub: ArgumentParser) -> ArgumentParser:
        sub.add_argument("config", help="YAML file of the experiment")
        sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value")
        sub.add_argument("--storage", help="where artifacts live; the same as --set storage=...")
        return sub

    def runs(sub: ArgumentParser) -> ArgumentParser:
        sub.add_argument(
            "--allow-code-execution",
            action="store_true",
            help="let metrics run programs that the target writes; they are contained, but in no sandbox",
        )
        return experiment(sub)

    init = command(commands.init)
    init.add_argument("data", nargs="+", help="file, folder, glob or URI; several are a mixture")
    init.add_argument("--columns", metavar="MAPPING", help="'{instruction: task, output: solution, source: origin}'")
    init.add_argument("--format", choices=FORMATS, metavar="NAME", help=f"one of {', '.join(FORMATS)}")
    init.add_argument("--proxy", metavar="MODEL", help="the small model: a Hugging Face id or a folder")
    init.add_argument("--target", metavar="MODEL", help="the large model")
    init.add_argument("--output", default="s2l.yaml", metavar="FILE", help="where to write it")
    doctor = command(commands.doctor)
    doctor.add_argument("config", nargs="?", help="YAML file of an experiment, to look at what it needs as well")
    doctor.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value")
    doctor.add_argument("--storage", help="where artifacts are to live")
    plan = experiment(command(commands.plan))
    plan.add_argument(
        "--probe", action="store_true", help="make the tokens, time every model, and say how long the rest will take"
    )
    experiment(command(commands.status))
    run = runs(command(commands.run))
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    stage = command(commands.run, "stage", text="Run one stage and what it needs.")
    stage.add_argument("until", metavar="NAME", help="the stage: a file name under s2l_ray/stages")
    runs(stage)
    runs(command(commands.sweep))
    submit = runs(command(commands.submit))
    submit.add_argument("--until", metavar="STAGE", help="stop after this stage")
    submit.add_argument("--address", metavar="URL", help="the cluster's dashboard; else RAY_API_SERVER_ADDRESS")
    submit.add_argument("--runtime-env", metavar="FILE", help="YAML file of Ray's runtime environment for the job")
    submit.add_argument("--no-wait", action="store_true", help="submit it and return")
    experiment(command(commands.report))
    _add_subset_commands(command, experiment)
    settings = command(looking.settings)
    settings.add_argument("path", nargs="?", help="only this part: cluster, select.method")
    inspect = command(looking.inspect)
    inspect.add_argument("folder", help="folder of an artifact, {storage}/{artifact}/{fingerprint}, or of a storage")
    gc = command(commands.gc)
    gc.add_argument("--storage", default="./.s2l", help="the storage to clean")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


def _add_subset_commands(command: Callable[..., ArgumentParser], experiment: Callable[..., ArgumentParser]) -> None:
    """Add what looks at subsets, and takes them along."""
    extend = experiment(command(commands.extend))
    extend.add_argument("--rows", required=True, metavar="DATA", help="the new rows: file, folder, glob or URI")
    extend.add_argument("--source", metavar="NAME", help="source of those that carry none, as in a mixture's entry")
    extend.add_argument("--format", choices=FORMATS, metavar="NAME", help="how they are laid out, likewise")
    extend.add_argument("--columns", metavar="MAPPING", help="what their columns are called, likewise")
    extend.add_argument("--budget", help="how many of them to take; else the share that select.budget says")
    extend.add_argument("--arm", help="the arm whose subset they join, where several could be meant")
    export = command(looking.export)
    export.add_argument(
        "subset",
        nargs="+",
        help="folder of a subset or extension, {storage}/subset/{fingerprint}, or a config's YAML file; and after a "
        "subset the extensions that are to come along in one data set",
    )
    export.add_argument("--to", required=True, help="new folder: a path, a URI, or hf://datasets/owner/name")
    export.add_argument("--public", action="store_true", help="on the hub: let everybody see it")
    export.add_argument("--replace", action="store_true", help="on the hub: replace all that the data set holds")
    export.add_argument("--arm", metavar="NAME", help="of a config with several arms")
    export.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a config's value")
    export.add_argument("--storage", help="of a config: where its artifacts live")
    diff = command(looking.diff)
    diff.add_argument(
        "subset_a", metavar="SUBSET_A", help="folder of a subset or extension, {storage}/subset/{fingerprint}"
    )
    diff.add_argument("subset_b", metavar="SUBSET_B", help="folder of another, in the same storage or not")
    explain = experiment(command(looking.explain))
    of = explain.add_mutually_exclusive_group(required=True)
    of.add_argument(
        "--example",
        metavar="ID",
        help="a row: its example_id, file:line, or its id in the data; one that came later with its extension's folder "
        "as CONFIG",
    )
    of.add_argument("--cluster", metavar="ID", type=int, help="a cluster: its number")
    explain.add_argument("--stratum", metavar="NAME", help="of the cluster, where each stratum has its own")
