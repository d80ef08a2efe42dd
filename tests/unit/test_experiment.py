"""Experiments: files, `--set` lines and arms; how mistakes are said."""

import re
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.config import FreshModel
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import load_experiment, override, parse_override, parse_sparse
from s2l_ray.strict_yaml import parse_yaml
from tests.unit.tiny import SYNTHETIC, config_of, parse, refusal

ARMS = """
arms:
  random: {select.method: random}
  wide: {cluster.n_clusters: 300, target.model: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}}
"""


# ----------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("clustr: {}", "clustr", "cluster"),
        ("sed: 1", "sed", "seed"),
        ("cluster: {n_cluster: 5}", "cluster.n_cluster", "n_clusters"),
        ("proxy: {checkpoint: 5}", "proxy.checkpoint", "checkpoints"),
        (
            "proxy: {model: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, model_typ: gpt2}}",
            "proxy.model.model_typ",
            "model_type",
        ),
        ("resources: {train_proxi: {}}", "resources.train_proxi", "train_proxy"),
        ("resources: {train_proxy: {worker: 2}}", "resources.train_proxy.worker", "workers"),
        ("resources: {score_examples: {actor: [1, 2]}}", "resources.score_examples.actor", "actors"),
        ("arm: {}", "arm", "arms"),
        ("arms: {one: {select.metod: random}}", "select.metod", "method"),
        ("arms: {one: {resorces.train_proxy.workers: 2}}", "resorces", "resources"),
    ],
)
def test_key_misspelt_says_which_was_meant(text, key, meant):
    message = refusal(SYNTHETIC + text)
    assert f"`{key}`" in message
    assert f"did you mean `{meant}`" in message


def test_key_misspelt_in_list_of_inputs_says_which_was_meant():
    message = refusal("examples: {path: [{path: a.jsonl, sorce: x}]}")
    assert "`examples.path.0.sorce`" in message
    assert "did you mean `source`" in message


def test_key_misspelt_in_set_says_which_was_meant():
    message = refusal(SYNTHETIC, "cluster.n_cluster=5")
    assert "cluster.n_cluster" in message
    assert "`n_clusters`" in message


def test_key_like_nothing_known_lists_what_is_known():
    message = refusal(SYNTHETIC + "report: {zzz: 1}")
    assert "report.zzz" in message
    assert "examples" in message.split("known here")[1]


def test_key_misspelt_in_one_arm_names_the_arm():
    message = refusal(SYNTHETIC + "arms: {good: {}, bad: {select.metod: random}}")
    assert "arm bad" in message


def test_all_mistakes_are_said_at_once():
    message = refusal(SYNTHETIC + "clustr: {}\nselect: {budget: 0}\nproxy: {epochs: -1}")
    assert all(key in message for key in ("clustr", "select.budget", "proxy.epochs"))


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("cluster: ", "cluster", "a mapping"),
        ("cluster: [5]", "cluster", "a mapping"),
        ("cluster: {window: last}", "cluster.window", "'all', 'early', 'middle' or 'late'"),
        ("evaluate: {metrics: loss}", "evaluate.metrics", "a list"),
        ("evaluate: {metrics: []}", "evaluate.metrics", "at least 1 item"),
        ("resources: {score_examples: {actors: [1, 2, 3]}}", "resources.score_examples.actors", "at most 2 items"),
        ("examples: {path: a, columns: [a]}", "examples.columns", "a mapping"),
        ("examples: {path: [a]}", "examples.path.0", "a mapping"),
    ],
)
def test_value_of_another_kind_says_in_words_of_yaml_what_was_expected(text, key, expected):
    message = refusal(text if text.startswith("examples") else SYNTHETIC + text)
    assert f"`{key}`: found " in message
    assert f"expected {expected}" in message


def test_value_of_great_length_is_cut_in_the_message():
    assert len(refusal(SYNTHETIC, f"cluster.n_clusters={'x' * 100_000}")) < 1000


def test_examples_missing_says_how_to_set_it():
    message = refusal("seed: 1")
    assert "`examples` is missing" in message
    assert "--set examples" in message


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("text", ["", "# only a comment", "[]", "5", "text", "null"])
def test_experiment_not_a_mapping_is_refused(text):
    assert "expected a mapping" in refusal(text)


def test_file_missing_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_experiment(tmp_path / "nowhere.yaml")


def test_file_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_experiment(tmp_path)


