"""Which rows to take: every selector is a ranking of all rows, and every budget takes a prefix of it.

Algorithm 1 of S2L with whole quotas has the property that makes this possible: one more row of budget raises
exactly one cluster's quota by one. A budget in rows is then a prefix, a budget in tokens the longest prefix
that fits, and a top-up the next rows.

A selector returns `rank`, int64 [N], a permutation of 0..N-1 aligned with its inputs; 0 is taken first. One
that scores rows is `score_rank`; any other is `rank_by` with the right keys. All take `draw_N`, the
pseudo-random number of each row from `draws.draw_hash`, and `tie_N`, unique integers (`example_id`) for the one
case in 2**64 that two draws are equal. Nothing here depends on the order of the input rows.

Shape suffixes: N examples, K clusters.
"""

import decimal
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from s2l_ray.draws import IntArray, position_in_group
from s2l_ray.errors import ConfigError, DataError

Rank = npt.NDArray[np.int64]
Labels = npt.NDArray[Any]

OFFICIAL_SET_ASIDE_SIZE = 2
"""The authors' code sets clusters of this size [rows] or less aside and fills with them what is left."""

_KEY_TIE = 1e-12  # relative; far above the rounding of a key (3e-16), far below 1 / (rows of a cluster)


def rank_by(*key_N: npt.NDArray[Any]) -> Rank:
    """Rank rows by keys, ascending, the most significant key first.

    Args:
        *key_N: one or more arrays [N]; together they must tell all rows apart.

    Returns:
        rank int64 [N], a permutation of 0..N-1.
    """
    order_N = np.lexsort(key_N[::-1])
    rank_N = np.empty(len(order_N), dtype=np.int64)
    rank_N[order_N] = np.arange(len(order_N))
    return rank_N


def order_of(rank_N: Rank) -> npt.NDArray[np.int64]:
    """Return the positions of the rows in rank order; a budget of b rows takes the first b.

    Args:
        rank_N: a permutation of 0..N-1.

    Returns:
        int64 [N], the inverse permutation.
    """
    order_N = np.empty(len(rank_N), dtype=np.int64)
    order_N[rank_N] = np.arange(len(rank_N))
    return order_N


def random_rank(draw_N: IntArray, tie_N: IntArray) -> Rank:
    """Rank all rows at random.

    Args:
        draw_N: from `draw_hash`.
        tie_N: unique integers.

    Returns:
        rank int64 [N].
    """
    return rank_by(draw_N, tie_N)


def random_per_source_rank(source_N: Labels, draw_N: IntArray, tie_N: IntArray, beside: "Beside | None" = None) -> Rank:
    """Rank so that every prefix takes equally from the sources that still have rows, at random inside each.

    Args:
        source_N: source of each row, strings or integers.
        draw_N: from `draw_hash`.
        tie_N: unique integers.
        beside: where a source has more rows than these.

    Returns:
        rank int64 [N].
    """
    return balanced_rank(source_N, draw_N, tie_N, beside=beside)


def score_rank(score_N: npt.NDArray[Any], draw_N: IntArray, tie_N: IntArray) -> Rank:
    """Rank by a score, highest first; equal scores in the order of the draw.

    Args:
        score_N: real scores, finite. Negate them to take the lowest first.
        draw_N: from `draw_hash`.
        tie_N: unique integers.

    Returns:
        rank int64 [N].

    Raises:
        DataError: a score that is NaN or infinite; carries the `tie_N` of those rows as ids.
    """
    bad = np.flatnonzero(~np.isfinite(score_N))
    if len(bad):
        ids = [int(i) for i in tie_N[bad]]
        raise DataError(
            f"{len(ids)} of {len(score_N)} rows have a score that is NaN or infinite (example_id "
            f"{', '.join(str(i) for i in ids[:5])}); expected finite scores. "
            "Score the examples again in bf16 or fp32.",
            example_ids=ids,
        )
    return rank_by(-score_N.astype(np.float64), draw_N, tie_N)


ScoredMethod = Literal["longest", "least_confidence", "middle_perplexity", "high_learnability", "curriculum"]


