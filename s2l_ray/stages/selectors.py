"""The selectors: what each shares its budget over, how it ranks, and what it says of a row that it took.

A new one is a class here, or one of these with other settings, with a line in `REASONS` and in `selector_of`.
Legend: G groups, C classes of groups, N candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact
from s2l_ray.config import Method, SelectConfig
from s2l_ray.facility_location import facility_location_rank
from s2l_ray.labels import NONE
from s2l_ray.log import display
from s2l_ray.sampling import (
    Beside,
    Rank,
    ScoredMethod,
    balanced_rank,
    cluster_keys,
    most_taken,
    most_taken_officially,
    official_rank,
    random_per_source_rank,
    random_rank,
    score_rank,
    selection_score,
)
from s2l_ray.stages.candidates import Candidates, Groups, Sharing

REASONS: Mapping[Method, str] = {
    "paper": "even share of its cluster",
    "official": "even share of its source and cluster",
    "guarded": "share of its cluster, after the guard",
    "embedding_kmeans": "even share of its cluster of hidden states",
    "random": "drawn from all rows",
    "random_per_source": "even share of its source",
    "full": "every row",
    "longest": "long response",
    "least_confidence": "high loss after training",
    "middle_perplexity": "perplexity near the median",
    "high_learnability": "large drop of the loss",
    "curriculum": "low loss after training",
    "facility_location": "hidden state unlike those taken before",
}


class Selector(Sharing, Protocol):
    """A ranking of the pool, of which the first rows can be worked out from few candidates."""

    @property
    def reason(self) -> str:
        """Why a row is in the subset, in a few words."""

    def rank(self, candidates: Candidates, n_wanted: int) -> Rank:
        """Rank the candidates; the first `n_wanted` are those of the whole pool."""


@dataclass(frozen=True)
class EvenPerCluster:
    """Algorithm 1 over clusters, or with an exponent quotas that grow with their sizes."""

    reason: str
    exponent: float

    def classes(self, groups: Groups) -> NDArray[np.int64]:
        """A cluster is a class."""
        return cluster_keys(groups.stratum_G, groups.cluster_id_G)

    def most_taken(
        self, groups: Groups, class_G: NDArray[np.int64], before_C: Beside, n_wanted: int
    ) -> NDArray[np.int64]:
        """By quota."""
        return most_taken(groups.sizes(class_G), n_wanted, self.exponent, before_C)

    def rank(self, candidates: Candidates, n_wanted: int) -> Rank:
        """Rank by quota, then draw."""
        rows = candidates.rows
        cluster_N = cluster_keys(candidates.stratum_N, candidates.cluster_id_N)
        return balanced_rank(cluster_N, rows.draw, rows.example_id, self.exponent, candidates.beside_N)


@dataclass(frozen=True)
class Official:
    """The rule of the authors' code: sources, and clusters within them."""

    reason: str

    def classes(self, groups: Groups) -> NDArray[np.int64]:
        """A cluster of a source is a class."""
        return cluster_keys(groups.source_G, groups.cluster_id_G)

    def most_taken(
        self, groups: Groups, class_G: NDArray[np.int64], before_C: Beside, n_wanted: int
    ) -> NDArray[np.int64]:
        """By the quotas of sources, then of clusters."""
        size_C = groups.sizes(class_G)
        source_C = np.zeros(len(size_C), np.int64)
        source_C[class_G] = groups.source_G
        return most_taken_officially(source_C, size_C, n_wanted)

    def rank(self, candidates: Candidates, n_wanted: int) -> Rank:
        """Rank by both quotas, then draw."""
        rows, source_N, cluster_id_N = candidates.rows, candidates.source_N, candidates.cluster_id_N
        beside = (candidates.beside_N.size_N, candidates.source_beside_N)
        return official_rank(source_N, cluster_id_N, rows.draw, rows.example_id, *beside)


