"""The plan: what arms share, what a changed setting changes, what is there already."""

import json
import re
import shlex
from collections import Counter
from contextlib import nullcontext
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import s2l_ray
from s2l_ray.artifacts import Artifact, Manifest, find_artifact
from s2l_ray.attempts import begin
from s2l_ray.baselines import baselines
from s2l_ray.cli import main
from s2l_ray.config import Config, InputPath
from s2l_ray.digests import DigestCache
from s2l_ray.errors import ConfigError, DataError, S2LError
from s2l_ray.experiment import Experiment, experiment_of, load_experiment, parse_sparse
from s2l_ray.extension import arm_to_extend, build_extension
from s2l_ray.graph import STAGES, Node, Pipeline, examine
from s2l_ray.needs import Needs, Tolerated
from s2l_ray.plan import build_pipeline
from s2l_ray.storage import Storage
from s2l_ray.strict_yaml import parse_yaml
from s2l_ray.sweep import load_sweep
from tests.unit import tiny

ROOT = Path(s2l_ray.__file__).parent.parent
WORKFLOWS = sorted((ROOT / "workflows").rglob("*.yaml"))
RECIPES = sorted((ROOT / "workflows" / "recipes").glob("*.yaml"))
QUICKSTART = ROOT / "workflows" / "quickstart.yaml"
MODEL = "{hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}"
BASE = f"examples: {{synthetic: {{}}}}\nproxy: {{model: {MODEL}}}\ntarget: {{model: {MODEL}, engine: torch}}\n"
ARMS = "arms: {random: {select.method: random}, s2l: {select.method: paper}, full: {select.method: full}}\n"


def laid_out(text: str = "", *sets: str) -> Experiment:
    return experiment_of(parse_sparse(parse_yaml(BASE + text, origin="x"), list(sets), origin="x", name="x"))


def pipeline_of(text: str = "", *sets: str) -> Pipeline:
    return build_pipeline(laid_out(text, *sets))


def by_artifact(pipeline: Pipeline) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in pipeline.nodes:
        found.setdefault(node.artifact, set()).add(node.key)
    return found


def changed_artifacts(one: Pipeline, other: Pipeline) -> set[str]:
    before, after = by_artifact(one), by_artifact(other)
    return {name for name in before | after if before.get(name) != after.get(name)}


def node_of(pipeline: Pipeline, artifact: str) -> Node:
    return next(node for node in pipeline.nodes if node.artifact == artifact)


def rows_file(folder: Path, name: str = "rows.jsonl", text: str = "plus") -> Path:
    path = folder / name
    lines = [json.dumps({"instruction": f"{i} {text} 1", "output": str(i + 1)}) for i in range(20)]
    path.write_text("\n".join(lines) + "\n")
    return path


# -------------------------------------------------------------------------------------------------------------- layout


def test_stages_are_files_of_the_stages_folder_in_order_of_use():
    for stage in STAGES:
        assert (ROOT / "s2l_ray" / "stages" / f"{stage}.py").is_file()
    order = [node.stage for node in pipeline_of(ARMS).nodes]
    assert order == sorted(order, key=list(STAGES).index)


def test_every_node_comes_after_its_inputs():
    seen: set[str] = set()
    for node in pipeline_of(ARMS).nodes:
        assert all(parent.key in seen for parent in node.inputs.values())
        seen.add(node.key)


def test_arms_of_the_quickstart_share_what_precedes_their_difference():
    pipeline = build_pipeline(load_experiment(QUICKSTART))
    assert Counter(node.artifact for node in pipeline.nodes) == {
        "examples": 1,
        "eval_examples": 1,
        "tokenizer": 1,
        "overlap": 1,
        "tokens": 2,
        "proxy": 1,
        "trajectories": 1,
        "clusters": 1,
        "subset": 3,
        "target": 3,
        "scores": 3,
        "comparison": 1,
    }
    labels = {pipeline.label(node) for node in pipeline.nodes}
    assert {"subset [random]", "target [s2l]", "scores [full]", "proxy [s2l]", "examples", "tokens"} <= labels
    assert len(labels) == len(pipeline.nodes)


