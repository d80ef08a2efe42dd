"""Which files of an artifact hold which ids: rows are looked up by id without reading all of them.

Shape suffixes: F files, M rows asked for.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray.artifacts import Artifact, FileRecord

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

    def parts(
        self, example_id_M: NDArray[np.int64], columns: list[str]
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Read the rows of some ids, a file at a time; ids that are not there are left out.

        Args:
            example_id_M: ascending. Files are read whole where they hold ids between the first and the last.
            columns: beside the id.

        Yields:
            The places of a file's rows in `example_id_M`, and their columns.
        """
        if not len(example_id_M):
            return
        for f in np.flatnonzero((self.first_F <= example_id_M[-1]) & (self.last_F >= example_id_M[0])):
            table = self.artifact.read_rows(self.files[f], columns=[ID, *columns])
            id_N = table.column(ID).to_numpy()
            place_N = np.minimum(np.searchsorted(example_id_M, id_N), len(example_id_M) - 1)
            wanted_N = example_id_M[place_N] == id_N
            wanted = table if wanted_N.all() else table.filter(pa.array(wanted_N))
            yield place_N[wanted_N], wanted.select(columns)


def _span(artifact: Artifact, record: FileRecord) -> tuple[int, int]:
    footer = artifact.read_footer(record)
    column = footer.schema.names.index(ID)
    found = [footer.row_group(group).column(column).statistics for group in range(footer.num_row_groups)]
    known = [each for each in found if each is not None and each.has_min_max]
    if len(known) < len(found):
        return int(_ANY.min), int(_ANY.max)
    return min(each.min for each in known), max(each.max for each in known)
