"""Arms side by side: gains are those of pairs of rows, counted as scores are, and only where there are pairs."""

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.artifacts import Artifact
from s2l_ray.attempts import begin
from s2l_ray.config import ResourcesConfig
from s2l_ray.gains import gains
from s2l_ray.judging import summaries
from s2l_ray.judging.metrics import METRICS
from s2l_ray.scoring import Grouping, bounds_of_differences, bounds_of_share_differences, mean_of
from s2l_ray.stage_settings import CompareSettings
from s2l_ray.stages import compare_arms, evaluate_target
from s2l_ray.storage import Storage

SKILLS = {"common": 300, "rare": 60}
"""Rows of the pool; half as many are held out."""
COMMON, RARE, ROWS = 150, 30, 180
"""Of the held-out rows."""


class Arms:
    """Makes the artifacts of arms by hand."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.count = storage, 0
        skill_N = np.repeat(list(SKILLS), list(SKILLS.values()))
        defaults = {name: [None] * len(skill_N) for name in ("source", "is_wrong")}
        table = pa.table({"example_id": np.arange(len(skill_N)), "skill": skill_N, **defaults})
        self.examples = self.make("examples", {"examples-0.parquet": table})
        ids = pa.table({"example_id": np.arange(4)})
        self.subset = self.make("subset", {"subset.parquet": ids}, summary={"rows": 4, "target_response_tokens": 40})

    def make(self, name, tables, *, inputs=None, summary=None) -> Artifact:
        self.count += 1
        output = begin(self.storage, name, f"{self.count:032x}")
        files = [output.write_parquet(path, [table], table.schema) for path, table in tables.items()]
        return output.commit(files, config={}, inputs=inputs or {}, summary=summary or {}, run={"seconds": 0.0})

    def scores(self, right, loss, *, ids=None, metrics=("loss", "exact_match"), labelled=True, **changes):
        """The scores of a target, from verdicts and losses of the held-out rows."""
        skill_N = np.repeat(list(SKILLS), [count // 2 for count in SKILLS.values()])
        table = pa.table(
            {
                "example_id": np.arange(len(skill_N)) if ids is None else ids,
                "source": pa.nulls(len(skill_N), pa.string()),
                "skill": pa.array(skill_N if labelled else [None] * len(skill_N), pa.string()),
                "loss": np.asarray(loss, np.float32),
                "exact_match": pa.array(right, pa.bool_()),
            }
        )
        tables = {"predictions.parquet": table, "scores.parquet": evaluate_target._scores(table, metrics)}
        return self.make("scores", tables, inputs={"eval_examples": "e", "eval_tokens": "t"} | changes)

    def compared(self, scores):
        baselines = {arm: "random" for arm in scores if arm != "random"} if "random" in scores else {}
        inputs = compare_arms.Inputs({arm: (self.examples, self.subset, found) for arm, found in scores.items()}, {})
        self.count += 1
        output = begin(self.storage, "comparison", f"{self.count:032x}")
        result = compare_arms.compare_arms(inputs, CompareSettings(baselines), ResourcesConfig(), output, seed=0)
        made = output.commit(result.files, config={}, inputs={}, summary=result.summary, run={"seconds": 0.0})
        arms = {(r["arm"], r["metric"]): r for r in made.read_table("arms.parquet").to_pylist()}
        gains = {(r["arm"], r["metric"]): r for r in made.read_table("gains.parquet").to_pylist()}
        return arms, gains


@pytest.fixture
def arms(tmp_path):
    return Arms(Storage.at(str(tmp_path)))


@pytest.fixture
def answers():
    """Verdicts and losses of two models on held-out rows, alike in most."""
    generator = np.random.default_rng(0)
    hard_N = generator.random(ROWS)
    return [(hard_N < share, (hard_N * 3 - share).astype(np.float32)) for share in (0.4, 0.7)]


def test_gain_is_the_difference_of_the_scores_with_a_narrower_interval(arms, answers):
    (right_0, loss_0), (right_1, loss_1) = answers
    scores, gained = arms.compared({"s2l": arms.scores(right_1, loss_1), "random": arms.scores(right_0, loss_0)})
    names = ("macro_loss", "micro_loss", "macro_exact_match", "micro_exact_match")
    assert set(gained) == {("s2l", name) for name in names}
    for name in names:
        gain, ours, theirs = gained["s2l", name], scores["s2l", name], scores["random", name]
        sign = -1 if name.endswith("loss") else 1
        assert gain["gain"] == pytest.approx(sign * (ours["value"] - theirs["value"]), abs=1e-6)
        assert gain["gain"] > 0
        assert gain["low"] < gain["gain"] < gain["high"]
        assert gain["high"] - gain["low"] < ours["high"] - ours["low"]
        assert (gain["baseline"], gain["rows"]) == ("random", ROWS)


def test_rows_of_a_skill_weigh_as_in_the_scores(arms):
    ones = np.ones(ROWS)
    loss_N = np.r_[np.full(COMMON, 2.0), np.full(RARE, 0.5)]  # worse at the common skill, better at the rare one
    _, gained = arms.compared({"random": arms.scores(ones, ones), "s2l": arms.scores(ones, loss_N)})
    assert gained["s2l", "macro_loss"]["gain"] == pytest.approx((-1 + 0.5) / 2)
    assert gained["s2l", "micro_loss"]["gain"] == pytest.approx((-1 * 300 + 0.5 * 60) / 360)
    assert gained["s2l", "macro_exact_match"]["gain"] == 0
    assert gained["s2l", "macro_exact_match"]["low"] < -0.001


def test_rows_that_nothing_tells_apart_are_one_group(arms):
    ones = np.ones(ROWS)
    scores = {arm: arms.scores(ones, ones * loss, labelled=False) for arm, loss in (("random", 2.0), ("s2l", 1.5))}
    _, gained = arms.compared(scores)
    assert gained["s2l", "macro_loss"] | {"metric": ""} == gained["s2l", "micro_loss"] | {"metric": ""}
    assert gained["s2l", "macro_loss"]["gain"] == 0.5


def test_only_rows_that_both_were_judged_on_are_pairs(arms):
    place_N, half = np.arange(ROWS), ROWS // 2
    reference = arms.scores(place_N >= 0, place_N, labelled=False)
    verdicts = [None if place == ROWS - 1 else True for place in place_N]
    others = arms.scores(verdicts, place_N + 1, ids=place_N[::-1] + half, labelled=False)
    _, gained = arms.compared({"random": reference, "s2l": others})
    # The row at place half + k of the one is at place ROWS - 1 - k of the other.
    differences = [(half + k) - (ROWS - 1 - k + 1) for k in range(half)]
    assert gained["s2l", "micro_loss"]["rows"] == half
    assert gained["s2l", "micro_loss"]["gain"] == pytest.approx(np.mean(differences))
    # The mean is that of any pairs; its interval is not.
    bounds = bounds_of_differences([(1.0, mean_of(np.array(differences, float)))])
    assert (gained["s2l", "micro_loss"]["low"], gained["s2l", "micro_loss"]["high"]) == pytest.approx(bounds)
    assert gained["s2l", "micro_exact_match"]["rows"] == half - 1


@pytest.mark.parametrize(
    "changes", [{"eval_examples": "others"}, {"eval_tokens": "others"}, {"ids": np.arange(ROWS) + ROWS}]
)
def test_arm_that_was_judged_on_other_rows_or_in_other_tokens_has_no_gain(arms, changes):
    ones = np.ones(ROWS)
    scores, gained = arms.compared({"random": arms.scores(ones, ones), "s2l": arms.scores(ones, ones, **changes)})
    assert ("s2l", "macro_loss") in scores
    assert gained == {}


def test_metric_that_one_arm_lacks_has_no_gain(arms):
    ones = np.ones(ROWS)
    both = {"random": arms.scores(ones, ones), "s2l": arms.scores(ones, ones, metrics=("loss",))}
    assert {metric for _, metric in arms.compared(both)[1]} == {"macro_loss", "micro_loss"}


def test_arm_that_is_alone_has_no_gain(arms):
    ones = np.ones(ROWS)
    assert arms.compared({"s2l": arms.scores(ones, ones)})[1] == {}


def predictions(**columns):
    rows = {"example_id": np.arange(ROWS), "skill": np.repeat(list(SKILLS), [COMMON, RARE])}
    return pa.table(rows | columns)


GROUPING = Grouping("skill", True, SKILLS)


def test_metric_of_all_rows_together_has_no_gain():
    counts = pa.array([range(summaries.COUNTS)] * ROWS, METRICS["bleu"].column)
    table = predictions(bleu=counts, rouge_l=np.linspace(0, 1, ROWS))
    assert {metric for metric, _ in gains(table, table, ["bleu", "rouge_l"], GROUPING)} == {
        "macro_rouge_l",
        "micro_rouge_l",
    }


def test_verdicts_have_the_interval_of_shares_and_other_values_that_of_students_t():
    generator = np.random.default_rng(1)
    ours, theirs = (predictions(rouge_l=generator.random(ROWS), exact_match=generator.random(ROWS) < 0.5) for _ in "ab")
    found = dict(gains(ours, theirs, ["rouge_l", "exact_match"], GROUPING))
    for metric, bounds in (("rouge_l", bounds_of_differences), ("exact_match", bounds_of_share_differences)):
        difference_N = np.subtract(*(np.asarray(table.column(metric).to_pylist(), float) for table in (ours, theirs)))
        parts = [(0.5, mean_of(part)) for part in np.split(difference_N, [COMMON])]
        assert found[f"macro_{metric}"].interval == pytest.approx(bounds(parts))


def test_group_of_a_single_row_leaves_a_loss_without_an_interval_and_a_share_with_one():
    lone = {"skill": ["lone", *["common"] * (ROWS - 1)], "loss": np.ones(ROWS), "exact_match": np.ones(ROWS) > 0}
    table = predictions(**lone)
    found = dict(gains(table, table, ["loss", "exact_match"], GROUPING))
    assert found["macro_loss"].interval == (None, None)
    low, high = found["macro_exact_match"].interval
    assert low < 0 < high
    # A group that the pool lacks cannot be weighed by it.
    assert found["micro_loss"].rows == ROWS