@pytest.mark.parametrize("data", [b"seed: \xff\xfe", "seed: 1".encode("utf-16"), b"a: \xe9"])
def test_file_not_utf8_is_refused(tmp_path, data):
    path = tmp_path / "latin.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"latin\.yaml.*UTF-8"):
        load_experiment(path)


def test_file_with_byte_order_mark_and_windows_lines_is_read(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 7\r\nexamples: {synthetic: {}}\r\n")
    experiment = load_experiment(path)
    assert experiment.shared.seed == 7
    assert experiment.name == "windows"


def test_sweep_that_would_not_run_is_refused_not_ignored():
    assert "sweep" in refusal(SYNTHETIC + "sweep: {cluster.n_clusters: [1, 2]}")
    assert config_of("sweep: {}") == config_of()


# ---------------------------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("select.budget=10%", "select.budget", "10%"),
        ("a.b=5", "a.b", 5),
        ("a=0.1", "a", 0.1),
        ("a=1e-4", "a", 1e-4),
        ("a=true", "a", True),
        ("a=[1, x]", "a", [1, "x"]),
        ("a={b: 1}", "a", {"b": 1}),
        ("a=", "a", None),
        ("a=b=c", "a", "b=c"),
        (" a =1", "a", 1),
    ],
)
def test_set_line_value_is_typed(line, path, value):
    assert parse_override(line) == (path, value)


@pytest.mark.parametrize("text", ["/data/run #2", "#2", " # ", "[1, 2] #3", "'a' #b"])
def test_set_line_of_which_a_part_would_be_a_comment_is_refused_with_what_to_write(text):
    with pytest.raises(ConfigError, match=r"would be a comment.*e\.g\. --set '(.*)'\.$") as caught:
        parse_override(f"storage={text}")
    advice = re.search(r"e\.g\. --set (.*)\.$", str(caught.value))[1]
    assert parse_override(*shlex.split(advice)) == ("storage", text)


def test_set_line_with_a_sign_that_begins_no_comment_is_taken():
    assert parse_override("a=b#c") == ("a", "b#c")
    assert parse_override('a="b #c"') == ("a", "b #c")


@pytest.mark.parametrize("line", ["seed", "", "=1", "  =1", "seed=[1", "seed=a: b: c", "seed=!!python/object:x {}"])
def test_set_line_malformed_is_refused_and_shown(line):
    assert "--set" in refusal(SYNTHETIC, line)


@pytest.mark.parametrize("path", [".", ".a", "a.", "a..b", ".."])
def test_set_path_with_empty_name_is_refused(path):
    assert f"override path {path!r}" in refusal(SYNTHETIC, f"{path}=1")


@pytest.mark.parametrize("line", ["seed.x=1", "storage.x=1"])
def test_set_path_through_a_scalar_is_refused(line):
    message = refusal("seed: 3\nstorage: here\n" + SYNTHETIC, line)
    assert line.partition(".")[0] in message
    assert "section" in message


def test_set_path_through_a_scalar_below_names_the_whole_path():
    message = refusal(SYNTHETIC + "cluster: {n_clusters: 5, window: all}", "cluster.window.first=1")
    assert "'cluster.window.first'" in message
    assert "`cluster.window` is" in message


@pytest.mark.parametrize("line", ["arms=null", "arms.a={select.method: random}"])
def test_set_path_of_arms_is_refused_with_advice(line):
    assert "did you mean" not in refusal(SYNTHETIC, line)


OWN_ARMS = "\narms: {few: {select.budget: 0.1}, many: {select.budget: 0.5, select.method: random}}\n"


def test_set_path_that_arms_set_themselves_leaves_one_arm_and_says_so(capsys):
    found = parse(SYNTHETIC + OWN_ARMS, "select.method=full")
    assert {config.select.method for config in found.arms.values()} == {"full"}
    said = " ".join(capsys.readouterr().err.split())
    assert "--set select.method: the arms many set it themselves; all arms of exp.yaml are left out" in said
    assert len(parse(SYNTHETIC + OWN_ARMS, "cluster.n_clusters=5").arms) == 2
    assert capsys.readouterr().err == ""


def test_set_path_that_arms_of_a_sweep_set_themselves_is_refused():
    sweep = "sweep: {parameters: {cluster.n_clusters: [2, 3]}}\n"
    with pytest.raises(ConfigError, match=r"--set select\.budget: the arms few, many of x set it themselves"):
        parse_sparse(parse_yaml(SYNTHETIC + OWN_ARMS + sweep, origin="x"), ["select.budget=5"], origin="x", name="x")