def test_arms_that_differ_in_k_share_the_trajectories():
    pipeline = pipeline_of("arms: {a: {cluster.n_clusters: 5}, b: {cluster.n_clusters: 7}}")
    counts = Counter(node.artifact for node in pipeline.nodes)
    assert (counts["trajectories"], counts["clusters"], counts["subset"]) == (1, 2, 2)


def test_arms_that_are_equal_share_everything():
    counts = Counter(node.artifact for node in pipeline_of("arms: {a: {}, b: {}}").nodes)
    assert (counts["subset"], counts["scores"], counts["comparison"]) == (1, 1, 1)


@pytest.mark.parametrize("method", ["random", "random_per_source", "full"])
def test_selector_without_trajectories_trains_no_proxy(method):
    assert not {"proxy", "trajectories", "clusters"} & set(by_artifact(pipeline_of("", f"select.method={method}")))


@pytest.mark.parametrize("method", ["paper", "official"])
def test_selector_on_trajectories_trains_a_proxy(method):
    assert {"proxy", "trajectories", "clusters"} <= set(by_artifact(pipeline_of("", f"select.method={method}")))


def test_trajectories_from_elsewhere_take_the_place_of_the_proxy(tmp_path):
    pq.write_table(pa.table({"example_id": [1], "loss": [[1.0]]}), tmp_path / "losses.parquet")
    path = f"trajectories.path={tmp_path / 'losses.parquet'}"
    pipeline = pipeline_of("", path)
    assert "proxy" not in by_artifact(pipeline)
    assert node_of(pipeline, "trajectories").stage == "import_trajectories"
    renamed = pipeline_of("", path, "trajectories.columns={loss: curve}")
    assert changed_artifacts(pipeline, renamed) == AFTER_SCORING
    assert changed_artifacts(pipeline, pipeline_of("", path, "proxy.epochs=1")) == set()
    with pytest.raises(ConfigError, match="hidden states"):
        laid_out("", path, "select.method=facility_location")


def test_extension_trains_nothing_and_scores_its_own_rows_only(tmp_path):
    experiment = laid_out(ARMS)
    pipeline = build_extension(experiment, arm_to_extend(experiment, None), InputPath(path=str(rows_file(tmp_path))))
    counts = Counter(node.artifact for node in pipeline.nodes)
    once = dict.fromkeys(("proxy", "clusters", "subset", "assignments", "extension", "tokenizer"), 1)
    seen = dict.fromkeys(("eval_examples", "overlap"), 1)
    assert counts == {**once, **seen, "examples": 2, "trajectories": 2, "tokens": 2}
    run = build_pipeline(experiment)
    assert {node.key for node in pipeline.nodes if node.artifact in ("proxy", "clusters", "subset")} <= {
        node.key for node in run.nodes
    }


@pytest.mark.parametrize("decontaminate", ["report", "drop"])
def test_later_rows_are_compared_with_the_held_out_ones(tmp_path, decontaminate):
    experiment = laid_out(ARMS, f"examples.decontaminate={decontaminate}")
    pipeline = build_extension(experiment, arm_to_extend(experiment, None), InputPath(path=str(rows_file(tmp_path))))
    extension = node_of(pipeline, "extension")
    later = extension.inputs["examples"]
    (overlap,) = (n for n in pipeline.nodes if n.artifact == "overlap" and n.inputs["examples"] == later)
    assert overlap.config == decontaminate
    assert overlap.inputs["eval_examples"] in build_pipeline(experiment).nodes
    for name in ("proxy_tokens", "target_tokens"):
        assert (overlap in extension.inputs[name].inputs.values()) == (decontaminate == "drop")


@pytest.mark.parametrize(
    ("text", "arm", "words"),
    [
        (ARMS, "nobody", "there is no such arm"),
        (ARMS, "random", "cannot be extended"),
        ("arms: {a: {select.method: paper}, b: {select.method: guarded}}", None, "a, b of a, b can be"),
        ("select: {method: random}", None, "No arm of main can be"),
        ("select: {budget: 50}", None, "says nothing of new rows"),
    ],
)
def test_extension_of_what_has_no_quotas_is_refused(tmp_path, text, arm, words):
    experiment = laid_out(text)
    with pytest.raises(ConfigError, match=words):
        build_extension(experiment, arm_to_extend(experiment, arm), InputPath(path=str(rows_file(tmp_path))))


