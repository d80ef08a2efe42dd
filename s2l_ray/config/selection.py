"""The sections from trajectories to the subset: `score`, `trajectories`, `cluster` and `select`."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from s2l_ray.config.section import MAX_SEED, Section
from s2l_ray.errors import ConfigError


class ScoreConfig(Section):
    """How the losses of all checkpoints are computed."""

    batch_tokens: int = Field(2048, ge=1)
    """Padded tokens per forward pass."""
    shard_rows: int = Field(4096, ge=1)
    """Rows per shard: the unit of work, of a retry, and of an output file."""
    checkpoints_per_pass: int | None = Field(None, ge=1)
    """Checkpoints held in memory at once; all of them unless set."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"


class TrajectoriesConfig(Section):
    """Trajectories that were computed elsewhere, in place of the proxy's."""

    path: str | None = None
    """Parquet (file, folder, glob, URI) with an id and a list of losses per row, or a local folder with a `losses.pt`
    per checkpoint, as the authors' code writes them; null: a proxy is trained."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name (`example_id`, `user_id`, `loss`, `loss_initial`) -> the Parquet files' column."""


class ClusterConfig(Section):
    """k-means on the trajectories."""

    n_clusters: int = Field(100, ge=1)
    """Clusters (K), per stratum or over all of them as `n_clusters_per` says."""
    n_clusters_per: Literal["stratum", "pool"] = "stratum"
    """`pool` shares K over the strata in proportion to the square roots of their sizes."""
    max_iter: int = Field(20, ge=1)
    """Lloyd iterations at most."""
    stratify_by: Literal["source"] | None = None
    """Cluster each value of this column on its own."""
    features: Literal["loss", "hidden_state"] = "loss"
    """What is clustered: trajectories, or the proxy's hidden states after training."""
    window: Literal["all", "early", "middle", "late"] | int = "all"
    """Checkpoints of the trajectory that are clustered: all, a third of them, or every n-th (the last included)."""
    guard: float | None = Field(None, gt=0)
    """Set rows aside whose last loss is at least this share of their first, and copies of equal rows."""
    init_rows: int = Field(65_536, ge=1)
    """Rows on which the start is chosen: those of lowest draw hash."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of the start; derived from the root seed unless set."""

    @field_validator("window")
    @classmethod
    def _window_steps_forward(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected all, early, middle, late, or n >= 1 for every n-th checkpoint")
        return value

    @model_validator(mode="after")
    def _start_has_rows(self) -> "ClusterConfig":
        if self.n_clusters > self.init_rows:
            raise ValueError(f"n_clusters {self.n_clusters} needs at least as many init_rows, found {self.init_rows}")
        return self


Method = Literal[
    "paper",
    "official",
    "guarded",
    "random",
    "random_per_source",
    "full",
    "longest",
    "least_confidence",
    "middle_perplexity",
    "high_learnability",
    "curriculum",
    "facility_location",
    "embedding_kmeans",
]
"""The selectors; `sampling` says what each does."""


class SelectConfig(Section):
    """Which rows become the subset."""

    method: Method = "paper"
    """`paper` is Algorithm 1; `official` the rule of the authors' code, over clusters within each source; `guarded`
    sets `cluster.guard`, clusters each source and takes square-root quotas, each unless set otherwise."""
    budget: int | float | str = 0.1
    """int: rows; float up to 1: fraction of the kept rows; or "10%", "5k", "2M tokens"."""
    quota_exponent: float | None = Field(None, ge=0, le=1)
    """0: an even share per cluster; 1: proportional to size. Unless set: 0.5 for `guarded`, else 0."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of the draw within a cluster; derived from the root seed unless set."""

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_parses(cls, value: Any) -> Any:
        from s2l_ray.budgets import parse_budget

        try:
            parse_budget(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value
