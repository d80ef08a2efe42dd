"""What each command of `s2l` does with its arguments. Heavy modules are imported where they are needed."""

import argparse
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2l_ray.config import InputPath
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import Experiment, Sparse, experiment_of, load_experiment, load_sparse
from s2l_ray.log import display

if TYPE_CHECKING:
    from s2l_ray.artifacts import Artifact
    from s2l_ray.graph import Node, Pipeline
    from s2l_ray.storage import Storage

Document = Mapping[str, Any]
"""What a command prints with `--json`."""


def overrides(options: argparse.Namespace) -> list[str]:
    """Return the `--set` lines, with `--storage` as one of them."""
    storage = [f"storage={json.dumps(options.storage, ensure_ascii=False)}"] if options.storage else []
    return [*options.set, *storage]


def _same_again(options: argparse.Namespace, config: str | None = None) -> list[str]:
    """Return the config and what was overridden in it, as words for another command."""
    sets = [word for line in options.set for word in ("--set", line)]
    return [config or options.config, *sets, *(["--storage", options.storage] if options.storage else [])]


def laid_out(options: argparse.Namespace) -> tuple[Sparse, Experiment]:
    """Return a file and its arms; of a sweep, its trials."""
    from s2l_ray.sweep import lay_out

    sparse = load_sparse(options.config, overrides(options))
    return sparse, lay_out(sparse).experiment if sparse.sweep else experiment_of(sparse)


def _check_metrics(experiment: Experiment, options: argparse.Namespace) -> None:
    from s2l_ray.judging.execution import NOT_ISOLATED, is_isolated
    from s2l_ray.judging.metrics import answer_metrics, check_metrics

    check_metrics(experiment.metrics, allow_code_execution=options.allow_code_execution)
    if any(metric.runs_programs for metric in answer_metrics(experiment.metrics).values()) and not is_isolated():
        display.warn(NOT_ISOLATED)


def init(options: argparse.Namespace) -> Document:
    """Look at data and write a first config for it."""
    from s2l_ray.starter import first_config, look_at

    path = Path(options.output)
    if path.exists():
        raise ConfigError(f"{path} exists. Name another file with --output, or remove that one.")
    look = look_at(options.data, _columns(options.columns), options.format)
    text = first_config(look, proxy=options.proxy, target=options.target)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file with --output.") from error
    display.say(text)
    display.say(f"written to {path}. Next: {shlex.join(['s2l', 'plan', str(path)])}")
    return {"config": str(path), "rows": len(look.examples), "bad_rows": len(look.rejected), "is_all": look.is_all}


def _columns(text: str | None) -> dict[str, str | None]:
    from s2l_ray.strict_yaml import parse_yaml

    found = parse_yaml(text, origin="--columns") if text else {}
    if not isinstance(found, dict) or not _are_names(found):
        raise ConfigError(
            f"--columns: found {text}, expected our names with the data's: '{{prompt: task, completion: answer}}'."
        )
    return found


def _are_names(columns: Mapping[Any, Any]) -> bool:
    return all(isinstance(our, str) and isinstance(column, str | None) for our, column in columns.items())


def doctor(options: argparse.Namespace) -> Document:
    """Say what this machine has, and what would go wrong on it."""
    from s2l_ray.doctor import check, examine_experiment, examine_machine

    experiment = laid_out(options)[1] if options.config else None
    storage = experiment.shared.storage if experiment else options.storage or "./.s2l"
    findings = list(examine_machine(storage))
    findings += examine_experiment(experiment) if experiment else []
    for finding in findings:
        display.say(f"{finding.state:<8} {finding.topic}: {finding.found}")
        if finding.advice:
            display.say(f"{'':<8} -> {finding.advice}")
    if not options.json:
        check(findings)
        following = ["plan", *_same_again(options)] if experiment else ["init", "DATA"]
        display.say(f"no problem found. Next: {shlex.join(['s2l', *following])}")
    return {"findings": [finding.as_json() for finding in findings]}