# ------------------------------------------------------------------------------------------------ what a change changes

AFTER_SUBSET = {"subset", "target", "scores", "comparison"}
AFTER_CLUSTERS = {"clusters"} | AFTER_SUBSET
AFTER_SCORING = {"trajectories"} | AFTER_CLUSTERS
AFTER_PROXY = {"proxy"} | AFTER_SCORING
EVERYTHING = {"examples", "eval_examples", "overlap", "tokenizer", "tokens"} | AFTER_PROXY


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("resources.train_proxy.workers=2", set()),
        ("resources.train_proxy.gradient_checkpointing=true", set()),
        ("proxy.attention=eager", AFTER_PROXY),
        ("target.attention=eager", {"target", "scores", "comparison"}),
        ("target.lora={}", {"target", "scores", "comparison"}),
        ("resources.score_examples.actors=[3, 9]", set()),
        ("resources.address=auto", set()),
        ("storage=/elsewhere", set()),
        ("report.examples=3", set()),
        ("score.checkpoints_per_pass=2", set()),
        ("examples.on_bad_row=reject", set()),
        ("examples.max_rejected=0.5", set()),
        ("proxy.seed=42", AFTER_PROXY),
        ("cluster.seed=42", AFTER_CLUSTERS),
        ("select.seed=42", AFTER_SUBSET),
        ("target.seed=42", {"target", "scores", "comparison"}),
        ("seed=42", EVERYTHING),
        ("proxy.epochs=1", AFTER_PROXY),
        ("proxy.checkpoints=3", AFTER_PROXY),
        ("score.batch_tokens=99", AFTER_SCORING),
        ("score.shard_rows=99", AFTER_SCORING),
        ("score.precision=bf16", AFTER_SCORING),
        ("cluster.n_clusters=5", AFTER_CLUSTERS),
        ("cluster.max_iter=5", AFTER_CLUSTERS),
        ("cluster.stratify_by=source", AFTER_CLUSTERS),
        ("select.budget=0.5", AFTER_SUBSET),
        ("select.quota_exponent=0.5", AFTER_SUBSET),
        ("select.method=official", AFTER_CLUSTERS),
        ("target.learning_rate=1e-3", {"target", "scores", "comparison"}),
        ("target.match=steps", {"target", "scores", "comparison"}),
        ("target.precision=bf16", {"target", "scores", "comparison"}),
        ("evaluate.metrics=[exact_match]", {"scores", "comparison"}),
        ("evaluate.metrics=[math_answer]", {"scores", "comparison"}),
        ("evaluate.stop=[Question]", {"scores", "comparison"}),
        ("evaluate.engine=vllm", {"scores", "comparison"}),
        ("evaluate.prompt=program", {"tokens", "scores", "comparison"}),
        ("evaluate.max_rows=5", {"scores", "comparison"}),
        ("tokens.max_tokens=64", EVERYTHING - {"examples", "eval_examples", "overlap"}),
        ("tokens.vocab_size=64", EVERYTHING - {"examples", "eval_examples", "overlap"}),
        ("tokens.template=plain", EVERYTHING - {"examples", "eval_examples", "overlap"}),
        ("tokens.proxy_template=plain", EVERYTHING - {"examples", "eval_examples", "overlap"}),
        ("examples.synthetic.rows=10", EVERYTHING),
        ("examples.decontaminate=drop", EVERYTHING - {"examples", "eval_examples", "overlap", "tokenizer"}),
    ],
)
def test_setting_changes_what_depends_on_it_and_nothing_else(line, expected):
    room = "evaluate.max_new_tokens=64"  # the default, written out: longer prompts want it to be
    assert changed_artifacts(pipeline_of(), pipeline_of("", line, room)) == expected


