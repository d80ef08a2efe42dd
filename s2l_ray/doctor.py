"""What this machine is, and what would go wrong on it: each finding with what to do about it.

Nothing is changed but for a test file in the storage that is removed at once.
"""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from s2l_ray.config import ResourcesConfig
from s2l_ray.errors import ConfigError, S2LError
from s2l_ray.experiment import Experiment
from s2l_ray.extras import missing_packages
from s2l_ray.judging.execution import NOT_ISOLATED, is_isolated
from s2l_ray.judging.metrics import answer_metrics, check_metrics
from s2l_ray.log import without_user_info
from s2l_ray.plan import build_pipeline
from s2l_ray.storage import Storage

PACKAGE = "s2l-ray"
GIB = 2**30
LEAST_MEMORY = 4 * GIB
"""What the quickstart takes with Ray's own processes, and some room."""
LEAST_DISK = 2 * GIB
LEAST_SHARED_MEMORY = 2**30
LEAST_OPEN_FILES = 4096
LONGEST_SOCKET_FOLDER = 60
"""Ray puts sockets some 45 characters below the temporary folder, and a socket's path has 107 at most."""
ADDRESS_SECONDS = 3.0
TOKENS = {"HF_TOKEN": "the Hugging Face hub", "RAY_AUTH_TOKEN": "a Ray cluster", "RAY_AUTH_TOKEN_PATH": "a Ray cluster"}

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `problem` where a run would fail, `note` where it may surprise.
        advice: what to do; empty where nothing is to be done.
    """

    topic: str
    state: State
    found: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return asdict(self)


def examine_machine(storage: str) -> Iterator[Finding]:
    """Look at versions, processors, memory, disks, GPUs, the storage, and what the environment says of other machines.

    Args:
        storage: where artifacts are to live.
    """
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    yield _compiler()
    yield _processors()
    yield _memory()
    yield from _shared_memory()
    yield _open_files()
    yield _temporary_folder()
    yield from _gpus()
    yield from _storage(storage)
    yield from _hub()
    yield from _cluster()


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what the package asks for."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(PACKAGE) or []:
        asked = Requirement(line)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(asked.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(asked.name, "problem", "not installed", f"pip install '{asked.name}{asked.specifier}'")
            continue
        if asked.specifier.contains(version, prereleases=True):
            yield Finding(asked.name, "ok", version)
        else:
            advice = f"pip install '{asked.name}{asked.specifier}'"
            yield Finding(asked.name, "problem", f"{version}, expected {asked.specifier}", advice)


def _compiler() -> Finding:
    try:
        return Finding("numba", "ok", importlib.metadata.version("numba"))
    except importlib.metadata.PackageNotFoundError:
        advice = "pip install 's2l-ray[fast]' clusters more than 65,536 rows in a third of the time, and alike."
        return Finding("numba", "note", "not installed", advice)


def _processors() -> Finding:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota = _cgroup_number("cpu.max")
    if quota is not None and quota[1]:
        usable = min(usable, max(1, round(quota[0] / quota[1])))
    if usable < cores:
        advice = f"Ray takes all {cores} for its own: start it with `ray start --head --num-cpus {usable}`."
        return Finding("processors", "note", f"{usable} of {cores} may be used", advice)
    return Finding("processors", "ok", str(cores))


def _cgroup_number(name: str) -> tuple[int, int] | None:
    """Return the numbers of a control group's file; None where there is no limit."""
    try:
        words = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").split()
        return int(words[0]), int(words[1]) if len(words) > 1 else 0
    except (OSError, ValueError, IndexError):
        return None


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit = _cgroup_number("memory.max")
    if limit is not None and limit[0] < total:
        used = _cgroup_number("memory.current") or (0, 0)
        free, total = min(free, limit[0] - used[0]), limit[0]
    found = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    if free < LEAST_MEMORY:
        advice = (
            f"The quickstart takes about {LEAST_MEMORY / GIB:.0f} GiB. Close other programs, or take another machine."
        )
        return Finding("memory", "problem", found, advice)
    return Finding("memory", "ok", found)


def _shared_memory() -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    if free < LEAST_SHARED_MEMORY:
        advice = "Ray's object store then lies on the disk. In a container: docker run --shm-size=2g."
        yield Finding("shared memory", "note", f"{free / GIB:.1f} GiB free in {folder}", advice)
    else:
        yield Finding("shared memory", "ok", f"{free / GIB:.1f} GiB free in {folder}")


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_OPEN_FILES:
        return Finding("open files", "note", f"{soft} at most", f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}")
    return Finding("open files", "ok", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} at most")


def _temporary_folder() -> Finding:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    found = f"{folder}, {free / GIB:.1f} GiB free"
    if len(folder) > LONGEST_SOCKET_FOLDER:
        return Finding("temporary folder", "problem", found, "Its path is too long for Ray's sockets: RAY_TMPDIR=/tmp")
    if free < LEAST_DISK:
        return Finding("temporary folder", "problem", found, "Make room, or name another folder: RAY_TMPDIR=...")
    return Finding("temporary folder", "ok", found)


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            advice = "Install torch for the driver: uv pip install --torch-backend=auto torch"
            yield Finding("GPUs", "problem", f"the driver is there, but torch {torch.__version__} sees none", advice)
        else:
            yield Finding("GPUs", "ok", "none; everything runs on CPUs")
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = f"{about.name}, {free / GIB:.0f} GiB free of {total / GIB:.0f}"
        yield Finding(f"GPU {index}", "ok" if free > total / 2 else "note", found)
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding(
            "bf16", "note", "not supported", "Set `precision: fp32` for what runs on it; GPUs compute in bf16 else."
        )
    if torch.cuda.device_count() > 1 and not torch.distributed.is_nccl_available():
        yield Finding("NCCL", "problem", "torch was built without it", "Install torch for CUDA from PyPI.")