def selection_score(
    method: ScoredMethod,
    *,
    loss_initial_N: npt.NDArray[Any],
    loss_last_N: npt.NDArray[Any],
    response_tokens_N: IntArray,
) -> npt.NDArray[np.float64]:
    """Return what a scoring selector ranks by, highest first.

    Args:
        method: `longest`, the most response tokens; `least_confidence`, the highest loss after training;
            `middle_perplexity`, the perplexity after training closest to its median; `high_learnability`, the
            largest drop of the loss over training; `curriculum`, the lowest loss after training, easy to hard.
        loss_initial_N: loss of the proxy before training [nats/token]; `longest` reads no losses.
        loss_last_N: loss at the last checkpoint [nats/token].
        response_tokens_N: response tokens of each row.

    Returns:
        float64 [N].

    Source:
        The baselines of Yang et al. 2024 (arXiv 2403.07384), section 5; `longest`: Zhao et al. 2024
        (arXiv 2402.04833).
    """
    last_N = loss_last_N.astype(np.float64)
    match method:
        case "longest":
            return response_tokens_N.astype(np.float64)
        case "least_confidence":
            return last_N
        case "middle_perplexity":
            perplexity_N: npt.NDArray[np.float64] = np.exp(last_N)
            distance_N: npt.NDArray[np.float64] = np.abs(perplexity_N - np.median(perplexity_N))
            return -distance_N
        case "high_learnability":
            return loss_initial_N.astype(np.float64) - last_N
        case "curriculum":
            return -last_N


def cluster_keys(stratum_N: Labels, cluster_id_N: IntArray) -> npt.NDArray[np.int64]:
    """Number the pairs (stratum, cluster_id), since cluster ids start at 0 in every stratum.

    Args:
        stratum_N: stratum of each row, strings or integers.
        cluster_id_N: cluster of each row inside its stratum.

    Returns:
        int64 [N]: 0, 1, 2, ... without gaps, in the order of (stratum, cluster_id).
    """
    _, stratum_code_N = np.unique(stratum_N, return_inverse=True)
    ids, id_code_N = np.unique(cluster_id_N, return_inverse=True)
    pair_N = stratum_code_N.astype(np.int64) * max(len(ids), 1) + id_code_N
    key_N: npt.NDArray[np.int64] = np.unique(pair_N, return_inverse=True)[1].astype(np.int64)
    return key_N


@dataclass(frozen=True)
class Beside:
    """What the cluster of each row has beside the rows that are ranked.

    Attributes:
        size_N: int64 [N], its other rows: those that were there before, and those that come too late in the order of
            the draw to matter.
        taken_N: int64 [N], how many of those that were there before were taken.
    """

    size_N: npt.NDArray[np.int64]
    taken_N: npt.NDArray[np.int64]

    def take(self, index: IntArray) -> "Beside":
        """Return it for other rows, by index."""
        return Beside(self.size_N[index], self.taken_N[index])


def balanced_rank(
    cluster_N: Labels, draw_N: IntArray, tie_N: IntArray, exponent: float = 0.0, beside: Beside | None = None
) -> Rank:
    """Rank rows so that every prefix is shared over the clusters as evenly as their sizes allow.

    Inside a cluster the order is that of the draw. The j-th row (from 0) of a cluster of n rows has the key
    (j + 1) / n**exponent; the smallest key is next, equal keys go from the largest cluster to the smallest,
    and from the highest cluster id to the lowest among clusters of one size. With exponent 0 the first b rows
    are those of `quotas(sizes, b)`, Algorithm 1, for every b. With exponent 1 the clusters keep their natural
    shares.

    Args:
        cluster_N: cluster of each row; any integers or strings, numbered in their sorted order.
        draw_N: from `draw_hash`.
        tie_N: unique integers.
        exponent: 0 to 1.
        beside: where a cluster has more rows than these. Those taken before count as its first, so that the quotas
            are topped up.

    Returns:
        rank int64 [N].

    Raises:
        ConfigError: an exponent outside 0..1.

    Source:
        Yang et al. 2024 (arXiv 2403.07384), Algorithm 1; for other exponents, a divisor method of
        apportionment.
    """
    if not 0.0 <= exponent <= 1.0:
        raise ConfigError(
            f"select.quota_exponent is {exponent}; expected a number from 0 (equal quotas) to 1 (quotas "
            "in proportion to the size of a cluster). Set select.quota_exponent accordingly."
        )
    _, cluster_code_N, size_K = np.unique(cluster_N, return_inverse=True, return_counts=True)
    position_N = position_in_group(cluster_code_N, (draw_N, tie_N))
    size_N = size_K[cluster_code_N]
    if beside is not None:
        size_N, position_N = size_N + beside.size_N, position_N + beside.taken_N
    key_N = _level(position_N, size_N, exponent)
    return rank_by(key_N, -size_N, -cluster_code_N, position_N)


