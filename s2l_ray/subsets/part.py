"""The parts of an export: a subset, or an extension, or a subset and the extensions that top it up.

An `example_id` numbers the rows of one part; rows of several are told apart by the part's label and the id.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from s2l_ray.artifacts import Artifact
from s2l_ray.errors import ArtifactError, ConfigError, DataError
from s2l_ray.input_files import listed
from s2l_ray.subsets.lineage import is_extension_of, lineage, required
from s2l_ray.subsets.provenance import Lineage

_COLUMNS = (
    "example_id",
    "user_id",
    "input_file",
    "input_row",
    "source",
    "stratum",
    "cluster_id",
    "rank",
    "reason",
)
"""Of `selection.parquet`."""


@dataclass(frozen=True)
class Part:
    """Chosen rows, and what is known of them.

    Attributes:
        label: what the part is called: `subset`, `extension`, `extension-2`, ...
        artifact: that holds the rows.
        lineage: what it was made from.
        selection: a row for each chosen one, in order of id, which is the input's.
    """

    label: str
    artifact: Artifact
    lineage: Lineage
    selection: pa.Table

    @classmethod
    def of(cls, artifact: Artifact, label: str | None = None) -> "Part":
        """Gather what belongs to a subset or an extension.

        Raises:
            ArtifactError: its storage does not hold the examples.
        """
        found = lineage(artifact)
        examples = required(found, "examples", artifact)
        return cls(label or artifact.manifest.artifact, artifact, found, _selection_table(artifact, examples))

    @property
    def is_extension(self) -> bool:
        """Whether the rows came later than the subset that they top up."""
        return self.artifact.manifest.artifact == "extension"

    @property
    def examples(self) -> Artifact:
        """Those that the rows were chosen from."""
        return self.lineage["examples"]

    @cached_property
    def inputs(self) -> Mapping[str, frozenset[str | None]]:
        """Names of the input files that rows were taken from -> the sources of these rows."""
        return _sources_by_file(self.selection.select(["input_file", "source"]))

    def files_read(self) -> Mapping[str, str | None]:
        """Return all input files, those included that no row was chosen from -> the source of all of its rows.

        None where its rows have several, or none is told.
        """
        table = self.examples.read_table("examples-", ["input_file", "source"])
        rejected = self.examples.read_table("rejected.parquet", ["input_file"]).column(0).unique().to_pylist()
        found = dict.fromkeys(rejected, frozenset[str | None]()) | _sources_by_file(table)
        return {name: next(iter(found[name])) if len(found[name]) == 1 else None for name in sorted(found)}

    def base(self) -> "Part":
        """Return the subset that an extension tops up; a subset itself.

        Raises:
            ArtifactError: the storage does not hold it.
        """
        return Part.of(required(self.lineage, "subset", self.artifact)) if self.is_extension else self


def parts_of(artifacts: Sequence[Artifact]) -> tuple[Part, ...]:
    """Gather what is to be one data set.

    Args:
        artifacts: a subset or an extension alone, or a subset and then extensions of it.

    Raises:
        ConfigError: there are several, and they are not a subset with extensions of it.
        DataError: a row stands in two of them, or two rows have one id of the user's.
        ArtifactError: see `Part.of`.
    """
    first, *later = artifacts
    for other in later:
        if not is_extension_of(other, first):
            raise ConfigError(
                f"{other.uri} is no extension of {first.uri}. Expected a subset, and after it what `s2l extend` made "
                "to top it up; export others one by one."
            )
    labels = [artifact.manifest.artifact for artifact in artifacts]
    labels[2:] = [f"{label}-{number}" for number, label in enumerate(labels[2:], start=2)]
    parts = tuple(Part.of(artifact, label) for artifact, label in zip(artifacts, labels, strict=True))
    if later:
        _check_no_row_twice(parts)
        _check_user_ids(parts)
    return parts


def selection_of(parts: Sequence[Part]) -> pa.Table:
    """Return a row for each chosen one, in the order of the rows, with its part's label where there are several."""
    if len(parts) == 1:
        return parts[0].selection
    tables = [part.selection.add_column(0, "part", pa.array([part.label] * len(part.selection))) for part in parts]
    return pa.concat_tables(tables)


def _sources_by_file(rows: pa.Table) -> dict[str, frozenset[str | None]]:
    """Return the sources of the rows of each file, in the order in which the files come first."""
    found: dict[str, set[str | None]] = {}
    for pair in rows.group_by(rows.column_names, use_threads=False).aggregate([]).to_pylist():
        found.setdefault(pair["input_file"], set()).add(pair["source"])
    return {name: frozenset(sources) for name, sources in found.items()}


def _selection_table(artifact: Artifact, examples: Artifact) -> pa.Table:
    chosen = artifact.read_in_order("subset.parquet").replace_schema_metadata(None)
    ids = chosen.column("example_id")
    columns = [name for name in _COLUMNS if name not in chosen.column_names]
    places = examples.read_examples("examples-", ids.combine_chunks(), ["example_id", *columns])
    if not places.column("example_id").equals(ids):
        raise ArtifactError(
            f"{examples.uri} holds {places.num_rows} of the {chosen.num_rows} rows of {artifact.uri}. "
            "Expected all of them; run the experiment again."
        )
    for name in columns:
        chosen = chosen.append_column(places.schema.field(name), places.column(name))
    return chosen.select(_COLUMNS)


def _check_no_row_twice(parts: Sequence[Part]) -> None:
    """An extension has no row of the first pool; another extension may have been made of the same new rows."""
    owners: dict[int, str] = {}
    for part in parts:
        ids = part.selection.column("example_id").combine_chunks()
        told = part.examples.read_examples("examples-", ids, ["example_id", "content_hash"])
        hashes = told.column("content_hash").to_pylist()
        shared = Counter(owners[value] for value in hashes if value in owners)
        for label, count in shared.items():
            raise DataError(
                f"{count} rows of {part.artifact.uri} stand in the {label} before it as well. Expected new rows in "
                "each extension; leave one of the two out, or extend anew with all that came later in one --rows."
            )
        owners |= dict.fromkeys(hashes, part.label)


def _check_user_ids(parts: Sequence[Part]) -> None:
    ids = Counter(i for part in parts for i in part.selection.column("user_id").to_pylist() if i is not None)
    twice = sorted(name for name, count in ids.items() if count > 1)
    if twice:
        raise DataError(
            f"{len(twice)} ids of yours stand for two different rows of what is exported together: {listed(twice, 5)}. "
            "Expected ids that tell rows apart; give the later rows others, or export the parts one by one."
        )