def plan(options: argparse.Namespace) -> Document:
    """Say what is there, what would run, and why."""
    from s2l_ray.digests import DigestCache
    from s2l_ray.extras import check_packages
    from s2l_ray.graph import examine
    from s2l_ray.judging.metrics import check_metrics
    from s2l_ray.plan import build_pipeline
    from s2l_ray.storage import Storage

    sparse, experiment = laid_out(options)
    check_packages(experiment)
    # Whether programs may run is for the command line of a run to say.
    check_metrics(experiment.metrics, allow_code_execution=True)
    storage = Storage.at(experiment.shared.storage)
    pipeline = build_pipeline(experiment, with_report=not sparse.sweep)
    tokens = _made_tokens(pipeline, storage, experiment) if options.probe else {}
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
    display.table(["artifact", "stage", "state", "why"], [list(row.values()) for row in rows], ends_in_text=True)
    for state in states:
        if state.artifact is not None:
            pipeline.check(state.node, state.artifact)  # a run would refuse it just so
    missing = [state.node for state in states if state.artifact is None]
    document: dict[str, Any] = {"storage": storage.uri, "nodes": rows}
    if options.probe:
        document["estimates"] = _estimates(pipeline, missing, tokens, experiment)
    following = shlex.join(["s2l", "sweep" if sparse.sweep else "run", *_same_again(options)])
    display.say(f"{len(states) - len(missing)} cached, {len(missing)} to run. Next: {following}")
    return document


def _made_tokens(pipeline: "Pipeline", storage: "Storage", experiment: Experiment) -> "Mapping[str, Artifact]":
    """Make what the plan needs up to its tokens, which a run takes over; return it by node key. Ray stays connected."""
    from s2l_ray.plan import fetch_models
    from s2l_ray.stages import runtime
    from s2l_ray.stages.run import Runner

    fetch_models(experiment)
    resources = experiment.shared.resources
    runtime.connect(resources)
    return Runner(pipeline.until("tokenize_examples"), storage, resources).run().artifacts


def _estimates(
    pipeline: "Pipeline", missing: "list[Node]", tokens: "Mapping[str, Artifact]", experiment: Experiment
) -> list[dict[str, Any]]:
    """Time every model for some seconds, and show what those of the plan will take."""
    from s2l_ray.estimates import table_of
    from s2l_ray.stages import runtime
    from s2l_ray.stages.probe import probe

    found = probe(pipeline, missing, tokens, experiment.shared.resources)
    runtime.disconnect()
    if found:
        display.table(*table_of(found))
        display.say("Timed on one worker each; the start of processes, reading and clustering come on top.")
    return [estimate.as_json() for estimate in found]


def status(options: argparse.Namespace) -> Document:
    """Say how far a run or a sweep is, wherever it runs."""
    from s2l_ray.plan import build_pipeline
    from s2l_ray.status import status
    from s2l_ray.storage import Storage

    sparse, experiment = laid_out(options)
    storage = Storage.at(experiment.shared.storage)
    lines = [line.as_json() for line in status(build_pipeline(experiment, with_report=not sparse.sweep), storage)]
    display.table(["artifact", "stage", "state", "says"], [list(line.values()) for line in lines], ends_in_text=True)
    count = Counter(line["state"] for line in lines)
    display.say(f"{count['done']} done, {count['at work']} at work, {count['to come']} to come")
    return {"storage": storage.uri, "nodes": lines}


def run(options: argparse.Namespace, run_missing: bool = True) -> Document:
    """Run the experiment, or what is missing of it."""
    from s2l_ray.extras import check_packages
    from s2l_ray.plan import build_pipeline, fetch_models
    from s2l_ray.stages.run import Runner
    from s2l_ray.storage import Storage

    experiment = load_experiment(options.config, overrides(options))
    storage = Storage.at(experiment.shared.storage)
    check_packages(experiment)
    if run_missing:
        _check_metrics(experiment, options)
    fetch_models(experiment)
    pipeline = build_pipeline(experiment, with_report=True, allow_code_execution=options.allow_code_execution)
    if options.until:
        pipeline = pipeline.until(options.until)
    result = Runner(pipeline, storage, experiment.shared.resources).run()
    from s2l_ray.summary import RunSummary

    summary = RunSummary(experiment, pipeline, result, storage)
    summary.save()
    summary.show()
    summary.track()
    return summary.as_json()


