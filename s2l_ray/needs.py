"""What an arm needs of its rows, checked as soon as they are counted and not after hours of training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from s2l_ray.artifacts import Artifact
from s2l_ray.config import Config, ExamplesConfig
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.examples import turn_pairs
from s2l_ray.judging.metrics import check_rows
from s2l_ray.turns import Turn, last_exchange

CLUSTERED = ("paper", "official", "guarded", "embedding_kmeans")
"""The selectors that need clusters."""
BY_SOURCE = ("official", "random_per_source")
"""The selectors that divide the budget by source."""


MANY_SOURCES = 1000
"""Sources above which it is asked whether they are any: each takes some hundredths of a second to cluster."""
FEW_ROWS = 10
"""Rows per source below which many sources are none."""


@dataclass(frozen=True)
class JudgeableRows:
    """Of the held-out rows a metric needs some that it can judge."""

    metrics: tuple[str, ...]

    def __call__(self, artifact: Artifact) -> None:
        """Check `eval_examples`.

        Raises:
            DataError: a metric can judge none of them.
        """
        # A batch at a time, and no further than it takes: most rows can be judged.
        check_rows(self.metrics, _exchanges(artifact), artifact.summary["rows_kept"])


def _exchanges(examples: Artifact) -> Iterator[tuple[str, str]]:
    for record in examples.files("examples-"):
        for turns in turn_pairs(examples.read_rows(record, columns=["turns"]).column("turns")):
            yield last_exchange([Turn(*turn) for turn in turns])


@dataclass(frozen=True)
class Tolerated:
    """Held-out rows that were set aside are as few as the config allows: a run that allowed more has left the rest."""

    config: Config

    def __call__(self, artifact: Artifact) -> None:
        """Check the summary of `eval_examples` or `eval_tokens`.

        Raises:
            DataError: more rows were set aside.
        """
        _check_tolerated(self.config.examples, artifact)


def check_rejected(examples: ExamplesConfig, rows_rejected: int, rows_in: int) -> None:
    """Refuse more bad rows than the config allows.

    Raises:
        DataError: any, where `on_bad_row` is `error`; else a larger share than `max_rejected`.
    """
    if rows_rejected and examples.on_bad_row == "error":
        raise DataError(
            f"{rows_rejected} of {rows_in} rows are bad and were set aside by an earlier run; this one has "
            "`examples.on_bad_row: error`. Mend the data, or set `reject`."
        )
    # As it is written: in floats 29 of 100 rows are more than 0.29.
    if rows_rejected > Fraction(str(examples.max_rejected)) * rows_in:
        raise DataError(
            f"{rows_rejected} of {rows_in} rows are bad, more than examples.max_rejected = "
            f"{examples.max_rejected:g} allows. Mend the data, or raise the limit."
        )


def _check_tolerated(examples: ExamplesConfig, artifact: Artifact) -> None:
    # The rows that are kept are the same for every tolerance; they may come from a run that had a greater one.
    bad = "rows_refused" if artifact.manifest.artifact == "tokens" else "rows_rejected"
    check_rejected(examples, artifact.summary[bad], artifact.summary["rows_in"])


@dataclass(frozen=True)
class Needs:
    """What one arm needs of the rows, said as soon as they are counted and not after hours of training."""

    config: Config

    def __call__(self, artifact: Artifact) -> None:
        """Check the summary of `examples` or of `tokens`.

        Raises:
            ConfigError: a number does not fit the rows, or rows lack the source that the config divides them by.
        """
        _check_tolerated(self.config.examples, artifact)
        if artifact.manifest.artifact == "examples":
            self._check_sources(artifact.summary["rows_per_source"])
        else:
            self._check_numbers(artifact.summary["rows_kept"])

    def _check_sources(self, rows_per_source: Mapping[str, int]) -> None:
        select, cluster = self.config.select, self.config.cluster
        # `guarded` takes rows without a source for one more.
        asks = select.method in CLUSTERED and select.method != "guarded" and cluster.stratify_by == "source"
        by_source = select.method in BY_SOURCE or asks
        if by_source and rows_per_source.get("", 0):
            asked = f"select.method: {select.method}" if select.method in BY_SOURCE else "cluster.stratify_by: source"
            raise ConfigError(
                f"`{asked}` divides the rows by source, but {rows_per_source['']} rows have none. Name the column "
                "with `examples.columns: {source: ...}`, or choose another method."
            )
        rows, sources = sum(rows_per_source.values()), len(rows_per_source)
        by_strata = select.method in CLUSTERED and cluster.stratify_by == "source"
        if by_strata and sources > MANY_SOURCES and rows < FEW_ROWS * sources:
            raise ConfigError(
                f"`cluster.stratify_by: source` clusters each source on its own, and {rows} rows have {sources} of "
                "them: they divide nothing. Name a column that groups the rows with `examples.columns: {source: ...}`, "
                "or choose another method."
            )

    def _check_numbers(self, n_rows: int) -> None:
        from s2l_ray.budgets import parse_budget, rows_in_budget

        select, cluster = self.config.select, self.config.cluster
        whole = cluster.stratify_by is None and cluster.n_clusters_per == "stratum"
        if select.method in CLUSTERED and whole and cluster.n_clusters > n_rows:
            raise ConfigError(f"cluster.n_clusters is {cluster.n_clusters}, but there are {n_rows} examples. Lower it.")
        budget = parse_budget(select.budget)
        if select.method != "full" and budget.kind != "tokens":
            rows_in_budget(budget, n_rows)
