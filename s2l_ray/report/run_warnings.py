"""What speaks against believing a run, in sentences that say by how much."""

from collections.abc import Iterator

from s2l_ray.clustering.guard import NOT_LEARNED, SUSPICIOUS_SHARE
from s2l_ray.log import duration
from s2l_ray.overlap import NGRAM_WORDS
from s2l_ray.report.cluster_sections import CHANCE
from s2l_ray.report.run_facts import ArmFacts, ClusterFacts, RunFacts

WEAK_CORRELATION = 0.3
"""A rank correlation between proxy and target below this is warned about: the method's known way to fail."""


def warnings_of(facts: RunFacts) -> list[str]:
    """Return what to know of a run before believing the rest."""
    found = [*_warnings_of_data(facts)]
    for arm in facts.arms:
        found += _warnings_of_arm(arm)
    for clustering in facts.clusterings:
        found += _warnings_of_clustering(clustering)
    return found


def _warnings_of_data(facts: RunFacts) -> Iterator[str]:
    if facts.overlap.get("ngram"):
        exact, digits, ngram = (facts.overlap.get(grade, 0) for grade in ("exact", "digit_blind", "ngram"))
        yield (
            f"Of {facts.rows_held_out:,} held-out prompts {exact} stand in the training data word for word, {digits} "
            f"up to their numbers, and {ngram} share {NGRAM_WORDS} words in a row with it. Scores on them say little."
        )
    if len(facts.arms) > 1 and not any(arm.method == "random" for arm in facts.arms):
        yield (
            "No arm draws at random, so nothing says whether selecting did any good. "
            "Add `random: {select.method: random}`."
        )


def _warnings_of_arm(arm: ArmFacts) -> Iterator[str]:
    ledger = arm.ledger
    if ledger.break_even is not None and ledger.break_even > 1:
        yield (
            f"{arm.name}: selecting took {duration(ledger.selecting_seconds)} and saves "
            f"{duration(ledger.saved_seconds)} on one fine-tuning: it costs more than "
            f"it saves until {ledger.break_even:.1f} of them."
        )
    elif len(ledger.selecting) > 1 and ledger.break_even is None:
        yield (
            f"{arm.name}: selecting took {duration(ledger.selecting_seconds)} and saves no time, as the target takes "
            "the same steps on any subset. What it can gain is a better target."
        )
    for part in arm.composition:
        for label, pool, subset in part.groups:
            if part.name == "labelled wrong" and label == "wrong" and subset > 1.5 * pool:
                yield f"{arm.name}: {subset:.1%} of its rows are wrong, {pool:.1%} of the pool: it amplifies noise."


def _warnings_of_clustering(clustering: ClusterFacts) -> Iterator[str]:
    where, found = ", ".join(clustering.arms), clustering.diagnostics
    not_learned = clustering.set_aside.get(NOT_LEARNED, 0)
    share = not_learned / max(1, clustering.rows + not_learned)  # copies left out, as the guard does
    if share > SUSPICIOUS_SHARE:
        yield (
            f"{where}: the guard set {share:.0%} of the rows aside; the proxy was trained too little, or the data is "
            "hard."
        )
    health = found.get("health", {})
    if health.get("rising", 0) > 0.5 * max(1, sum(health.values())):
        yield f"{where}: the loss of more than half of the rows rose; the proxy's training went wrong. Lower its rate."
    correlation = (found.get("correlation") or {}).get("unseen")
    if correlation is not None and correlation < WEAK_CORRELATION:
        yield (
            f"{where}: proxy and target find different rows hard (rank correlation {correlation:.2f}); a proxy too "
            "unlike the target is the method's known way to fail."
        )
    for check in found.get("gradients", ()):
        if check["p_value"] is not None and check["p_value"] > CHANCE:
            yield (
                f"{where}: gradients of the {check['model']} at step {check['step']} are no more alike within clusters "
                "than between them; what the method rests on does not show here."
            )