def extend(options: argparse.Namespace) -> Document:
    """Take rows that came later into a subset, by its proxy and its clusters; nothing is trained."""
    from s2l_ray.digests import DigestCache
    from s2l_ray.experiment import parse_override
    from s2l_ray.extension import arm_to_extend, build_extension
    from s2l_ray.graph import examine
    from s2l_ray.stages.run import Runner
    from s2l_ray.storage import Storage
    from s2l_ray.summary import ExtensionSummary

    experiment = load_experiment(options.config, overrides(options))
    budget = parse_override(f"select.budget={options.budget}")[1] if options.budget else None
    rows = InputPath(
        path=options.rows, source=options.source, format=options.format, columns=_columns(options.columns) or None
    )
    pipeline = build_extension(experiment, arm_to_extend(experiment, options.arm), rows, budget)
    storage = Storage.at(experiment.shared.storage)
    states = {state.node.artifact: state for state in examine(pipeline, storage, DigestCache(storage))}
    if states["subset"].artifact is None:
        raise ConfigError(
            f"{storage.uri} holds no subset of this experiment to extend ({states['subset'].why}). Expected the config "
            f"and the data of a run that is there; make one with `{shlex.join(['s2l', 'run', *_same_again(options)])}`."
        )
    summary = ExtensionSummary(pipeline, Runner(pipeline, storage, experiment.shared.resources).run())
    summary.show()
    return summary.as_json()


def sweep(options: argparse.Namespace, run_missing: bool = True) -> Document:
    """Try an experiment with many settings, and say which is best."""
    from s2l_ray.extras import check_packages
    from s2l_ray.plan import fetch_models
    from s2l_ray.stages.run_sweep import run_sweep
    from s2l_ray.storage import Storage
    from s2l_ray.summary import SweepSummary
    from s2l_ray.sweep import load_sweep

    sweep = load_sweep(options.config, overrides(options))
    if run_missing:
        _check_metrics(sweep.experiment, options)
    check_packages(sweep.experiment)
    fetch_models(sweep.experiment)
    finished = run_sweep(
        sweep,
        Storage.at(sweep.shared.storage),
        run_missing=run_missing,
        allow_code_execution=options.allow_code_execution,
    )
    summary = SweepSummary(finished)
    summary.show()
    return summary.as_json()


def submit(options: argparse.Namespace) -> Document:
    """Run the experiment, or its sweep, as a job of a Ray cluster, and follow it."""
    from s2l_ray.storage import check_outlives_job
    from s2l_ray.strict_yaml import read_yaml

    sparse, experiment = laid_out(options)
    check_outlives_job(experiment.shared.storage)
    config = os.path.relpath(options.config)
    if config.startswith(os.pardir):
        raise ConfigError(
            f"{options.config} lies outside the current directory, which is all that the job gets. "
            "Submit from a folder that holds the file and what it names."
        )
    words = ["python", "-m", "s2l_ray", "sweep" if sparse.sweep else "run", *_same_again(options, config)]
    words += ["--until", options.until] if options.until else []
    words += ["--allow-code-execution"] if options.allow_code_execution else []
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


def report(options: argparse.Namespace) -> Document:
    """Write the report of a finished run or sweep anew, and say where it is."""
    from s2l_ray.digests import DigestCache
    from s2l_ray.graph import examine
    from s2l_ray.plan import build_pipeline
    from s2l_ray.storage import Storage

    options = argparse.Namespace(**vars(options), until=None, allow_code_execution=False)
    sparse = load_sparse(options.config, overrides(options))
    if sparse.sweep:
        return sweep(options, run_missing=False)
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
            f"Run it with `{shlex.join(['s2l', 'run', *_same_again(options)])}`, which ends with the report."
        )
    return run(options, run_missing=False)


def gc(options: argparse.Namespace) -> Document:
    """Remove what cut-short runs left behind."""
    from s2l_ray.attempts import orphans, remove_orphan
    from s2l_ray.storage import Storage

    storage = Storage.at(options.storage)
    if not storage.list_folders():
        display.warn(f"{storage.uri} holds nothing; is it the storage of your config?")
    found = orphans(storage)
    removed = []
    for orphan in found:
        if options.dry_run or remove_orphan(storage, orphan):
            removed.append(orphan)
            display.say(f"{'would remove' if options.dry_run else 'removed'} {storage.uri_of(*orphan)}")
        else:
            display.say(f"a run has taken up {storage.uri_of(*orphan)}; it stays")
    display.say(f"{len(removed)} abandoned folder{'s' if len(removed) != 1 else ''}")
    return {"removed": ["/".join(o) for o in removed], "dry_run": options.dry_run}