def most_taken(
    size_K: IntArray, n_rows: int, exponent: float = 0.0, beside_K: Beside | None = None
) -> npt.NDArray[np.int64]:
    """Bound what the first rows of `balanced_rank` can take of each cluster, from the sizes alone.

    So a selection of few rows looks at few: of each cluster, those of lowest draw.

    Args:
        size_K: rows of each cluster that are ranked.
        n_rows: length of the prefix.
        exponent: as `balanced_rank`.
        beside_K: for each cluster.

    Returns:
        int64 [K]: what the prefix takes of each cluster, and one or two rows more.
    """
    size_K = size_K.astype(np.int64)
    full_K, taken_K = (size_K, 0) if beside_K is None else (size_K + beside_K.size_N, beside_K.taken_N)
    weight_K = np.maximum(full_K, 1).astype(np.float64) ** exponent

    def up_to(key: float) -> npt.NDArray[np.int64]:
        # One more, since a key that rounding, or a tie, puts just above counts as well.
        bound_K: npt.NDArray[np.int64] = np.clip(np.floor(key * weight_K).astype(np.int64) + 1 - taken_K, 0, size_K)
        return bound_K

    low, high = 0.0, float(np.max((size_K + taken_K) / weight_K, initial=0.0))
    for _ in range(64):
        middle = (low + high) / 2
        # Without the one more that `up_to` has for each, the prefix must be full.
        enough = int(np.clip(np.floor(middle * weight_K).astype(np.int64) - taken_K, 0, size_K).sum()) >= n_rows
        low, high = (low, middle) if enough else (middle, high)
    return up_to(high)


