"""What trials come to: best setting, paired comparisons, recommended budgets, the table."""

from dataclasses import replace

import pytest

from s2l_ray.errors import ConfigError
from s2l_ray.experiment import parse_sparse
from s2l_ray.strict_yaml import parse_yaml
from s2l_ray.sweep import lay_out
from s2l_ray.trials import Outcome, SweepResult, lines, same_results

TEXT = """
examples: {synthetic: {rows: 100}}
evaluate: {metrics: [loss, exact_match]}
arms: {s2l: {select.method: paper}, random: {select.method: random}, full: {select.method: full}}
sweep:
  metric: macro_exact_match
  baseline: {arm: random}
  parameters: {select.budget: [0.1, 0.2], select.seed: [0, 1, 2]}
"""
SCORES = {
    ("s2l", 0.1): [0.50, 0.52, 0.54],
    ("s2l", 0.2): [0.60, 0.63, 0.61],
    ("random", 0.1): [0.30, 0.31, 0.35],
    ("random", 0.2): [0.59, 0.64, 0.61],
    ("full", 0.1): [0.61, 0.63, 0.62],
    ("full", 0.2): [0.61, 0.63, 0.62],
}


def finished(trial, metrics):
    return Outcome(trial, metrics, {"subset": "d", "scores": trial.name}, {"train": 1.0})


def result_of(scores=SCORES, failed=()):
    sweep = lay_out(parse_sparse(parse_yaml(TEXT, origin="x"), [], origin="x", name="x"))
    outcomes = []
    for trial in sweep.trials:
        place = (trial.setting["arm"], trial.setting["select.budget"])
        seed = trial.seeds["select.seed"]
        if (*place, seed) in failed:
            outcomes.append(Outcome(trial, error="out of luck"))
        else:
            outcomes.append(finished(trial, {"macro_exact_match": scores[place][seed]}))
    return SweepResult(sweep, tuple(outcomes))


def test_best_setting_is_the_best_mean():
    assert result_of().best.label == "arm=full, select.budget=0.1"


def test_best_setting_is_not_one_with_a_single_lucky_seed_left():
    failed = [("s2l", 0.2, 0), ("s2l", 0.2, 2)]
    scores = SCORES | {("s2l", 0.2): [0.1, 0.99, 0.1]}
    assert result_of(scores, failed).best.label == "arm=full, select.budget=0.1"


def test_comparisons_pair_each_setting_with_the_baseline_of_its_own_budget():
    found = {c.name: c for c in result_of().comparisons()}
    assert found["arm=s2l, select.budget=0.1"].effect == pytest.approx(0.2)
    assert found["arm=s2l, select.budget=0.1"].baseline == "arm=random"
    assert found["arm=s2l, select.budget=0.1"].verdict == "better"
    assert found["arm=s2l, select.budget=0.2"].verdict == "not distinguishable"
    assert not any(name.startswith("arm=random") for name in found)
    assert all(c.p_adjusted >= c.p_value for c in found.values())


def test_comparisons_of_every_metric_know_which_way_is_good():
    result = result_of()
    outcomes = []
    for outcome in result.outcomes:
        metrics = {**outcome.metrics, "wrong_share": 1 - outcome.metrics["macro_exact_match"], "rows": 10.0}
        outcomes.append(finished(outcome.trial, metrics))
    found = SweepResult(result.sweep, tuple(outcomes)).all_comparisons()
    assert {c.metric for c in found} == {"macro_exact_match", "wrong_share"}
    first = {c.metric: c.effect for c in found if c.name == "arm=s2l, select.budget=0.1"}
    assert first["wrong_share"] == pytest.approx(first["macro_exact_match"])
    assert len([c for c in found if c.metric == "wrong_share"]) == len(result.comparisons())


