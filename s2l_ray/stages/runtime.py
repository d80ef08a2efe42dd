"""Ray: joining or starting it, and leaving it."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from s2l_ray.config import ResourcesConfig
from s2l_ray.errors import ConfigError, StageFailed
from s2l_ray.stages.capacity import check_capacity

NOISE = (
    *("ray.data", "ray.data._internal.progress", "ray.train", "ray.tune", "ray._private.authentication"),
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"),
)
"""Loggers of Ray that speak of its inner life in front of the user; their errors still come through."""

SETTINGS = {
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a stage that is cut off would start another Ray
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # a spot node's notice can be as short as half a minute
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new output prints whatever `verbose` says
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # logs that nobody reads
}
"""Ray's switches that are environment variables; what the user has set stays."""

LOCAL_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a worker that reports a checkpoint waits to be asked, 2 s at most
}
"""Those for a Ray of a single machine."""

_started_here = threading.Event()


def quieten() -> None:
    """Silence Ray's notices, unless S2L_VERBOSE is set; errors and tracebacks stay."""
    for name in NOISE if not os.environ.get("S2L_VERBOSE") else ():
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def building_quietly() -> Iterator[None]:
    """Keep Ray as quiet as it was while it builds a processor of language models, unless S2L_VERBOSE is set.

    That calls `ray.init` again, which says so and sets Ray's level of logging anew; and each of its loggers takes a
    handler of its own where the one above them has none.
    """
    ray_logger, worker, models = (logging.getLogger(name) for name in ("ray", "ray._private.worker", "ray.llm"))
    level = ray_logger.level
    if not os.environ.get("S2L_VERBOSE"):
        worker.setLevel(logging.ERROR)
        models.setLevel(logging.ERROR)
        models.addHandler(logging.NullHandler())
    try:
        yield
    finally:
        worker.setLevel(logging.NOTSET)
        ray_logger.setLevel(level)


def connect(resources: ResourcesConfig) -> bool:
    """Join the cluster that config or `RAY_ADDRESS` names, else start a local Ray; a Ray that is there is used.

    Returns:
        Whether it is ours to leave with `disconnect`.

    Raises:
        ConfigError: the cluster cannot be reached, or cannot hold what the config asks for.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        check_capacity(resources)
        return False
    address = resources.cluster
    verbose = bool(os.environ.get("S2L_VERBOSE"))
    quieten()
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": verbose}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **options)
        else:
            for name, value in LOCAL_SETTINGS.items():
                os.environ.setdefault(name, value)
            # Idle workers are kept for the next stage: what they have imported took seconds.
            system = {"num_workers_soft_limit": 4 * (os.cpu_count() or 1)}
            ray.init(address="local", include_dashboard=False, _system_config=system, **options)
            _started_here.set()
    except SystemExit:
        # While it starts, Ray answers SIGTERM in its own way.
        signal.signal(signal.SIGTERM, on_sigterm)
        signal.raise_signal(signal.SIGTERM)
        raise
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address or 'this machine'}: {error}. "
            "Check `resources.address` and RAY_ADDRESS, or unset both to run locally."
        ) from error
    except Exception as error:
        # The bare class is what Ray raises where its processes do not come up in time, as on a machine under load.
        raise StageFailed(
            f"Ray did not start: {error} Run the same command again when the machine is less busy."
        ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray leaves a handler of its own behind, which prints a stack and dies.
        signal.signal(signal.SIGTERM, on_sigterm)
    check_capacity(resources)
    return True


def disconnect() -> None:
    """Leave the cluster, or end the local Ray."""
    ray.shutdown()
    _started_here.clear()


def ends_with_us() -> bool:
    """Return whether this process has started the Ray that it is connected to."""
    return _started_here.is_set()


def kill_workers() -> None:
    """Kill what a local Ray has started, for a process that ends without `disconnect`.

    Ray's own processes end with this one; those that they started would look for them for up to a minute.
    """
    import psutil  # after ray, which brings it

    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            for each in child.children(recursive=True):
                each.kill()


def limit_threads(threads: int) -> None:
    """Give the arithmetic libraries of this process a number of threads: Ray's own default is one for any worker."""
    import sys

    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