def _storage(uri: str) -> Iterator[Finding]:
    shown = without_user_info(uri)
    try:
        storage = Storage.at(uri)
        existed = not storage.is_local or Path(storage.uri).exists()
        storage.check_writable()
        if not existed:
            Path(storage.uri).rmdir()
    except (S2LError, OSError) as error:
        yield Finding("storage", "problem", shown, str(error))
        return
    if not storage.is_local:
        yield Finding("storage", "ok", f"{shown} can be written")
        return
    place = next(folder for folder in (Path(storage.uri), *Path(storage.uri).parents) if folder.exists())
    free = shutil.disk_usage(place).free
    found = f"{shown} can be written, {free / GIB:.1f} GiB free"
    if free < LEAST_DISK:
        yield Finding(
            "storage", "problem", found, "Checkpoints take T times the proxy's size, and the target's: make room."
        )
    else:
        yield Finding("storage", "ok", found)


def _hub() -> Iterator[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    known = [f"{name} is set, for {place}" for name, place in TOKENS.items() if os.environ.get(name)]
    yield Finding("tokens", "ok", "; ".join(known) or "none is set: public models and data only, no guarded cluster")
    if offline:
        yield Finding("hub", "note", "HF_HUB_OFFLINE is set", "Models and data sets must be on this machine.")


def _cluster() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        yield Finding("cluster", "ok", "RAY_ADDRESS is not set: Ray starts on this machine")
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    if address in ("auto", "local") or not parts.hostname:
        yield Finding("cluster", "note", f"RAY_ADDRESS is {address}", "A run joins whatever Ray it finds here.")
        return
    try:
        with socket.create_connection((parts.hostname, parts.port or 6379), timeout=ADDRESS_SECONDS):
            yield Finding("cluster", "ok", f"something answers at {without_user_info(address)}")
    except OSError as error:
        advice = "Start it, forward its port, or unset RAY_ADDRESS to run on this machine."
        yield Finding("cluster", "problem", f"nothing answers at {without_user_info(address)}: {error}", advice)


def examine_experiment(experiment: Experiment) -> Iterator[Finding]:
    """Look at what an experiment needs from outside: its input, its packages and its models."""
    try:
        pipeline = build_pipeline(experiment)
    except S2LError as error:
        yield Finding("experiment", "problem", str(error))
        return
    yield Finding("experiment", "ok", f"{len(experiment.arms)} arms, {len(pipeline.nodes)} artifacts")
    for missing in dict.fromkeys(each for arm in experiment.arms.values() for each in missing_packages(arm)):
        yield Finding("package", "note" if missing.may_be_elsewhere else "problem", missing.asked, missing.advice)
    yield from _demands(experiment.shared.resources)
    yield from _metrics(experiment)
    sections = [each for arm in experiment.arms.values() for each in (arm.proxy, arm.target, arm.evaluate.encoder)]
    models = {section.model for section in sections if section is not None}
    for model in sorted(name for name in models if isinstance(name, str)):
        yield _model(model)


def _demands(resources: ResourcesConfig) -> Iterator[Finding]:
    """Compare what stages ask for with what a Ray has that starts here; a cluster is looked at when a run joins it."""
    if resources.cluster is not None:
        return
    import torch

    have = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    findings = [
        Finding(
            "resources", "problem",
            f"resources.{name} asks for {amount:g} {kind} in all, a Ray that starts here has {have.get(kind, 0.0):g}",
            "Ask for less, or run it on a cluster that has them: RAY_ADDRESS, or s2l submit.",
        )
        for name, demand in resources.demands.items()
        for kind, amount in demand.total.items()
        if kind != "memory" and amount > have.get(kind, 0.0)
    ]  # fmt: skip
    findings += [
        Finding("resources", "problem", f"resources.{name} asks for nodes with labels, and a Ray that starts here has "
                "none", "Leave labels and market out, or run it on a cluster that has them.")
        for name, demand in resources.demands.items()
        if demand.selector
    ]  # fmt: skip
    yield from findings or [Finding("resources", "ok", "this machine has what every stage asks for")]


def _metrics(experiment: Experiment) -> Iterator[Finding]:
    try:
        # Whether programs may run is for the command line of a run to say.
        check_metrics(experiment.metrics, allow_code_execution=True)
    except ConfigError as error:
        yield Finding("metrics", "problem", str(error))
        return
    if any(metric.runs_programs for metric in answer_metrics(experiment.metrics).values()):
        yield Finding("programs", "ok", "isolated") if is_isolated() else Finding("programs", "note", NOT_ISOLATED)


def _model(model: str) -> Finding:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Finding("model", "ok", f"{folder} is a folder here")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError as error:
        return Finding("model", "problem", f"{model} is neither a folder nor an id of the hub", str(error))
    if cached:
        return Finding("model", "ok", f"{model} was fetched before")
    return Finding("model", "note", f"{model} is not on this machine", "It will be fetched from the hub at the start.")


def check(findings: list[Finding]) -> None:
    """Raise where a run would fail.

    Raises:
        ConfigError: there is a problem among the findings.
    """
    problems = [finding for finding in findings if finding.state == "problem"]
    if problems:
        named = ", ".join(finding.topic for finding in problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"{count} on this machine: {named}. What to do stands beside each, above.")
