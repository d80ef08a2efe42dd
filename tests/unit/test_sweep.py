"""The layout of sweeps: grids, joint paths, named overrides, arms, draws, and what is refused."""

import pytest

from s2l_ray.errors import ConfigError
from s2l_ray.experiment import parse_sparse
from s2l_ray.strict_yaml import parse_yaml
from s2l_ray.sweep import lay_out, load_sweep

BASE = "examples: {synthetic: {rows: 100}}\n"


def sweep_of(text, *sets):
    return lay_out(parse_sparse(parse_yaml(BASE + text, origin="x.yaml"), list(sets), origin="x.yaml", name="x"))


def refusal(text, *sets):
    with pytest.raises(ConfigError) as found:
        sweep_of(text, *sets)
    return str(found.value)


def test_grid_is_every_combination_and_reaches_the_config():
    sweep = sweep_of("sweep: {parameters: {cluster.n_clusters: [5, 6], select.budget: [10, '20%', 0.5]}}")
    found = [(t.config.cluster.n_clusters, t.config.select.budget) for t in sweep.trials]
    assert found == [(5, 10), (5, "20%"), (5, 0.5), (6, 10), (6, "20%"), (6, 0.5)]
    assert len({t.name for t in sweep.trials}) == 6


def test_seeds_repeat_a_setting_and_joint_paths_move_together():
    sweep = sweep_of("sweep: {parameters: {select.budget: [0.1, 0.2], select.seed + target.seed: [3, 4]}}")
    assert [(t.config.select.seed, t.config.target.seed) for t in sweep.trials] == [(3, 3), (4, 4), (3, 3), (4, 4)]
    assert [len(repeats) for repeats in sweep.settings().values()] == [2, 2]
    assert list(sweep.settings()) == ["select.budget=0.1", "select.budget=0.2"]


def test_a_root_seed_gives_every_trial_its_own_corpus_and_seeds():
    one, two = sweep_of("sweep: {parameters: {seed: [0, 1]}}").trials
    assert one.config.proxy.seed != two.config.proxy.seed
    assert one.setting == two.setting == {}


def test_arms_and_named_overrides_are_parameters():
    sweep = sweep_of(
        "arms: {s2l: {select.method: paper}, full: {select.method: full}}\n"
        "sweep: {parameters: {corpus: {clean: {examples.synthetic.wrong: 0.0}, noisy: "
        "{examples.synthetic.wrong: 0.05}}}, baseline: {arm: full}}"
    )
    found = [(t.setting, t.config.select.method, t.config.examples.synthetic.wrong) for t in sweep.trials]
    assert found == [
        ({"arm": "s2l", "corpus": "clean"}, "paper", 0.0),
        ({"arm": "s2l", "corpus": "noisy"}, "paper", 0.05),
        ({"arm": "full", "corpus": "clean"}, "full", 0.0),
        ({"arm": "full", "corpus": "noisy"}, "full", 0.05),
    ]


ARMS = "arms: {s2l: {select.method: paper}, full: {select.method: full}, random: {select.method: random}}\n"


def test_some_of_the_arms_can_be_named_in_their_own_order():
    sweep = sweep_of(ARMS + "sweep: {parameters: {arm: [random, s2l], seed: [0, 1]}, baseline: {arm: random}}")
    assert [(t.setting["arm"], t.config.select.method) for t in sweep.trials] == [
        ("random", "random"), ("random", "random"), ("s2l", "paper"), ("s2l", "paper"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arms", "named", "words"),
    [
        (ARMS, "[random, guarded]", ("guarded", "s2l, full, random")),
        (ARMS, "{a: {seed: 1}}", ("expected a list",)),
        ("", "[main]", ("has none",)),
    ],
)
def test_arms_that_the_file_does_not_have_are_refused(arms, named, words):
    with pytest.raises(ConfigError) as caught:
        sweep_of(arms + f"sweep: {{parameters: {{arm: {named}}}}}")
    assert all(word in str(caught.value) for word in words)


def test_random_draws_stay_in_their_range_repeat_themselves_and_are_distinct():
    text = (
        "sweep: {search: random, samples: 20, seed: 5, parameters: {proxy.learning_rate: {low: 1e-4, high: 1e-2, "
        "scale: log}, cluster.n_clusters: {low: 2, high: 4, integer: true}, target.seed: [0, 1]}}"
    )
    here, there = sweep_of(text), sweep_of(text)
    assert [t.values for t in here.trials] == [t.values for t in there.trials]
    rates = {t.config.proxy.learning_rate for t in here.trials}
    assert len(rates) == 20
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) >= 5  # a log scale: about half of them
    assert {t.config.cluster.n_clusters for t in here.trials} == {2, 3, 4}
    assert len(here.trials) == 40