def test_set_lines_apply_in_order():
    assert config_of("", "cluster.n_clusters=5", "cluster.n_clusters=7").cluster.n_clusters == 7


def test_set_leaves_file_values_of_the_section_alone():
    cluster = config_of("cluster: {n_clusters: 9, max_iter: 3}", "cluster.n_clusters=5").cluster
    assert (cluster.n_clusters, cluster.max_iter) == (5, 3)


names = st.text("abc", min_size=1, max_size=2)

values = st.one_of(st.none(), st.integers(), st.text(max_size=3))

trees = st.recursive(st.dictionaries(names, values, max_size=3), lambda t: st.dictionaries(names, t, max_size=3))


def paths_of(tree, above=()):
    for key, value in tree.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from paths_of(value, (*above, key))


@given(tree=trees, path=st.lists(names, min_size=1, max_size=4), value=values)
@settings(deadline=None)
def test_override_sets_one_path_and_leaves_all_others_alone(tree, path, value):
    before = repr(tree)
    try:
        changed = override(tree, ".".join(path), value)
    except ConfigError:
        scalars = {p for p, v in paths_of(tree) if v is not None and not isinstance(v, dict)}
        assert any(tuple(path[:n]) in scalars for n in range(1, len(path)))
        return
    finally:
        assert repr(tree) == before
    assert dict(paths_of(changed))[tuple(path)] == value

    def others(data):
        chain = {tuple(path[:n]) for n in range(1, len(path) + 1)}
        return {p: v for p, v in paths_of(data) if p not in chain and p[: len(path)] != tuple(path)}

    assert others(changed) == others(tree)


# ----------------------------------------------------------------------------------------------------------------- arms


def test_arms_none_given_is_one_arm_main():
    assert list(parse(SYNTHETIC).arms) == ["main"]
    assert list(parse(SYNTHETIC + "arms: {}").arms) == ["main"]


def test_arms_override_the_file_each_on_its_own():
    arms = parse(SYNTHETIC + "select: {budget: 0.3}" + ARMS).arms
    assert list(arms) == ["random", "wide"]
    assert (arms["random"].select.method, arms["wide"].select.method) == ("random", "paper")
    assert (arms["random"].cluster.n_clusters, arms["wide"].cluster.n_clusters) == (100, 300)
    assert all(arm.select.budget == 0.3 for arm in arms.values())
    assert isinstance(arms["wide"].target.model, FreshModel)


@pytest.mark.parametrize(
    ("line", "collapses"),
    [
        ("select.method=full", True),
        ("select={method: full}", True),
        ("target.model.hidden_size=16", True),
        ("cluster.n_clusters=7", True),
        ("select.budget=0.5", False),
        ("cluster.max_iter=3", False),
        ("seed=3", False),
        ("target.epochs=1", False),
    ],
)
def test_set_on_a_path_of_an_arm_collapses_the_arms(line, collapses):
    target = "target: {model: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}}\n"
    experiment = parse(SYNTHETIC + target + ARMS, line)
    assert list(experiment.arms) == (["main"] if collapses else ["random", "wide"])
    if line == "select.method=full":
        assert experiment.shared.select.method == "full"
        assert experiment.shared.cluster.n_clusters == 100
    if line == "select.budget=0.5":
        assert [arm.select.budget for arm in experiment.arms.values()] == [0.5, 0.5]


@pytest.mark.parametrize(
    "arms", ["[a]", "5", "{a: 5}", "{a: [select.method]}", "{a: }", "{'a/b': {}}", "{'': {}}", "{'a b': {}}"]
)
def test_arms_malformed_are_refused(arms):
    assert "arm" in refusal(SYNTHETIC + f"arms: {arms}")


@pytest.mark.parametrize("path", ["storage", "resources.train_proxy.workers", "resources"])
def test_arm_that_overrides_what_all_share_is_refused_not_ignored(path):
    message = refusal(SYNTHETIC + f"arms: {{one: {{}}, two: {{{path}: 5}}}}")
    assert path in message
    assert "two" in message


def test_arm_that_replaces_a_section_is_refused_since_it_would_drop_the_rest():
    message = refusal(SYNTHETIC + "select: {budget: 0.5}\narms: {one: {select: {method: random}}}")
    assert "`select.method" in message
