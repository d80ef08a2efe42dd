"""Draws: a pseudo-random number for every row, which depends on its content and a seed and on nothing else.

Whatever is taken at random is taken in the order of these numbers, so that neither files nor workers nor the order of
rows can change it.

Shape suffixes: N examples, M some of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2l_ray.schemas import is_ascending

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Draws:
    """The draws of all examples, by id.

    Copies are numbered over all examples, so that rows set aside later do not move the draws of others.

    Attributes:
        example_id_N: int64 [N], ascending.
        content_hash_N: 64-bit hash of each row's content.
        draw_N: uint64 [N].
    """

    example_id_N: npt.NDArray[np.int64]
    content_hash_N: IntArray
    draw_N: npt.NDArray[np.uint64]

    COLUMNS = ("example_id", "content_hash")
    """What has to be read of `examples`."""

    @classmethod
    def of(cls, examples: pa.Table, seed: int) -> "Draws":
        """Draw for every row of a table of all examples, in any order."""
        id_N, hash_N = examples.column("example_id").to_numpy(), examples.column("content_hash").to_numpy()
        if not is_ascending(id_N):
            order = np.argsort(id_N)
            id_N, hash_N = id_N[order], hash_N[order]
        return cls(id_N, hash_N, draw_hash(hash_N, occurrences(hash_N, id_N), seed))

    def take(self, example_id_M: IntArray) -> "Draws":
        """Return some of the rows, in the order asked for; every id must be there."""
        place_M = np.searchsorted(self.example_id_N, example_id_M)
        return Draws(self.example_id_N[place_M], self.content_hash_N[place_M], self.draw_N[place_M])


@dataclass(frozen=True)
class Copies:
    """The rows whose content an earlier row has; where examples are many, these are few.

    Attributes:
        example_id_M: int64 [M], ascending.
        occurrence_M: int64 [M], from `occurrences`, 1 and above.
    """

    example_id_M: npt.NDArray[np.int64]
    occurrence_M: npt.NDArray[np.int64]

    @classmethod
    def among(cls, content_hash_N: IntArray, example_id_N: IntArray) -> "Copies":
        """Find them; of each content, all rows must be there."""
        occurrence_N = occurrences(content_hash_N, example_id_N)
        again_M = np.flatnonzero(occurrence_N)
        return cls.joined([cls(example_id_N[again_M].astype(np.int64), occurrence_N[again_M])])

    @classmethod
    def joined(cls, parts: Sequence["Copies"]) -> "Copies":
        """Return those of parts that have no content in common; at least one part."""
        id_M, occurrence_M = (
            np.concatenate(arrays)
            for arrays in zip(*((part.example_id_M, part.occurrence_M) for part in parts), strict=True)
        )
        order = np.argsort(id_M)
        return cls(id_M[order], occurrence_M[order])

    def occurrence_of(self, example_id_N: IntArray) -> npt.NDArray[np.int64]:
        """Return the number of each row among the rows of its content, as `occurrences` does."""
        occurrence_N = np.zeros(len(example_id_N), np.int64)
        if len(self.example_id_M):
            place_N = np.minimum(np.searchsorted(self.example_id_M, example_id_N), len(self.example_id_M) - 1)
            is_copy_N = self.example_id_M[place_N] == example_id_N
            occurrence_N[is_copy_N] = self.occurrence_M[place_N[is_copy_N]]
        return occurrence_N


def occurrences(content_hash_N: IntArray, example_id_N: IntArray) -> npt.NDArray[np.int64]:
    """Number the copies of equal content, so that they get different draws.

    Args:
        content_hash_N: 64-bit hash of each row's content.
        example_id_N: unique ids; copies are numbered in their order.

    Returns:
        int64 [N]: 0 for the first row of a content, 1 for its second copy, and so on.
    """
    occurrence_N = np.zeros(len(content_hash_N), np.int64)
    sorted_N = np.sort(content_hash_N)
    # Most contents stand once; only the others need an order.
    again_N = np.isin(content_hash_N, np.unique(sorted_N[1:][sorted_N[1:] == sorted_N[:-1]]))
    occurrence_N[again_N] = position_in_group(content_hash_N[again_N], (example_id_N[again_N],))
    return occurrence_N


def draw_hash(content_hash_N: IntArray, occurrence_N: IntArray, seed: int) -> npt.NDArray[np.uint64]:
    """Draw one pseudo-random number per row, a function of (seed, content, occurrence) and of nothing else.

    Renaming, splitting or reordering the input files therefore does not change which contents are drawn, and
    adding rows of other content changes no draw. Integer arithmetic modulo 2**64: the same on every platform.
    For one seed and occurrence, different contents never collide (each round is a bijection).

    Args:
        content_hash_N: 64-bit hash of each row's content, signed or unsigned.
        occurrence_N: from `occurrences`.
        seed: any integer, taken modulo 2**64.

    Returns:
        uint64 [N].

    Source:
        The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    """
    with np.errstate(over="ignore"):
        state = _mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
        state = _mix((state ^ _as_uint64(content_hash_N)) + _GOLDEN)
        return _mix(state + _as_uint64(occurrence_N) * _GOLDEN)


_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2 = np.uint64(0x94D0_49BB_1331_11EB)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _as_uint64(value_N: IntArray) -> npt.NDArray[np.uint64]:
    if not np.issubdtype(value_N.dtype, np.integer):
        raise TypeError(f"draw_hash needs integer arrays, got {value_N.dtype}.")
    return value_N.astype(np.uint64)  # two's complement for negative values, on every platform


def position_in_group(group_N: npt.NDArray[Any], key_N: tuple[npt.NDArray[Any], ...]) -> npt.NDArray[np.int64]:
    """Number the rows of each group from 0 in the order of the keys, most significant first."""
    order_N = np.lexsort((*key_N[::-1], group_N))
    sorted_group_N = group_N[order_N]
    index_N = np.arange(len(order_N))
    starts_N = np.ones(len(order_N), dtype=bool)
    starts_N[1:] = sorted_group_N[1:] != sorted_group_N[:-1]
    position_N = np.empty(len(order_N), dtype=np.int64)
    position_N[order_N] = index_N - np.maximum.accumulate(np.where(starts_N, index_N, 0))
    return position_N