@pytest.mark.parametrize("line", ["proxy.epochs=3", "cluster.guard=null", "target.weight_decay=0"])
def test_default_that_is_written_out_changes_nothing(line):
    assert changed_artifacts(pipeline_of(), pipeline_of("", line)) == set()


def test_engine_of_evaluation_is_part_of_the_address_only_where_it_is_vllm():
    engines = ("transformers", "vllm")
    scores = [node_of(pipeline_of("", f"evaluate.engine={name}"), "scores").settings for name in engines]
    assert [settings.get("engine") for settings in scores] == [None, "vllm"]


def test_setting_every_key_but_where_it_runs_changes_something():
    """A key that reaches no fingerprint would mix old files with new settings."""
    where = {"resources", "storage", "report", "tracking"}
    spared = {"score.checkpoints_per_pass", "examples.on_bad_row", "examples.max_rejected", "evaluate.columns"}
    spared |= {"evaluate.held_out", "evaluate.path", "examples.path"}  # unused with a synthetic corpus, or need files
    spared |= {"evaluate.encoder"}  # unused without `bert_score`
    changes = {
        "tokens": {"tokenizer": "word_level", "proxy_template": "plain"},
        "cluster": {"stratify_by": "source"},
        "select": {"method": "random", "budget": 0.77},
        "target": {"engine": "deepspeed", "match": "tokens", "order": "rank", "zero_stage": 1, "lora": {}},
        "evaluate": {
            "metrics": ["exact_match"],
            "stop": ["Question:"],
            "engine": "vllm",
            "encoder": {"model": "an/encoder"},
        },
        "examples": {"format": "alpaca", "columns": {"id": "uid"}, "synthetic": {"rows": 7}},
    }
    base, silent = pipeline_of(), []
    for section, field in Config.model_fields.items():
        if section in where or section in ("seed", "trajectories"):  # the latter need files, above
            continue
        for key, leaf in field.annotation.model_fields.items():
            current = getattr(getattr(laid_out().shared, section), key)
            if key in changes.get(section, {}):
                value = changes[section][key]
            elif key == "model":
                value = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            elif key in ("precision", "attention", "prompt"):
                value = {"precision": "bf16", "attention": "eager", "prompt": "program"}[key]
            elif key == "revision":
                value = "0" * 40
            elif isinstance(current, bool) or leaf.annotation is bool:
                if key == "trust_remote_code":  # needs a revision
                    continue
                value = not current
            elif key == "checkpoints_per_pass" or current is None:
                value = 3
            elif isinstance(current, float) and 0 <= current < 1:
                value = 0.123
            elif isinstance(current, int | float):
                value = current + 1
            else:
                continue
            line = f"{section}.{key}={json.dumps(value)}"
            if f"{section}.{key}" in ("evaluate.path", "examples.path"):
                continue
            room = ["evaluate.max_new_tokens=64"] if key == "prompt" else []
            if not changed_artifacts(base, pipeline_of("", line, *room)):
                silent.append(f"{section}.{key}")
    assert set(silent) <= spared


def test_epoch_of_a_stage_moves_its_fingerprint(monkeypatch):
    node = node_of(pipeline_of(), "clusters")
    before = node.fingerprint({"trajectories": "d"}, None)
    monkeypatch.setitem(STAGES, "cluster_trajectories", STAGES["cluster_trajectories"] + 1)
    assert node.fingerprint({"trajectories": "d"}, None) != before


def test_schema_version_moves_every_fingerprint(monkeypatch):
    nodes = pipeline_of().nodes
    before = [node.fingerprint({}, None) for node in nodes]
    monkeypatch.setattr("s2l_ray.schemas.SCHEMA_VERSION", 99)
    assert all(a != node.fingerprint({}, None) for a, node in zip(before, nodes, strict=True))


def test_fingerprint_follows_digests_of_inputs_and_of_the_outside():
    node = node_of(pipeline_of(), "clusters")
    prints = [
        node.fingerprint({"trajectories": "a"}, None),
        node.fingerprint({"trajectories": "b"}, None),
        node.fingerprint({"examples": "a"}, None),
        node.fingerprint({"trajectories": "a"}, "o"),
    ]
    assert len(set(prints)) == 4
    assert all(len(p) == 32 and set(p) <= set("0123456789abcdef") for p in prints)