def official_rank(
    source_N: Labels,
    cluster_N: IntArray,
    draw_N: IntArray,
    tie_N: IntArray,
    beside_N: IntArray | int = 0,
    source_beside_N: IntArray | int = 0,
) -> Rank:
    """Rank rows by the rule of the authors' code.

    The budget is shared over the sources by Algorithm 1, smallest source first. Inside a source it is shared
    over the clusters of more than two rows, again by Algorithm 1; when these are used up, the rows of the
    smaller clusters follow, drawn from all of them together. Both levels raise one quota by one when the
    budget grows by one, so the rule is a ranking too. Their code sorts sources and clusters of equal size in
    no particular order; here the highest id gets the odd row.

    Args:
        source_N: source of each row, strings or integers.
        cluster_N: cluster of each row inside its source.
        draw_N: from `draw_hash`.
        tie_N: unique integers.
        beside_N: rows that the cluster of each row has beside these, later in the order of the draw; see
            `most_taken_officially`.
        source_beside_N: rows that its source has beside these.

    Returns:
        rank int64 [N].

    Source:
        github.com/BigML-CS-UCLA/S2L, `schedules/s2l.py`.
    """
    _, source_code_N = np.unique(source_N, return_inverse=True)
    cluster_code_N = cluster_keys(source_code_N, cluster_N)
    size_N = np.bincount(cluster_code_N)[cluster_code_N] + beside_N
    position_N = position_in_group(cluster_code_N, (draw_N, tie_N))
    aside_N = size_N <= OFFICIAL_SET_ASIDE_SIZE

    def among_large(key_N: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.where(aside_N, 0, key_N)

    inner_N = rank_by(
        aside_N, among_large(position_N), among_large(-size_N), among_large(-cluster_code_N), draw_N, tie_N
    )
    rest_N = np.broadcast_to(np.asarray(source_beside_N, np.int64), inner_N.shape)
    return balanced_rank(source_code_N, inner_N, inner_N, beside=Beside(rest_N, np.zeros_like(inner_N)))


def most_taken_officially(source_K: IntArray, size_K: IntArray, n_rows: int) -> npt.NDArray[np.int64]:
    """Bound what the first rows of `official_rank` can take of each cluster, as `most_taken` does.

    Args:
        source_K: source of each cluster, numbered.
        size_K: rows of each cluster.
        n_rows: length of the prefix.

    Returns:
        int64 [K].
    """
    sources, source_code_K = np.unique(source_K, return_inverse=True)
    source_size_S = np.bincount(source_code_K, weights=size_K).astype(np.int64)
    most_S = most_taken(source_size_S, n_rows)
    most_K = np.zeros(len(size_K), np.int64)
    for source in range(len(sources)):
        large = np.flatnonzero((source_code_K == source) & (size_K > OFFICIAL_SET_ASIDE_SIZE))
        small = np.flatnonzero((source_code_K == source) & (size_K <= OFFICIAL_SET_ASIDE_SIZE))
        in_large = int(size_K[large].sum())
        most_K[large] = most_taken(size_K[large], min(int(most_S[source]), in_large))
        most_K[small] = size_K[small] if most_S[source] > in_large else 0
    return most_K


def quotas(size_K: IntArray, budget: int) -> npt.NDArray[np.int64]:
    """Share a budget over clusters by Algorithm 1, as the paper writes it.

    Clusters are visited from the smallest to the largest (equal sizes by id); the k-th of K gets
    R_k = floor((budget - taken so far) / (K - k + 1)) rows, or all of its rows when it has fewer.

    Args:
        size_K: rows of each cluster.
        budget: rows to take, 0 to sum(size_K).

    Returns:
        int64 [K], rows to take from each cluster; they sum to the budget.

    Raises:
        ConfigError: a budget below 0 or above the number of rows.

    Source:
        Yang et al. 2024 (arXiv 2403.07384), Algorithm 1.
    """
    if not 0 <= budget <= int(size_K.sum()):
        raise ConfigError(
            f"The budget is {budget} rows; expected 0 to {int(size_K.sum())}, the number of rows. "
            "Set select.budget accordingly."
        )
    quota_K = np.zeros(len(size_K), dtype=np.int64)
    left = budget
    for visited, k in enumerate(np.argsort(size_K, kind="stable")):
        quota_K[k] = min(left // (len(size_K) - visited), int(size_K[k]))
        left -= int(quota_K[k])
    return quota_K


def _level(position_N: npt.NDArray[np.int64], size_N: IntArray, exponent: float) -> npt.NDArray[np.int64]:
    """Turn (position + 1) / size**exponent into integers of the same order, equal where the keys are equal.

    Rounding would break true ties such as 1 / sqrt(2) = 3 / sqrt(18) one way or the other. Keys closer than
    _KEY_TIE count as equal; two rows of one cluster are never that close.
    """
    if exponent == 0.0:
        return position_N
    sizes, size_code_N = np.unique(size_N, return_inverse=True)
    # decimal, because the last bit of a floating-point power differs between math libraries.
    with decimal.localcontext(decimal.Context(prec=40)):
        power = [float(decimal.Decimal(int(n)) ** decimal.Decimal(exponent)) for n in sizes]
    key_N = (position_N + 1) / np.array(power, dtype=np.float64)[size_code_N]
    keys, key_code_N = np.unique(key_N, return_inverse=True)
    steps = np.diff(keys, prepend=keys[:1]) > _KEY_TIE * keys
    level_N: npt.NDArray[np.int64] = np.cumsum(steps, dtype=np.int64)[key_code_N]
    return level_N
