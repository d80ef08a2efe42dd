"""Work over blocks of rows whose results the next tasks need: plain Ray tasks, a bounded number of them at a time.

What is done once and leaves files behind is work over `shards`; blocks stay in Ray's object store, on the node that
made them, and what is lost with a node is made again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from s2l_ray.config import PoolResources
from s2l_ray.errors import S2LError
from s2l_ray.stages.capacity import remote_options


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
    waiting, at_once = deque[Any](), 2 * pool.actors[1]
    for each_arguments in arguments:
        if len(waiting) == at_once:
            yield _fetched(waiting.popleft())
        waiting.append(task.remote(*each_arguments))
    while waiting:
        yield _fetched(waiting.popleft())


def as_task(function: Callable[..., Any], pool: PoolResources, *, returns: int = 1) -> Any:
    """Return a function as a task of Ray's that asks for what the pool says."""
    options = {"name": function.__name__.strip("_"), "num_returns": returns, **remote_options(pool)}
    # Not within the placement group of a Tune trial, which holds nothing.
    return ray.remote(function).options(**options, scheduling_strategy="DEFAULT")


def _fetched(references: Any) -> Any:
    try:
        if not isinstance(references, list):
            return ray.get(references)
        return (ray.get(references[0]), *references[1:])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, S2LError):
            raise error.cause from None  # without the traceback of other people's code
        raise