# -------------------------------------------------------------------------------------------------------------- until


def test_until_keeps_a_stage_and_what_it_needs():
    part = pipeline_of(ARMS).until("cluster_trajectories")
    needed = {"examples", "tokenizer", "tokens", "proxy", "trajectories", "clusters"}
    assert set(by_artifact(part)) == needed | {"eval_examples", "overlap"}  # known before anything dear is made
    assert len(by_artifact(part)["tokens"]) == 1


def test_until_the_last_stage_keeps_everything():
    pipeline = pipeline_of(ARMS)
    assert pipeline.until("compare_arms").nodes == pipeline.nodes


def test_until_keeps_the_labels():
    part = pipeline_of(ARMS).until("select_subset")
    assert {part.label(node) for node in part.nodes if node.artifact == "subset"} == {
        "subset [random]",
        "subset [s2l]",
        "subset [full]",
    }


@pytest.mark.parametrize("stage", ["cluster", "clusters", "", "compare_arm", "runtime"])
def test_until_an_unknown_stage_lists_those_there_are(stage):
    with pytest.raises(ConfigError, match="cluster_trajectories") as caught:
        pipeline_of().until(stage)
    assert repr(stage) in str(caught.value)


def test_until_a_stage_that_no_arm_needs_is_refused():
    with pytest.raises(ConfigError, match="train_proxy"):
        pipeline_of("", "select.method=random").until("train_proxy")


# ------------------------------------------------------------------------------------------------------ workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_parses_and_lays_out_a_pipeline(path, tmp_path):
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    sets = []
    if "synthetic" not in raw["examples"]:
        sets.append(f"examples.path={rows_file(tmp_path)}")
    if raw.get("evaluate", {}).get("path"):
        sets.append(f"evaluate.path={rows_file(tmp_path, 'test.jsonl', 'minus')}")
    experiment = load_sweep(path, sets).experiment if "sweep" in raw else load_experiment(path, sets)
    pipeline = build_pipeline(experiment)
    assert len(experiment.arms) >= len(raw.get("arms", {}) or {1: 1})
    assert node_of(pipeline, "comparison").settings == {
        "arms": list(experiment.arms),
        "baselines": baselines(experiment.arms),
    }