@dataclass(frozen=True)
class EvenPerSource:
    """The same number from each source that has rows left."""

    reason: str

    def classes(self, groups: Groups) -> NDArray[np.int64]:
        """A source is a class, and so is none."""
        return groups.source_G.astype(np.int64) - NONE

    def most_taken(
        self, groups: Groups, class_G: NDArray[np.int64], before_C: Beside, n_wanted: int
    ) -> NDArray[np.int64]:
        """By quota."""
        return most_taken(groups.sizes(class_G), n_wanted)

    def rank(self, candidates: Candidates, n_wanted: int) -> Rank:
        """Rank by quota, then draw."""
        rows = candidates.rows
        return random_per_source_rank(candidates.source_N, rows.draw, rows.example_id, candidates.beside_N)


class _OfAllRows:
    """Tells rows apart by nothing that a group has."""

    def classes(self, groups: Groups) -> NDArray[np.int64]:
        """All rows are of one class."""
        return np.zeros(len(groups.size_G), np.int64)

    def most_taken(
        self, groups: Groups, class_G: NDArray[np.int64], before_C: Beside, n_wanted: int
    ) -> NDArray[np.int64]:
        """All rows, where it is no draw that decides."""
        return groups.sizes(class_G)


@dataclass(frozen=True)
class Drawn(_OfAllRows):
    """Rows in the order of their draws."""

    reason: str

    def most_taken(
        self, groups: Groups, class_G: NDArray[np.int64], before_C: Beside, n_wanted: int
    ) -> NDArray[np.int64]:
        """As many as are wanted."""
        return most_taken(groups.sizes(class_G), n_wanted)

    def rank(self, candidates: Candidates, n_wanted: int) -> Rank:
        """Rank by draw."""
        return random_rank(candidates.rows.draw, candidates.rows.example_id)


@dataclass(frozen=True)
class Scored(_OfAllRows):
    """Rows of highest score first; see `sampling.selection_score`."""

    reason: str
    method: ScoredMethod
    trajectories: Artifact | None

    def rank(self, candidates: Candidates, n_wanted: int) -> Rank:
        """Rank by score, then draw."""
        rows = candidates.rows
        initial_N = last_N = np.zeros(len(rows.example_id), np.float32)
        if self.trajectories is not None:
            table = self.trajectories.read_in_order("trajectories-", ["example_id", "loss_initial", "loss"])
            place_N = np.searchsorted(table.column("example_id").to_numpy(), rows.example_id)
            initial_N = table.column("loss_initial").to_numpy()[place_N]
            last_N = schemas.matrix(table, "loss")[place_N, -1]
        score_N = selection_score(
            self.method, loss_initial_N=initial_N, loss_last_N=last_N, response_tokens_N=rows.response_tokens
        )
        return score_rank(score_N, rows.draw, rows.example_id)


@dataclass(frozen=True)
class MostUnlike(_OfAllRows):
    """Facility location over hidden states."""

    reason: str
    hidden_states: Artifact

    def rank(self, candidates: Candidates, n_wanted: int) -> Rank:
        """Rank as many as are wanted; the others follow by draw."""
        rows = candidates.rows
        example_id_N, hidden_ND = self.hidden_states.read_matrix("hidden_states-", "hidden_state")
        place_N = np.searchsorted(example_id_N, rows.example_id)
        if len(place_N) < len(example_id_N):
            hidden_ND = hidden_ND[place_N]
        with display.progress("facility location", n_wanted, "rows") as progress:
            keys = (rows.draw, rows.example_id)
            return facility_location_rank(hidden_ND, *keys, n_wanted, on_progress=progress.update)


def selector_of(select: SelectConfig, trajectories: Artifact | None, hidden_states: Artifact | None) -> Selector:
    """Return what `select.method` names.

    Args:
        select: the settings.
        trajectories: where a method scores rows by their losses.
        hidden_states: where it is facility location.
    """
    reason = REASONS[select.method]
    match select.method:
        case "paper" | "guarded" | "embedding_kmeans":
            return EvenPerCluster(reason, select.quota_exponent or 0.0)
        case "official":
            return Official(reason)
        case "random_per_source":
            return EvenPerSource(reason)
        case "random" | "full":
            return Drawn(reason)
        case "facility_location":
            assert hidden_states is not None
            return MostUnlike(reason, hidden_states)
        case method:
            return Scored(reason, method, trajectories)
