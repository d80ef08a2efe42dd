"""Whether a clustering means anything: how rows were learned, how clear their clusters are, how early one knows.

Everything here looks at losses, labels and gradients that exist already; nothing here decides what is selected. The
claim of S2L that can be checked is that rows of one trajectory cluster have similar gradients:
`gradient_similarity`. The others say what to expect of it: whether the proxy learned (`trajectory_health`,
`roughness`), whether clusters are apart (`silhouette`), and whether fewer checkpoints would have found them
(`prefix_agreement`).

Shape suffixes: N examples, T checkpoints, M sampled rows, D dims, B rows of a block, R resamples, P pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ray.clustering import kmeans, seeding
from s2l_ray.clustering.guard import FLOOR
from s2l_ray.errors import DataError
from s2l_ray.losses import LOSS_GRID

HEALTH = ("learned early", "learned late", "forgotten", "never learned", "rising")
LEARNED = 0.5
"""A row counts as learned at a checkpoint where its relative loss is at most this, unless told otherwise."""
PREFIXES = 16
"""Most prefixes of the checkpoints that `prefix_agreement` clusters."""
RESAMPLES = 1000
PERMUTATIONS = 999
CONFIDENCE = 0.95

_BLOCK_ROWS = 65_536  # times T float64: 8 MiB at 16 checkpoints
_BLOCK_DIMS = 16_384

LossArray = NDArray[np.floating[Any]]
FloatArray = NDArray[np.float64]
LabelArray = NDArray[np.integer[Any]]


def trajectory_health(
    loss_initial_N: LossArray, loss_NT: LossArray, mean_initial: float | None = None, learned: float = LEARNED
) -> NDArray[np.int8]:
    """Say of every row how the proxy learned it.

    With a floor of `guard.FLOOR` times the mean loss before training, the relative loss of a row at a checkpoint is
    (loss + floor) / (loss before training + floor). A row is, and the first that fits counts:

    - rising: at the last checkpoint it is 1 or more.
    - never learned: it is above `learned` at every checkpoint. A row that was known before training, with a loss far
      below the floor, is here or among the rising: there was nothing left to learn.
    - forgotten: it reached `learned`, but is above it at the last checkpoint.
    - learned early: it first reached `learned` in the first half of the checkpoints (index < T / 2).
    - learned late: it first reached `learned` after that.

    Args:
        loss_initial_N: losses before training [nats/token].
        loss_NT: losses at the checkpoints [nats/token].
        mean_initial: mean loss before training where these rows are a part of the data; their own mean unless given.
        learned: relative loss at which a row counts as learned; see `learned_level`.

    Returns:
        int8 [N], index into HEALTH. Memory beyond it does not grow with N.

    Raises:
        DataError: no checkpoint, a loss that is NaN or infinite, or arrays of different lengths.
    """
    floor = _floor(loss_initial_N, mean_initial)
    health_N = np.empty(len(loss_NT), dtype=np.int8)
    for rows, initial_B, loss_BT in _blocks(loss_initial_N, loss_NT):
        n_checkpoints = loss_BT.shape[1]
        # Products instead of ratios: nothing is divided by zero where all losses are zero.
        learned_BT = loss_BT + floor <= learned * (initial_B + floor)[:, None]
        early_B = learned_BT.argmax(axis=1) < n_checkpoints / 2
        cases = [loss_BT[:, -1] >= initial_B, ~learned_BT.any(axis=1), ~learned_BT[:, -1], early_B]
        names = ["rising", "never learned", "forgotten", "learned early"]
        health_N[rows] = np.select(cases, [HEALTH.index(name) for name in names], HEALTH.index("learned late"))
    return health_N


def learned_level(loss_initial_N: LossArray, loss_last_N: LossArray) -> float:
    """Return the relative loss at which a row has come half as far as the median row.

    A proxy that starts from random weights takes most of a loss away, a pretrained one perhaps a fifth: what counts
    as learned is measured by what training did to the data as a whole.

    Args:
        loss_initial_N: losses before training [nats/token].
        loss_last_N: losses at the last checkpoint [nats/token].

    Returns:
        A relative loss as in `trajectory_health`, LEARNED at least and below 1.
    """
    floor = max(_floor(loss_initial_N, None), LOSS_GRID)
    median = float(np.median((loss_last_N.astype(np.float64) + floor) / (loss_initial_N.astype(np.float64) + floor)))
    return min(max(LEARNED, (1 + median) / 2), float(np.nextafter(1.0, 0.0)))


def roughness(loss_initial_N: LossArray, loss_NT: LossArray, mean_initial: float | None = None) -> FloatArray:
    """Return how much every trajectory goes up and down for what it moves in all.

    The total variation, from the loss before training to the last checkpoint, over the absolute difference of the
    two: 1 for a trajectory that falls (or rises) all the way, 3 for one that goes back and forth once. The
    difference is raised to the floor of `trajectory_health`, so a row that hardly moves at all is below 1, and one
    that only wavers is not infinitely rough.

    Args:
        loss_initial_N: losses before training [nats/token].
        loss_NT: losses at the checkpoints [nats/token].
        mean_initial: as `trajectory_health`.

    Returns:
        float64 [N].

    Raises:
        DataError: as `trajectory_health`.
    """
    floor = max(_floor(loss_initial_N, mean_initial), LOSS_GRID)
    roughness_N = np.empty(len(loss_NT))
    for rows, initial_B, loss_BT in _blocks(loss_initial_N, loss_NT):
        step_BT = np.diff(loss_BT, axis=1, prepend=initial_B[:, None])
        roughness_N[rows] = np.abs(step_BT).sum(axis=1) / np.maximum(np.abs(loss_BT[:, -1] - initial_B), floor)
    return roughness_N


def _floor(loss_initial_N: LossArray, mean_initial: float | None) -> float:
    if mean_initial is not None:
        return FLOOR * mean_initial
    return FLOOR * float(loss_initial_N.mean(dtype=np.float64)) if len(loss_initial_N) else 0.0


def _blocks(loss_initial_N: LossArray, loss_NT: LossArray) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
    if len(loss_initial_N) != len(loss_NT):
        raise DataError(
            f"there are {len(loss_initial_N)} losses before training but {len(loss_NT)} trajectories; expected one of "
            "each per example. Give both in the same order, of the same rows."
        )
    # At least one block, so that the shape is looked at where there are no rows.
    for start in range(0, max(1, len(loss_NT)), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        seeding.validate_trajectories(loss_NT[rows])
        seeding.validate_trajectories(loss_initial_N[rows, None])
        yield rows, loss_initial_N[rows].astype(np.float64), loss_NT[rows].astype(np.float64)


def silhouette(feature_MT: LossArray, label_M: LabelArray) -> FloatArray | None:
    """Return how much nearer every row is to its own cluster than to the next one.

    Args:
        feature_MT: what was clustered, a sample of it: time grows with M^2.
        label_M: clusters; those with a single row of the sample get 0.

    Returns:
        float64 [M] in -1..1; None with fewer than 2 clusters, or as many clusters as rows.

    Source:
        Rousseeuw 1987; `sklearn.metrics.silhouette_samples`.
    """
    from sklearn.metrics import silhouette_samples

    if not 2 <= len(np.unique(label_M)) < len(label_M):
        return None
    return np.asarray(silhouette_samples(feature_MT.astype(np.float64), label_M), dtype=np.float64)


@dataclass(frozen=True)
class PrefixAgreement:
    """How far a clustering by the first checkpoints is the clustering by all of them.

    Attributes:
        checkpoints: how many of the first checkpoints were used.
        adjusted_rand: 1 for the same clustering, 0 for what chance gives.
    """

    checkpoints: int
    adjusted_rand: float


def prefix_agreement(
    loss_MT: LossArray, n_clusters: int, max_iter: int, seed: int
) -> tuple[list[PrefixAgreement], float]:
    """Cluster a sample by its first 1, 2, ... T - 1 checkpoints, and compare with the clustering by all T.

    No prefix can be expected to agree better than all checkpoints do with themselves from another start: that is
    the ceiling. A prefix of a few checkpoints that is close to it would have done.

    Args:
        loss_MT: trajectories of a sample [nats/token], in an order that does not depend on files.
        n_clusters: lowered to the distinct rows, of each prefix by itself.
        max_iter: most iterations of k-means.
        seed: of all starts but the ceiling's second, which has `seed + 1`.

    Returns:
        Agreements by ascending checkpoints, at most PREFIXES of them, evenly spaced, none where T is 1; and the
        ceiling, an adjusted Rand index.

    Raises:
        ConfigError: n_clusters or max_iter below 1.
        DataError: no checkpoint, no row, or a loss that is NaN or infinite.

    Source:
        Hubert and Arabie 1985; `sklearn.metrics.adjusted_rand_score`.
    """
    from sklearn.metrics import adjusted_rand_score

    if len(loss_MT) == 0:
        raise DataError("there are no trajectories to cluster; expected one per sampled row. Sample at least 1 row.")
    n_checkpoints = loss_MT.shape[1]
    last = n_checkpoints - 1
    prefixes = np.unique(np.linspace(1, last, min(last, PREFIXES)).round().astype(int)).tolist() if last > 0 else []
    whole_M = _clustered(loss_MT, n_clusters, max_iter, seed)
    agreements = [
        PrefixAgreement(t, float(adjusted_rand_score(whole_M, _clustered(loss_MT[:, :t], n_clusters, max_iter, seed))))
        for t in prefixes
    ]
    other_M = _clustered(loss_MT, n_clusters, max_iter, seed + 1)
    return agreements, float(adjusted_rand_score(whole_M, other_M))


def _clustered(loss_MT: LossArray, n_clusters: int, max_iter: int, seed: int) -> NDArray[np.int32]:
    return kmeans.fit(loss_MT, min(n_clusters, len(loss_MT)), seed, max_iter).assignment.labels


def rank_correlation(a_N: NDArray[Any], b_N: NDArray[Any]) -> float | None:
    """Return Spearman's rank correlation; None where one side is constant or there are fewer than 3 rows.

    Source:
        Spearman 1904; `scipy.stats.spearmanr`.
    """
    from scipy.stats import spearmanr

    if len(a_N) < 3 or (a_N == a_N[0]).all() or (b_N == b_N[0]).all():
        return None
    return float(spearmanr(a_N, b_N).statistic)


@dataclass(frozen=True)
class GradientSimilarity:
    """Whether rows of one cluster have more similar gradients than rows of different ones.

    Attributes:
        within: mean cosine of the pairs of rows in one cluster.
        between: mean cosine of the pairs of rows in different clusters.
        low: lower end of the 95 % interval of within - between; None where resamples too often lack one kind of pair.
        high: upper end.
        p_value: share of random labels that give as large a within - between, one-sided.
        pairs_within: pairs behind `within`.
        pairs_between: pairs behind `between`.
    """

    within: float
    between: float
    low: float | None
    high: float | None
    p_value: float | None
    pairs_within: int
    pairs_between: int


def gradient_similarity(
    gradient_MD: NDArray[np.floating[Any]], label_M: LabelArray, seed: int
) -> GradientSimilarity | None:
    """Compare the cosines of gradients within clusters and between them.

    The interval resamples rows, not pairs: pairs that share a row are not independent. Pairs of a row with itself,
    which resampling makes, are left out. The p-value permutes the labels over the rows.

    Args:
        gradient_MD: gradients or sketches of them; rows that are all zero have no direction and are left out.
        label_M: clusters.
        seed: of the resamples and permutations. Both go by position: another order of the rows gives the same
            means, and intervals and p-values that differ by chance.

    Returns:
        None where no pair of rows is in one cluster, or none in different ones.

    Source:
        Yang et al. 2024 (S2L), Theorem 4.1 for what is checked; Efron and Tibshirani 1993, chapter 13; Phipson and
        Smyth 2010 for the p-value.
    """
    gram_MM = _gram(gradient_MD)
    kept = np.flatnonzero(np.diag(gram_MM) > 0)
    norm_M, label_M = np.sqrt(np.diag(gram_MM)[kept]), label_M[kept]
    cosine_MM = gram_MM[np.ix_(kept, kept)] / norm_M[:, None] / norm_M
    same_MM = label_M[:, None] == label_M
    first_P, second_P = np.triu_indices(len(kept), k=1)
    same_P, cosine_P = same_MM[first_P, second_P], cosine_MM[first_P, second_P]
    if not same_P.any() or same_P.all():
        return None
    generator = np.random.default_rng(seed % 2**64)
    low, high = _bootstrap_interval(cosine_MM, same_MM, generator)
    return GradientSimilarity(
        within=float(cosine_P[same_P].mean()),
        between=float(cosine_P[~same_P].mean()),
        low=low,
        high=high,
        p_value=_permutation_p(cosine_MM, first_P[same_P], second_P[same_P], generator),
        pairs_within=int(same_P.sum()),
        pairs_between=int((~same_P).sum()),
    )


def _gram(gradient_MD: NDArray[np.floating[Any]]) -> FloatArray:
    gram_MM = np.zeros((len(gradient_MD), len(gradient_MD)))
    for start in range(0, gradient_MD.shape[1], _BLOCK_DIMS):
        block_MD = gradient_MD[:, start : start + _BLOCK_DIMS].astype(np.float64)
        gram_MM += block_MD @ block_MD.T
    return gram_MM


def _bootstrap_interval(
    cosine_MM: FloatArray, same_MM: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[float | None, float | None]:
    n_rows = len(cosine_MM)
    # How often each row is drawn is all that matters: a pair of different rows is drawn count x count times.
    count_RM = generator.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=RESAMPLES).astype(np.float64)
    other_MM = ~np.eye(n_rows, dtype=np.bool_)

    def pair_sum(value_MM: NDArray[Any]) -> FloatArray:
        summed_R: FloatArray = ((count_RM @ value_MM.astype(np.float64)) * count_RM).sum(axis=1)
        return summed_R

    pairs_R = [pair_sum(kind_MM) for kind_MM in (same_MM & other_MM, ~same_MM)]
    sums_R = [pair_sum(cosine_MM * kind_MM) for kind_MM in (same_MM & other_MM, ~same_MM)]
    both_R = (pairs_R[0] > 0) & (pairs_R[1] > 0)
    # The resamples that happen to have pairs are no fair picture where most have none.
    if both_R.mean() < 0.5:
        return None, None
    difference_R = sums_R[0][both_R] / pairs_R[0][both_R] - sums_R[1][both_R] / pairs_R[1][both_R]
    low, high = np.quantile(difference_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _permutation_p(
    cosine_MM: FloatArray, first_P: NDArray[np.intp], second_P: NDArray[np.intp], generator: np.random.Generator
) -> float:
    # The sum of all cosines and the numbers of pairs stay, so the difference grows with the sum of the pairs within.
    observed = cosine_MM[first_P, second_P].sum()
    # A permutation that only renames clusters adds the same cosines in another order.
    tie = observed - 1e-12 * len(first_P)
    as_large = 0
    for _ in range(PERMUTATIONS):
        order_M = generator.permutation(len(cosine_MM))
        as_large += int(cosine_MM[order_M[first_P], order_M[second_P]].sum() >= tie)
    return (1 + as_large) / (1 + PERMUTATIONS)


def sample_clusters(label_N: LabelArray, draw_N: NDArray[np.uint64], n_rows: int) -> NDArray[np.int64]:
    """Sample rows so that the clusters that are in have pairs of rows.

    Rows are ranked within their cluster by their draw. The first two rows of every cluster come first, cluster by
    cluster in the order of the draw of their first row; then every cluster's third row, then the fourth. A cluster
    with one row gives that row. Of equal draws the lower position is first.

    Args:
        label_N: clusters.
        draw_N: uint64, a hash of each row: the sample is a function of the draws, not of the order of the rows.
        n_rows: rows wanted; all rows where there are fewer.

    Returns:
        int64, positions in ascending order.
    """
    order = np.lexsort((draw_N, label_N))
    starts = np.ones(len(order), dtype=np.bool_)
    starts[1:] = label_N[order[1:]] != label_N[order[:-1]]
    cluster, start = np.cumsum(starts) - 1, np.flatnonzero(starts)
    rank = np.arange(len(order)) - start[cluster]
    first = order[start]
    turn = np.empty(len(first), dtype=np.int64)
    turn[np.lexsort((first, draw_N[first]))] = np.arange(len(first))
    taken = np.lexsort((rank, turn[cluster], np.maximum(rank - 1, 0)))[: max(0, n_rows)]
    return np.sort(order[taken]).astype(np.int64)
