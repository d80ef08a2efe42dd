"""Work over blocks of rows whose results the next tasks need: plain Ray tasks, a bounded number of them at a time.

What is done once and leaves files behind is work over `shards`; blocks stay in Ray's object store, on the node that
made them, and what is lost with a node is made again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import ray

from s2l_ray.config import PoolResources
from s2l_ray.errors import S2LError, StageFailed
from s2l_ray.stages.capacity import remote_options

BLOCK_ROWS = 250_000
"""Rows of a block at most; fewer where that gives small data some blocks to share."""
SMALL_BLOCK_ROWS, FEW_BLOCKS = 25_000, 4
LARGE_BLOCK_ROWS, MANY_BLOCKS = 1_000_000, 16
"""More where there would be many blocks: a task costs as much as a pass over 100,000 rows."""
BLOCK_VALUES = 16 * 2**20
"""Numbers of a block at most: hidden states are wider than trajectories."""
RETRIES = 20
"""How often a task is done again whose worker died, or whose result was lost: spot nodes go at any time."""


def rows_at_once(n_rows: int, width: int = 1) -> int:
    """Return how many of some rows, each of `width` numbers, a task is given."""
    usual = min(BLOCK_ROWS, max(SMALL_BLOCK_ROWS, -(-n_rows // FEW_BLOCKS)))
    large = min(LARGE_BLOCK_ROWS, -(-n_rows // MANY_BLOCKS))
    return max(1, min(max(usual, large), BLOCK_VALUES // max(1, width)))


def spans(n_rows: int, at_once: int) -> Iterator[tuple[int, int]]:
    """Cut rows into pieces, by their places: where each starts and stops."""
    return pairwise([*range(0, n_rows, at_once), n_rows])


def each(
    function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], pool: PoolResources, *, returns: int = 1
) -> Iterator[Any]:
    """Run a function on each of some tuples of arguments and yield what it returns, in their order.

    Args:
        function: picklable; runs in tasks.
        arguments: of each call; references among them are resolved by Ray. Large values that calls share are put
            into the object store by the caller.
        pool: what a task asks for, and by its largest number of workers how many are under way.
        returns: of several returned values the first is fetched, and the references of the others come with it, as
            a tuple: the caller alone decides how long these live.

    Raises:
        S2LError: what the function raised.
    """
    task = as_task(function, pool, returns=returns)
    waiting, running = deque[Any](), list[Any]()
    for each_arguments in arguments:
        if len(running) == pool.actors[1]:
            _, running = ray.wait(running, num_returns=1, fetch_local=False)
        waiting.append(task.remote(*each_arguments))
        running.append(_first(waiting[-1]))
        while _first(waiting[0]) not in running:
            yield _fetched(waiting.popleft())
    while waiting:
        yield _fetched(waiting.popleft())


def as_task(function: Callable[..., Any], pool: PoolResources, *, returns: int = 1) -> Any:
    """Return a function as a task of Ray's that asks for what the pool says."""
    options = {"name": function.__name__.strip("_"), "num_returns": returns, "max_retries": RETRIES}
    options |= remote_options(pool)
    # Not within the placement group of a Tune trial, which holds nothing.
    return _remote(function).options(**options, scheduling_strategy="DEFAULT")


@cache
def _remote(function: Callable[..., Any]) -> Any:
    # One for good: each one's code is sent to every worker, which takes longer than many a task.
    return ray.remote(function)


def _first(references: Any) -> Any:
    return references[0] if isinstance(references, list) else references


def _fetched(references: Any) -> Any:
    if not isinstance(references, list):
        return value_of(references)
    return (value_of(references[0]), *references[1:])


def value_of(reference: Any) -> Any:
    """Return what a task returned.

    Raises:
        S2LError: the task did; without the traceback of other people's code.
        ObjectLostError: it is lost with a node, and could not be made again.
        StageFailed: the task's workers died again and again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, S2LError):
            raise error.cause from None
        raise
    except ray.exceptions.ObjectLostError:
        raise
    except ray.exceptions.RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise StageFailed(
            f"a task failed {RETRIES + 1} times ({last}). The same command runs the stage again; with S2L_VERBOSE=1 it "
            "shows the output of its workers."
        ) from error
