"""The command `s2l`: plan, run, stage, sweep, submit, report, inspect, gc. `python -m s2l_ray` is the same."""

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from s2l_ray.errors import ConfigError, S2LError
from s2l_ray.experiment import Experiment, Sparse, experiment_of, load_experiment, load_sparse
from s2l_ray.log import STAGE_THREAD, display, without_user_info

INTERRUPTED = 130
"""The exit code says what came of it, not which signal asked: interrupted, and the same command goes on."""
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what `ray job stop`, Slurm and Kubernetes send."""
UNWIND_SECONDS = 2.0
"""How long what was interrupted may take to come to its end: `ray job stop` kills after three."""
_interrupted = threading.Event()
_last_word = threading.Lock()
"""Held by the thread that says what interrupted us, and ends the process."""

Document = Mapping[str, Any]
"""What a command prints with `--json`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 the run failed, 2 config or data are wrong, 130 interrupted."""
    options = _parser().parse_args(arguments)
    display.quiet = bool(options.json)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s2l", description="Which part of this data is worth fine-tuning on?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout and no progress")
        return sub

    def experiment_arguments(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("config", help="YAML file of the experiment")
        sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a value")
        sub.add_argument("--storage", help="where artifacts live; the same as --set storage=...")

    experiment_arguments(command("plan", _plan, "say what is there, what would run, and why"))
    experiment_arguments(command("status", _status, "say how far a run or a sweep is, wherever it runs"))
    run = command("run", _run, "run the experiment, or what is missing of it")
    experiment_arguments(run)
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    stage = command("stage", _run, "run one stage and what it needs")
    stage.add_argument("until", metavar="NAME", help="the stage: a file name under s2l_ray/stages")
    experiment_arguments(stage)
    experiment_arguments(command("sweep", _sweep, "try an experiment with many settings, and say which is best"))
    submit = command("submit", _submit, "run the experiment, or its sweep, as a job of a Ray cluster, and follow it")
    experiment_arguments(submit)
    submit.add_argument("--until", metavar="STAGE", help="stop after this stage")
    submit.add_argument("--address", metavar="URL", help="the cluster's dashboard; else RAY_API_SERVER_ADDRESS")
    submit.add_argument("--runtime-env", metavar="FILE", help="YAML file of Ray's runtime environment for the job")
    submit.add_argument("--no-wait", action="store_true", help="submit it and return")
    report = command("report", _report, "write the report of a finished run or sweep anew, and say where it is")
    experiment_arguments(report)
    inspect = command("inspect", _inspect, "show an artifact: its summary, inputs and files")
    inspect.add_argument("folder", help="folder of an artifact, {storage}/{artifact}/{fingerprint}, or of a storage")
    gc = command("gc", _gc, "remove what cut-short runs left behind")
    gc.add_argument("--storage", default="./.s2l", help="the storage to clean")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


def _overrides(options: argparse.Namespace) -> list[str]:
    storage = [f"storage={json.dumps(options.storage, ensure_ascii=False)}"] if options.storage else []
    return [*options.set, *storage]


def _laid_out(options: argparse.Namespace) -> tuple[Sparse, Experiment]:
    """Return a file and its arms; of a sweep, its trials."""
    from s2l_ray.sweep import lay_out

    sparse = load_sparse(options.config, _overrides(options))
    return sparse, lay_out(sparse).experiment if sparse.sweep else experiment_of(sparse)


def _plan(options: argparse.Namespace) -> Document:
    from s2l_ray.digests import DigestCache
    from s2l_ray.graph import examine
    from s2l_ray.plan import build_pipeline
    from s2l_ray.storage import Storage

    sparse, experiment = _laid_out(options)
    storage = Storage.at(experiment.shared.storage)
    pipeline = build_pipeline(experiment, with_report=not sparse.sweep)
    states = list(examine(pipeline, storage, DigestCache(storage)))
    rows = [
        {
            "artifact": pipeline.label(state.node),
            "stage": state.node.stage,
            "state": "cached" if state.artifact else "will run",
            "why": state.artifact.uri if state.artifact else state.why,
        }
        for state in states
    ]
    display.table(["artifact", "stage", "state", "why"], [list(row.values()) for row in rows])
    missing = sum(state.artifact is None for state in states)
    verb = "sweep" if sparse.sweep else "run"
    display.say(f"{len(states) - missing} cached, {missing} to run. Next: s2l {verb} {options.config}")
    return {"storage": storage.uri, "nodes": rows}


def _status(options: argparse.Namespace) -> Document:
    from s2l_ray.plan import build_pipeline
    from s2l_ray.status import status
    from s2l_ray.storage import Storage

    sparse, experiment = _laid_out(options)
    storage = Storage.at(experiment.shared.storage)
    lines = [line.as_json() for line in status(build_pipeline(experiment, with_report=not sparse.sweep), storage)]
    display.table(["artifact", "stage", "state", "says"], [list(line.values()) for line in lines])
    count = Counter(line["state"] for line in lines)
    display.say(f"{count['done']} done, {count['at work']} at work, {count['to come']} to come")
    return {"storage": storage.uri, "nodes": lines}


def _run(options: argparse.Namespace) -> Document:
    from s2l_ray.plan import build_pipeline, fetch_models
    from s2l_ray.stages.run import Runner
    from s2l_ray.storage import Storage
    from s2l_ray.tracking import check_trackers

    experiment = load_experiment(options.config, _overrides(options))
    storage = Storage.at(experiment.shared.storage)
    check_trackers(experiment.shared.tracking)
    fetch_models(experiment)
    pipeline = build_pipeline(experiment, with_report=True)
    if options.until:
        pipeline = pipeline.until(options.until)
    result = Runner(pipeline, storage, experiment.shared.resources).run()
    from s2l_ray.summary import RunSummary

    summary = RunSummary(experiment, pipeline, result, storage)
    summary.save()
    summary.show()
    summary.track()
    return summary.as_json()


def _sweep(options: argparse.Namespace, run_missing: bool = True) -> Document:
    from s2l_ray.plan import fetch_models
    from s2l_ray.stages.run_sweep import run_sweep
    from s2l_ray.storage import Storage
    from s2l_ray.summary import SweepSummary
    from s2l_ray.sweep import load_sweep

    sweep = load_sweep(options.config, _overrides(options))
    fetch_models(sweep.experiment)
    finished = run_sweep(sweep, Storage.at(sweep.shared.storage), run_missing=run_missing)
    summary = SweepSummary(finished)
    summary.show()
    return summary.as_json()


def _submit(options: argparse.Namespace) -> Document:
    from s2l_ray.storage import check_outlives_job
    from s2l_ray.strict_yaml import read_yaml

    sparse, experiment = _laid_out(options)
    check_outlives_job(experiment.shared.storage)
    config = os.path.relpath(options.config)
    if config.startswith(os.pardir):
        raise ConfigError(
            f"{options.config} lies outside the current directory, which is all that the job gets. "
            "Submit from a folder that holds the file and what it names."
        )
    words = ["python", "-m", "s2l_ray", "sweep" if sparse.sweep else "run", config]
    words += [word for line in options.set for word in ("--set", line)]
    words += ["--storage", options.storage] if options.storage else []
    words += ["--until", options.until] if options.until else []
    runtime_env = read_yaml(options.runtime_env) if options.runtime_env else {}
    if not isinstance(runtime_env, dict):
        raise ConfigError(f"{options.runtime_env}: found {runtime_env!r}, expected keys such as `env_vars`.")
    if options.address:
        os.environ["RAY_API_SERVER_ADDRESS"] = options.address  # where it is set Ray listens to nothing else
    elif not os.environ.get("RAY_API_SERVER_ADDRESS") and not os.environ.get("RAY_ADDRESS"):
        # Ray would take whatever cluster it finds on this machine.
        raise ConfigError(
            "submit to which cluster? Expected --address, RAY_API_SERVER_ADDRESS or RAY_ADDRESS: the URL of its "
            "dashboard, e.g. http://127.0.0.1:8265 once its port is forwarded here."
        )
    from s2l_ray.stages.submit import submit

    return submit(words, runtime_env, wait=not options.no_wait)


def _report(options: argparse.Namespace) -> Document:
    from s2l_ray.digests import DigestCache
    from s2l_ray.graph import examine
    from s2l_ray.plan import build_pipeline
    from s2l_ray.storage import Storage

    sparse = load_sparse(options.config, _overrides(options))
    if sparse.sweep:
        return _sweep(options, run_missing=False)
    experiment = experiment_of(sparse)
    storage = Storage.at(experiment.shared.storage)
    pipeline = build_pipeline(experiment, with_report=True)
    missing = [
        pipeline.label(state.node)
        for state in examine(pipeline, storage, DigestCache(storage))
        if state.artifact is None and state.node.stage not in ("diagnose_selection", "write_report")
    ]
    if missing:
        raise ConfigError(
            f"there is nothing to report yet: {storage.uri} lacks {', '.join(missing[:3])} of this experiment. "
            f"Run it with `s2l run {options.config}`, which ends with the report."
        )
    return _run(argparse.Namespace(**vars(options), until=None))


def _inspect(options: argparse.Namespace) -> Document:
    from s2l_ray.summary import inspect_folder

    data = inspect_folder(options.folder)
    for key, value in data.items():
        if isinstance(value, Mapping):
            display.say(f"{key}:")
            for name, item in value.items():
                display.say(f"  {name}: {item}")
        else:
            display.say(f"{key}: {value}")
    return data


def _gc(options: argparse.Namespace) -> Document:
    from s2l_ray.attempts import orphans
    from s2l_ray.storage import Storage

    storage = Storage.at(options.storage)
    found = orphans(storage)
    for orphan in found:
        display.say(f"{'would remove' if options.dry_run else 'removing'} {storage.uri_of(*orphan)}")
        if not options.dry_run:
            storage.delete_folder(*orphan)
    display.say(f"{len(found)} abandoned folder{'s' if len(found) != 1 else ''}")
    return {"removed": ["/".join(o) for o in found], "dry_run": options.dry_run}
