"""The guard of `guarded` S2L: rows that the proxy saw again and again and did not learn are set aside.

Wrong answers have rare trajectories, sit in small clusters, and Algorithm 1 takes small clusters whole: 5 % wrong rows
in a pool became 17 to 20 % of the subset. What tells them from rare but right rows is that training does not help:
their last loss is nearly their first.

The limits: it was found on random mistakes in a made-up world. Mistakes that follow a rule are learned like anything
else and pass; a proxy that was trained too little has learned nothing yet, and its guard sets good rows aside.

Shape suffixes: N examples, T checkpoints.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ray.errors import ConfigError

THRESHOLD = 0.8
"""Rows whose last loss is at least this share of their first are set aside."""
FLOOR = 0.02
"""What is added to both losses, as a share of the mean loss before training: rows known from the start, whose losses
are next to nothing, have no ratio worth the name."""
SUSPICIOUS_SHARE = 0.15
"""Where more of the rows than this are set aside, the proxy was trained too little or the guard does not fit them."""

DUPLICATE = "duplicate"
NOT_LEARNED = "not learned"


@dataclass(frozen=True)
class SetAside:
    """What the guard makes of every row.

    Attributes:
        ratio_N: float64 [N], (last loss + floor) / (first loss + floor).
        duplicate_N: bool [N], a copy of a row that is judged itself.
        not_learned_N: bool [N], above the threshold and no copy.
    """

    ratio_N: NDArray[np.float64]
    duplicate_N: NDArray[np.bool_]
    not_learned_N: NDArray[np.bool_]

    @property
    def kept_N(self) -> NDArray[np.bool_]:
        """The rows that pass."""
        kept_N: NDArray[np.bool_] = ~(self.duplicate_N | self.not_learned_N)
        return kept_N

    @property
    def reason_N(self) -> NDArray[np.object_]:
        """Why a row is set aside; None where it is not."""
        reason_N = np.full(len(self.ratio_N), None, dtype=object)
        reason_N[self.not_learned_N] = NOT_LEARNED
        reason_N[self.duplicate_N] = DUPLICATE
        return reason_N


def has_reason(reason_N: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Return which rows have a reason to be set aside; the others have None."""
    return np.array([reason is not None for reason in reason_N], bool)


def learning_ratio(loss_NT: NDArray[np.floating[Any]], mean_initial: float) -> NDArray[np.float64]:
    """Return the last loss of each row as a share of its first, both raised by a floor.

    Args:
        loss_NT: losses at the checkpoints [nats/token]; the first is after training has begun.
        mean_initial: mean loss before training over all rows, copies left out [nats/token].

    Returns:
        float64 [N]: 0 for a row that was learned entirely, 1 for one on which training did nothing, more for one
        that got worse.
    """
    floor = FLOOR * mean_initial
    first_N, last_N = loss_NT[:, 0].astype(np.float64), loss_NT[:, -1].astype(np.float64)
    ratio_N: NDArray[np.float64] = (last_N + floor) / (first_N + floor)
    return ratio_N


def set_aside(
    loss_NT: NDArray[np.floating[Any]],
    occurrence_N: NDArray[np.integer[Any]],
    mean_initial: float,
    threshold: float = THRESHOLD,
) -> SetAside:
    """Find the rows that the proxy did not learn, and the copies of equal rows.

    Copies go first, since a wrong row that stands often enough is learned by heart and would pass many times.

    Args:
        loss_NT: losses of some rows at the checkpoints, T at least 2 [nats/token].
        occurrence_N: from `draws.occurrences`: 0 for the first row of a content, which is the one that is kept.
        mean_initial: mean loss before training over all rows with an occurrence of 0 [nats/token].
        threshold: rows with a ratio of at least this are set aside.

    Raises:
        ConfigError: a single checkpoint, which has no first and last.
    """
    if loss_NT.shape[1] < 2:
        raise ConfigError(
            "cluster.guard compares the first checkpoint with the last, but there is 1 checkpoint. "
            "Set proxy.checkpoints to 2 or more, or cluster.guard to null."
        )
    duplicate_N = occurrence_N > 0
    ratio_N = learning_ratio(loss_NT, mean_initial)
    return SetAside(ratio_N, duplicate_N, (ratio_N >= threshold) & ~duplicate_N)