def commands_in(path: Path) -> list[list[str]]:
    """The arguments of every command in a workflow's head; lines that are indented further go on with it."""
    head = "\n".join(takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()))
    joined = re.sub(r"\n# {5,}", " ", head)
    return [shlex.split(line)[1:] for line in re.findall(r"^# +(s2l .+)$", joined, re.MULTILINE)]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_says_in_its_head_how_to_run_it(path):
    commands = commands_in(path)
    assert commands
    assert all(words[0] in ("run", "sweep") and words[1] == str(path.relative_to(ROOT)) for words in commands)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_is_planned_without_a_network_and_names_the_models_to_fetch(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for _, name, *sets in commands_in(path):
        local = ["--set", f"examples.path={rows_file(tmp_path)}", "--storage", str(tmp_path / "storage")]
        assert main(["plan", name, *sets, *local]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "not on this machine yet: target.model" in said
        assert "0 cached" in said


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_says_what_it_needs_what_is_counted_and_where_it_departs(path):
    text = path.read_text(encoding="utf-8")
    assert all(words in text for words in ("# Needs ", "Counted, not measured", "# Departs from the paper"))
    experiment = load_experiment(path, [f"examples.path={path}"])
    assert "random" in {config.select.method for config in experiment.arms.values()}


@pytest.mark.parametrize("path", [path for path in RECIPES if "mathinstruct" in path.name], ids=lambda path: path.name)
def test_recipe_of_the_paper_says_how_to_judge_as_the_paper_does(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    first = lines.index("#   evaluate:")
    text = "\n".join(line[4:] for line in takewhile(lambda line: line.startswith("#   "), lines[first:]))
    evaluate = laid_out(text).shared.evaluate
    assert [entry.format for entry in evaluate.path] == ["gsm8k", "math", "numglue", "svamp", "mathematics", "simuleq"]
    assert evaluate.prompt == "program"


def test_workflows_are_there():
    assert QUICKSTART in WORKFLOWS
    assert len(RECIPES) >= 7


# ---------------------------------------------------------------------------------------------------- outside and files


def write_model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def test_pretrained_folder_puts_its_files_into_the_outside_digest(tmp_path):
    folder = write_model(tmp_path / "model")
    proxy = node_of(pipeline_of("", f"proxy.model={folder}"), "proxy")
    assert [file.name for file in proxy.outside.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    before = proxy.key
    (folder / "model.safetensors").write_text("other weights")
    assert node_of(pipeline_of("", f"proxy.model={folder}"), "proxy").key != before


def test_pretrained_folder_gives_the_tokenizer_too(tmp_path):
    folder = write_model(tmp_path / "model")
    tokenizers = [n for n in pipeline_of("", f"proxy.model={folder}").nodes if n.artifact == "tokenizer"]
    assert len(tokenizers) == 2
    assert sorted(len(n.outside.files) if n.outside else 0 for n in tokenizers) == [0, 3]


def test_hub_model_goes_by_name_and_revision():
    keys = {
        node_of(pipeline_of("", "proxy.model=org/m", f"proxy.revision={revision}"), "proxy").key
        for revision in ("null", "a" * 40, "b" * 40)
    }
    assert len(keys) == 3


def test_input_file_that_is_missing_is_refused_with_its_key(tmp_path):
    with pytest.raises(S2LError, match=r"examples\.path") as caught:
        pipeline_of("", "examples={path: " + str(tmp_path / "none.jsonl") + "}")
    assert caught.value.exit_code == 2


def test_source_of_a_mixture_is_part_of_the_identity(tmp_path):
    path = rows_file(tmp_path)
    keys = {
        node_of(pipeline_of("", f"examples={{path: [{{path: {path}, source: {source}}}]}}"), "examples").key
        for source in ("a", "b")
    }
    assert len(keys) == 2


def test_files_that_are_laid_out_by_themselves_are_other_examples_than_those_of_a_folder(tmp_path):
    files = [rows_file(tmp_path, name) for name in ("a.jsonl", "b.jsonl", "c.jsonl")]

    def key(*entries: str) -> str:
        listed = ", ".join(f"{{path: '{entry}', source: x}}" for entry in entries)
        return node_of(pipeline_of("", f"examples={{path: [{listed}]}}"), "examples").key

    in_pairs = [f"{tmp_path}/[ab].jsonl", f"{tmp_path}/c.jsonl"], [f"{tmp_path}/a.jsonl", f"{tmp_path}/[bc].jsonl"]
    ways = [key(f"{tmp_path}/*.jsonl"), key(*map(str, files)), *(key(*entries) for entries in in_pairs)]
    assert len(set(ways)) == len(ways)
    assert key(*reversed(in_pairs[0])) == ways[2]


def test_held_out_data_of_its_own_leaves_all_examples_to_training(tmp_path):
    train, test = rows_file(tmp_path), rows_file(tmp_path, "test.jsonl", "minus")
    split = pipeline_of("", f"examples={{path: {train}}}")
    apart = pipeline_of("", f"examples={{path: {train}}}", f"evaluate.path={test}")
    assert node_of(split, "examples").config.held_out == 0.05
    assert node_of(apart, "examples").config.held_out == 0.0
    assert node_of(apart, "eval_examples").config.part == "all"
    assert "eval_examples" in changed_artifacts(
        apart, pipeline_of("", f"examples={{path: {train}}}", f"evaluate.path={train}")
    )


# ------------------------------------------------------------------------------------------------------------- examine


def make(state, storage: Storage, salt: str = "") -> None:
    output = begin(storage, state.node.artifact, state.fingerprint)
    output.commit(
        [output.write_bytes("a", (state.node.artifact + salt).encode())], config={}, inputs={}, summary={}, run={}
    )


def states_of(pipeline: Pipeline, storage: Storage):
    return list(examine(pipeline, storage, DigestCache(storage)))


def make_all(pipeline: Pipeline, storage: Storage) -> int:
    """Commit node after node as they become ready; return how many passes it took."""
    for passes in range(100):
        ready = [s for s in states_of(pipeline, storage) if s.artifact is None and s.fingerprint]
        if not ready:
            return passes
        for state in ready:
            if find_artifact(storage, state.node.artifact, state.fingerprint) is None:
                make(state, storage)
    raise AssertionError("never done")


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


def test_examine_of_an_empty_storage_knows_only_the_roots(storage):
    states = states_of(pipeline_of(ARMS), storage)
    assert {s.node.artifact for s in states if s.fingerprint} == {"examples", "eval_examples"}
    assert all(s.artifact is None for s in states)
    proxy = next(s for s in states if s.node.artifact == "proxy")
    assert "tokens" in proxy.why
    assert not Path(storage.uri).exists()


def test_examine_follows_committed_artifacts_to_the_end(storage):
    pipeline = pipeline_of(ARMS)
    assert make_all(pipeline, storage) >= 8
    states = states_of(pipeline, storage)
    assert all(state.artifact for state in states)
    assert [state.node for state in states] == list(pipeline.nodes)


def test_examine_after_a_changed_setting_finds_what_precedes_it(storage):
    make_all(pipeline_of(), storage)
    states = states_of(pipeline_of("", "cluster.n_clusters=5"), storage)
    assert {s.node.artifact for s in states if s.artifact is None} == AFTER_CLUSTERS
    clusters = next(s for s in states if s.node.artifact == "clusters")
    assert clusters.fingerprint is not None


def test_examine_after_a_proxy_trained_to_other_weights_moves_what_follows(storage):
    pipeline = pipeline_of()
    make_all(pipeline, storage)
    proxy = next(s for s in states_of(pipeline, storage) if s.node.artifact == "proxy")
    proxy.artifact.discard()
    make(proxy, storage, salt="other weights")
    missing = {s.node.artifact for s in states_of(pipeline, storage) if s.artifact is None}
    assert missing == AFTER_SCORING


def test_examine_of_an_input_not_hashed_yet_says_so(storage, tmp_path):
    path = rows_file(tmp_path)
    pipeline = pipeline_of("", f"examples={{path: {path}}}")
    examples = next(s for s in states_of(pipeline, storage) if s.node.artifact == "examples")
    assert examples.fingerprint is None
    assert "not yet hashed" in examples.why
    assert str(path) in examples.why
    DigestCache(storage).compute(examples.node.outside.files, examples.node.outside.facts)
    assert next(s for s in states_of(pipeline, storage) if s.node.artifact == "examples").fingerprint


@pytest.mark.parametrize(("artifact", "bad"), [("eval_examples", "rows_rejected"), ("tokens", "rows_refused")])
def test_check_held_out_rows_that_another_run_set_aside_are_as_few_as_this_one_allows(artifact, bad):
    summary = {"rows_in": 100, bad: 1}
    found = Artifact(Storage("/nowhere"), Manifest(artifact, "f", {}, {}, (), summary, {"attempt": "a"}))
    settings = {"path": "rows.jsonl", "on_bad_row": "reject", "max_rejected": 0.01}
    Tolerated(Config.model_validate({"examples": settings}))(found)
    for stricter in ({"max_rejected": 0.001}, {"on_bad_row": "error"}):
        with pytest.raises(DataError, match="1 of 100 rows are bad"):
            Tolerated(Config.model_validate({"examples": {**settings, **stricter}}))(found)


ROWS = {"examples": {"path": "rows.jsonl"}}
CLEAN = {"rows_in": 8, "rows_rejected": 0}


def check_of(artifact: str, summary: dict, **sections):
    found = Artifact(Storage("/nowhere"), Manifest(artifact, "f", {}, {}, (), summary, {"attempt": "a"}))
    Needs(Config.model_validate({**ROWS, **sections}))(found)


@pytest.mark.parametrize(
    "sections",
    [
        {"select": {"method": "random_per_source"}},
        {"select": {"method": "official"}},
        {"cluster": {"stratify_by": "source"}},
    ],
)
def test_check_rows_without_a_source_where_it_is_needed_are_refused(sections):
    with pytest.raises(ConfigError, match=r"3 rows have none.*examples\.columns"):
        check_of("examples", {**CLEAN, "rows_per_source": {"": 3, "a": 5}}, **sections)
    check_of("examples", {**CLEAN, "rows_per_source": {"a": 5}}, **sections)


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"cluster": {"n_clusters": 41}}, "n_clusters"),
        ({"select": {"budget": 41}, "cluster": {"n_clusters": 4}}, "budget"),
    ],
)
def test_check_numbers_above_the_rows_are_refused(sections, word):
    with pytest.raises(ConfigError, match=word):
        check_of("tokens", {"rows_in": 40, "rows_kept": 40, "rows_refused": 0}, **sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"cluster": {"n_clusters": 40}, "select": {"budget": 40}},
        {"cluster": {"n_clusters": 41, "stratify_by": "source"}},
        {"select": {"method": "full", "budget": 1000}},
        {"select": {"method": "random", "budget": "2M tokens"}},
    ],
)
def test_check_numbers_that_fit_pass(sections):
    check_of("tokens", {"rows_in": 40, "rows_kept": 40, "rows_refused": 0}, **sections)


