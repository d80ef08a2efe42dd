"""Tokenized examples in flat arrays, and the batches that models are given.

Legend: N examples, B batch, L tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray.errors import ArtifactError


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and what the loss counts.

    Attributes:
        input_ids_BL: int64 [B, L].
        response_BL: bool [B, L], True where a token belongs to a response.
    """

    input_ids_BL: NDArray[np.int64]
    response_BL: NDArray[np.bool_]


@dataclass(frozen=True)
class TokenRows:
    """Tokenized examples in flat arrays: 4 bytes per token and 40 per example.

    Attributes:
        example_id_N: int64 [N].
        token: int32, the token ids of all examples behind one another.
        token_offset: int64 [N + 1], where each example's tokens begin.
        span: int32 [S, 2], the response spans of all examples.
        span_offset: int64 [N + 1], where each example's spans begin.
        num_response_tokens_N: int32 [N].
    """

    example_id_N: NDArray[np.int64]
    token: NDArray[np.int32]
    token_offset: NDArray[np.int64]
    span: NDArray[np.int32]
    span_offset: NDArray[np.int64]
    num_response_tokens_N: NDArray[np.int32]

    COLUMNS = ("example_id", "input_ids", "response_start", "response_stop", "num_response_tokens")

    @classmethod
    def from_table(cls, table: pa.Table) -> "TokenRows":
        """Take the columns of a `schemas.TOKENS` table."""
        ids = _flat(table.column("input_ids"))
        starts, stops = _flat(table.column("response_start")), _flat(table.column("response_stop"))
        return cls(
            example_id_N=table.column("example_id").to_numpy(),
            token=ids[0],
            token_offset=ids[1],
            span=np.stack([starts[0], stops[0]], axis=1),
            span_offset=starts[1],
            num_response_tokens_N=table.column("num_response_tokens").to_numpy(),
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self.example_id_N)

    @property
    def length_N(self) -> NDArray[np.int64]:
        """Tokens per example, int64 [N]."""
        return np.diff(self.token_offset)

    def take(self, example_id_M: NDArray[np.int64]) -> "TokenRows":
        """Return the rows of some examples, in the order of the ids.

        Raises:
            ArtifactError: an id is not among the rows.
        """
        if np.array_equal(example_id_M, self.example_id_N):
            return self
        missing = example_id_M[~np.isin(example_id_M, self.example_id_N)]
        if len(missing):
            raise ArtifactError(f"{len(missing)} examples have no tokens, the first is {missing[0]}. Run `s2l gc`.")
        order = np.argsort(self.example_id_N, kind="stable")
        position_M = order[np.searchsorted(self.example_id_N, example_id_M, sorter=order)]
        token, token_offset = _gather(self.token, self.token_offset, position_M)
        span, span_offset = _gather(self.span, self.span_offset, position_M)
        return TokenRows(example_id_M, token, token_offset, span, span_offset, self.num_response_tokens_N[position_M])

    def batch(self, positions: NDArray[np.int64] | Sequence[int], pad_id: int) -> Batch:
        """Return the examples at some positions as one right-padded batch."""
        longest = max(int(self.token_offset[p + 1] - self.token_offset[p]) for p in positions)
        input_ids_BL = np.full((len(positions), longest), pad_id, dtype=np.int64)
        response_BL = np.zeros((len(positions), longest), dtype=np.bool_)
        for row, p in enumerate(positions):
            ids = self.token[self.token_offset[p] : self.token_offset[p + 1]]
            input_ids_BL[row, : len(ids)] = ids
            for start, stop in self.span[self.span_offset[p] : self.span_offset[p + 1]]:
                response_BL[row, start:stop] = True
        return Batch(input_ids_BL, response_BL)

    def length_batches(self, batch_tokens: int) -> Iterator[NDArray[np.int64]]:
        """Yield positions in batches of similar length: at most `batch_tokens` padded tokens, or one example.

        A pure function of the rows, longest first, so that the largest batch meets the memory limit at once.
        """
        order = np.lexsort((self.example_id_N, -self.length_N))
        start = 0
        while start < len(order):
            size = max(1, batch_tokens // int(self.length_N[order[start]]))
            yield order[start : start + size]
            start += size


def _gather(
    values: NDArray[np.int32], offset: NDArray[np.int64], position_M: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    length_M = offset[position_M + 1] - offset[position_M]
    new_offset = np.concatenate([[0], np.cumsum(length_M)])
    index = np.repeat(offset[position_M] - new_offset[:-1], length_M) + np.arange(new_offset[-1])
    return values[index], new_offset


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    # Chunk by chunk: the 32-bit offsets of one Arrow array end at 2^31 tokens.
    values, lengths = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
    for array in column.chunks:
        offsets = array.offsets.to_numpy()
        values.append(array.values.to_numpy()[offsets[0] : offsets[-1]])
        lengths.append(np.diff(offsets))
    return np.concatenate(values), np.cumsum(np.concatenate(lengths), dtype=np.int64)