def test_comparisons_leave_out_seeds_that_failed_on_either_side():
    found = {c.name: c for c in result_of(failed=[("s2l", 0.1, 0), ("random", 0.1, 1)]).comparisons()}
    assert found["arm=s2l, select.budget=0.1"].pairs == 1
    assert found["arm=s2l, select.budget=0.1"].effect == pytest.approx(0.54 - 0.35)


def test_recommended_budget_is_measured_against_full_data():
    advice = result_of().budgets()
    assert set(advice) == {"arm=s2l", "arm=random"}
    assert advice["arm=s2l"].recommended == 0.2
    assert advice["arm=s2l"].against.baseline == "full data"


def test_table_has_a_row_per_trial_with_values_status_and_error():
    table = result_of(failed=[("s2l", 0.1, 0)]).table()
    assert table.num_rows == 18
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["arm"], first["select.budget"], first["select.seed"]) == ("s2l", 0.1, 0)
    assert (first["status"], first["error"], first["macro_exact_match"]) == ("failed", "out of luck", None)
    assert table.column("status").to_pylist().count("finished") == 17
    assert {"train_seconds", "subset_digest"} <= set(table.column_names)


def test_lines_say_best_verdicts_and_budget_in_words():
    text = "\n".join(lines(result_of()))
    assert "best: arm=full" in text
    assert "not distinguishable from arm=random" in text
    assert "recommended budget 0.2" in text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cluster.guard", [None, 0.8]),
        ("cluster.window", ["all", 4]),
        ("select.budget", [0.1, "50 rows"]),
        ("select.quota_exponent", [None, 0.5]),
        ("select.budget", [0.1, 50]),
    ],
)
def test_values_of_several_kinds_are_one_column(name, values):
    text = "examples: {synthetic: {rows: 100}}\nselect: {method: guarded}\nsweep: {parameters: {}}\n"
    sparse = parse_sparse(parse_yaml(text, origin="x"), [], origin="x", name="x")
    sparse = replace(sparse, sweep={"parameters": {name: values}})
    sweep = lay_out(sparse)
    table = SweepResult(sweep, tuple(finished(trial, {"macro_loss": 1.0}) for trial in sweep.trials)).table()
    numbers = all(isinstance(value, int | float) for value in values)
    assert table.column(name).to_pylist() == [value if numbers else str(value) for value in values]


@pytest.mark.parametrize("order", [[0.1, 0.2, 0.4], [0.4, 0.1, 0.2]])
def test_recommended_budget_is_the_smallest_in_whatever_order_they_are_listed(order):
    text = TEXT.replace("[0.1, 0.2]", str(order)).replace(", full: {select.method: full}", "")
    sweep = lay_out(parse_sparse(parse_yaml(text, origin="x"), [], origin="x", name="x"))
    outcomes = tuple(
        finished(
            t, {"macro_exact_match": [0.5, 0.6, 0.55][t.seeds["select.seed"]], "rows": 100 * t.setting["select.budget"]}
        )
        for t in sweep.trials
    )
    advice = SweepResult(sweep, outcomes).budgets()
    assert {found.recommended for found in advice.values()} == {0.1}


def test_metric_that_is_not_measured_is_refused_before_any_trial():
    text = TEXT.replace("[loss, exact_match]", "[loss]")
    with pytest.raises(ConfigError, match=r"macro_exact_match is not measured.*Add exact_match to evaluate.metrics"):
        lay_out(parse_sparse(parse_yaml(text, origin="x"), [], origin="x", name="x"))


def test_seeds_that_decide_nothing_in_a_setting_are_said():
    outcomes = [
        replace(o, digests={**o.digests, "scores": "one"}) if o.trial.setting["arm"] == "full" else o
        for o in result_of().outcomes
    ]
    said = list(same_results(SweepResult(result_of().sweep, tuple(outcomes))))
    assert [line.split(": ")[0] for line in said] == ["arm=full, select.budget=0.1", "arm=full, select.budget=0.2"]
    assert all("3 seeds, but only 1 distinct result." in line and "target.seed" in line for line in said)
    assert list(same_results(result_of())) == []
