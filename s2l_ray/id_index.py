"""Which files of an artifact hold which ids: rows are looked up by id without reading all of them.

Shape suffixes: F files, M rows asked for.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from s2l_ray.artifacts import Artifact, FileRecord
from s2l_ray.schemas import is_ascending

ID = "example_id"
FOOTERS_AT_ONCE = 16
_ANY = np.iinfo(np.int64)


@dataclass(frozen=True)
class IdIndex:
    """The lowest and the highest id of each file. Small, and cheap to pickle.

    Attributes:
        artifact: whose files.
        files: those that hold rows.
        first_F: int64 [F], the lowest id of each.
        last_F: int64 [F], the highest.
    """

    artifact: Artifact
    files: tuple[FileRecord, ...]
    first_F: NDArray[np.int64]
    last_F: NDArray[np.int64]

    @classmethod
    def of(cls, artifact: Artifact, prefix: str) -> "IdIndex":
        """Read the statistics of the files whose path starts with `prefix`."""
        files = tuple(record for record in artifact.files(prefix) if record.rows)
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
            spans = list(threads.map(lambda record: _span(artifact, record), files))
        span_F2 = np.array(spans, np.int64).reshape(-1, 2)
        return cls(artifact, files, span_F2[:, 0], span_F2[:, 1])

    def read(self, example_id_M: NDArray[np.int64], columns: list[str]) -> tuple[NDArray[np.int64], pa.Table]:
        """Read the rows of some ids; those that are not there are left out.

        Args:
            example_id_M: ascending. Files are read whole where they hold ids between the first and the last.
            columns: beside the id.

        Returns:
            The places of the rows in `example_id_M`, ascending, and the columns in that order.
        """
        overlap_F = np.zeros(len(self.files), bool)
        if len(example_id_M):
            overlap_F = (self.first_F <= example_id_M[-1]) & (self.last_F >= example_id_M[0])
        files = [self.files[f] for f in np.flatnonzero(overlap_F)]
        if not files:
            return np.empty(0, np.int64), self._nothing(columns)
        table = pa.concat_tables([self.artifact.read_rows(record, columns=[ID, *columns]) for record in files])
        if not is_ascending(table.column(ID).to_numpy()):
            table = table.sort_by(ID)
        id_N = table.column(ID).to_numpy()
        place_N = np.minimum(np.searchsorted(example_id_M, id_N), len(example_id_M) - 1)
        wanted_N = example_id_M[place_N] == id_N
        kept = table if wanted_N.all() else table.filter(pa.array(wanted_N))
        return place_N[wanted_N], kept.select(columns)

    def _nothing(self, columns: list[str]) -> pa.Table:
        if not self.files:
            return pa.table({name: pa.array([], pa.int64()) for name in columns})
        return self.artifact.read_rows(self.files[0], 0, 1, columns).slice(1)


def _span(artifact: Artifact, record: FileRecord) -> tuple[int, int]:
    with artifact.storage.open_input(artifact.path(record.path)) as stream:
        footer = pq.ParquetFile(stream).metadata
    column = footer.schema.names.index(ID)
    found = [footer.row_group(group).column(column).statistics for group in range(footer.num_row_groups)]
    known = [each for each in found if each is not None and each.has_min_max]
    if len(known) < len(found):
        return int(_ANY.min), int(_ANY.max)
    return min(each.min for each in known), max(each.max for each in known)
