"""How much better one target is than another, from the verdicts on both of the same held-out rows.

What makes a row easy or hard for both cancels, so the interval of a gain says more than those of the two scores. It
says how sure the difference of these two models is, not of what selected their data: that takes several seeds, and is
`significance`'s.
Legend: N rows of a side, M rows that both were judged on.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray.judging.metrics import is_of_rows, is_share
from s2l_ray.scoring import (
    Grouping,
    Mean,
    bounds_of_differences,
    bounds_of_share_differences,
    difference_of,
    means_by_group,
    share_difference_of,
)
from s2l_ray.significance import higher_is_better


def gains(ours: pa.Table, theirs: pa.Table, metrics: Sequence[str], grouping: Grouping) -> Iterator[tuple[str, Mean]]:
    """Yield the macro and the micro gain of every metric; above 0 is better, also for losses.

    A metric that is no mean over rows (BLEU is of all rows together) has none, nor has one that no row was judged by on
    both sides.

    Args:
        ours: `predictions` of the one: `example_id`, a column per metric, and what rows are grouped by.
        theirs: of the other; its groups are not looked at.
        metrics: that both have.
        grouping: of the rows.
    """
    for metric in filter(is_of_rows, metrics):
        one, other = (table.filter(pc.is_valid(table.column(metric))) for table in (ours, theirs))
        id_N, other_id_N = (table.column("example_id").to_numpy() for table in (one, other))
        _, place_M, other_place_M = np.intersect1d(id_N, other_id_N, assume_unique=True, return_indices=True)
        if not len(place_M):
            continue
        value_M, other_M = (
            pc.cast(table.column(metric), pa.float64()).to_numpy()[places]
            for table, places in ((one, place_M), (other, other_place_M))
        )
        difference_M = value_M - other_M if higher_is_better(f"micro_{metric}") else other_M - value_M
        names = one.column(grouping.by).take(place_M).to_pylist()
        is_grouped = any(name is not None for name in names)
        # Of a group no interval is looked at.
        groups = means_by_group(difference_M, [name or "" for name in names]) if is_grouped else {}
        if is_share(metric):
            yield from grouping.means(metric, groups, share_difference_of(difference_M), bounds_of_share_differences)
        else:
            yield from grouping.means(metric, groups, difference_of(difference_M), bounds_of_differences)