def test_check_rows_that_the_template_refused_are_bad_rows():
    counts = {"rows_in": 40, "rows_kept": 39, "rows_refused": 1}
    with pytest.raises(DataError, match=r"1 of 40 rows are bad.*on_bad_row"):
        check_of("tokens", counts)
    tolerant = {"examples": {"path": "rows.jsonl", "on_bad_row": "reject", "max_rejected": 0.05}}
    check_of("tokens", counts, **tolerant, cluster={"n_clusters": 4})


def test_check_share_of_rejected_rows_is_taken_as_it_is_written():
    summary = {"rows_in": 100, "rows_rejected": 29, "rows_per_source": {"a": 71}}
    examples = {"path": "rows.jsonl", "on_bad_row": "reject", "max_rejected": 0.29}
    check_of("examples", summary, examples=examples)  # in floats 0.29 * 100 is below 29


@pytest.mark.parametrize(
    ("examples", "refused"),
    [
        ({"on_bad_row": "error"}, True),
        ({"on_bad_row": "reject", "max_rejected": 0.1}, True),
        ({"on_bad_row": "reject", "max_rejected": 0.5}, False),
    ],
)
def test_check_rows_that_an_earlier_run_rejected_count_against_this_ones_tolerance(examples, refused):
    summary = {"rows_in": 8, "rows_rejected": 2, "rows_per_source": {"a": 6}}
    with pytest.raises(DataError) if refused else nullcontext():
        check_of("examples", summary, examples={"path": "rows.jsonl", **examples})


def test_folder_of_a_model_reaches_workers_as_a_whole_path_and_its_address_as_it_is_written(tmp_path, monkeypatch):
    tiny.model().save_pretrained(tmp_path / "models" / "small")
    monkeypatch.chdir(tmp_path)
    models = "{model: models/small}"
    pipeline = build_pipeline(tiny.parse(f"{tiny.SYNTHETIC}\nproxy: {models}\ntarget: {models}"))
    for artifact in ("proxy", "target"):
        (node,) = (node for node in pipeline.nodes if node.artifact == artifact)
        assert node.config.model.model == str(tmp_path / "models" / "small")
        assert node.settings["model"] == "models/small"


def test_sources_that_name_single_rows_are_refused_where_each_would_be_clustered_on_its_own():
    urls = {f"http://a/{number}": 1 for number in range(2000)}
    check_of("examples", {**CLEAN, "rows_per_source": urls}, select={"method": "random_per_source"})
    check_of("examples", {**CLEAN, "rows_per_source": dict.fromkeys(urls, 50)}, select={"method": "official"})
    with pytest.raises(ConfigError, match=r"2000 rows have 2000 of them: they divide nothing"):
        check_of("examples", {**CLEAN, "rows_per_source": urls}, select={"method": "official"})