def test_equal_draws_are_tried_once():
    assert len(sweep_of("sweep: {search: random, samples: 50, parameters: {select.budget: [1, 2]}}").trials) == 2


def test_a_set_value_takes_its_parameter_out_of_the_sweep():
    text = "sweep: {parameters: {cluster.n_clusters: [5, 6], select.budget: [10, 20]}}"
    sweep = sweep_of(text, "cluster.n_clusters=7")
    assert [(t.config.cluster.n_clusters, t.config.select.budget) for t in sweep.trials] == [(7, 10), (7, 20)]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("{parameters: {cluster.n_cluster: [1]}}", ["n_clusters", "did you mean", "trial"]),
        ("{parameters: {cluster.n_clusters: [ten]}}", ["cluster.n_clusters", "'ten'"]),
        ("{parameters: {cluster.n_clusters: []}}", ["expected a list of values"]),
        ("{parameters: {cluster.n_clusters: 5}}", ["expected a list of values"]),
        ("{parameters: {cluster.n_clusters: {low: 2, high: 5}}}", ["no grid", "search: random"]),
        ("{search: random, parameters: {proxy.learning_rate: {low: 2, high: 1}}}", ["low below high"]),
        ("{search: random, parameters: {proxy.learning_rate: {low: 0, high: 1, scale: log}}}", ["above 0"]),
        ("{search: bayes, parameters: {select.budget: [1]}}", ["'grid'", "'asha'"]),
        ("{metric: bleu, parameters: {select.budget: [1]}}", ["macro_loss"]),
        ("{parameters: {select.budget: [1]}, baseline: {arm: random}}", ["baseline", "select.budget"]),
        ("{parameters: {select.budget: [1]}, baseline: {select.budget: 3}}", ["baseline", "1"]),
        ("{parameters: {select.budget: [1, 1.0]}}", ["select.budget", "[1, 1.0]", "differ", "100%"]),
        ("{parameters: {select.budget: [1]}, baseline: {proxy.model: {hidden_size: 8}}}", ["baseline", "hidden_size"]),
        ("{parameters: {arm: [1]}}", ["arms"]),
        ("{parameters: {corpus: {clean: 5}}}", ["names with overrides"]),
        ("{parameter: {}}", ["parameters"]),
        ("[1]", ["expected a mapping"]),
        ("{parameters: {seed: {low: 0, high: 1}, select.budget: [1]}}", ["no grid"]),
    ],
)
def test_a_bad_sweep_is_refused_with_what_was_found_and_expected(sweep, words):
    message = refusal(f"sweep: {sweep}")
    for word in ["x.yaml", *words]:
        assert word in message


def test_a_file_without_sweep_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(BASE)
    with pytest.raises(ConfigError, match="s2l run"):
        load_sweep(path)


def test_too_many_trials_are_refused():
    numbers = list(range(1, 102))
    text = f"sweep: {{parameters: {{select.budget: {numbers}, cluster.n_clusters: {numbers}}}}}"
    assert "10000 trials" in refusal(text)


def test_baseline_is_found_however_its_value_is_written():
    sweep = sweep_of("sweep: {parameters: {cluster.n_clusters: [50, 60]}, baseline: {cluster.n_clusters: 50.0}}")
    assert repr(sweep.config.baseline) == "{'cluster.n_clusters': 50}"
    small, large = ({"hidden_size": size, "num_hidden_layers": 1, "num_attention_heads": 2} for size in (8, 16))
    sweep = sweep_of(f"sweep: {{parameters: {{proxy.model: [{small}, {large}]}}, baseline: {{proxy.model: {large}}}}}")
    assert sweep.config.baseline["proxy.model"] == sweep.trials[1].setting["proxy.model"]
