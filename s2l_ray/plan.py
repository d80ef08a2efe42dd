"""The plan: the graph of an experiment, the nodes of all arms and what compares them.

Neither torch nor ray is imported here, and of inputs only names, sizes and formats are looked at: `s2l plan` answers
within a second. Arms share every node that comes before their first difference.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from s2l_ray.adapters import check_adapter
from s2l_ray.baselines import baselines
from s2l_ray.config import Config, ModelConfig
from s2l_ray.experiment import Experiment
from s2l_ray.graph import STAGES, Check, Node, Pipeline
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import find_inputs
from s2l_ray.judging.bert_score import check_encoder
from s2l_ray.judging.metrics import judges_of
from s2l_ray.needs import JudgeableRows, Needs, Tolerated
from s2l_ray.nodes import arm_nodes, encoder_of, model_outside, models_of, settings_of
from s2l_ray.pretrained import check_fits, local_folder, pinned, pretrained_folder
from s2l_ray.stage_settings import CompareSettings, DiagnoseSettings, ReportSettings

ModelT = TypeVar("ModelT", bound=ModelConfig)

REPORTED = (
    "examples",
    "overlap",
    "proxy",
    "proxy_tokens",
    "trajectories",
    "hidden_states",
    "clusters",
    "subset",
    "target_tokens",
    "target",
    "scores",
    "diagnostics",
)
"""What the report reads of an arm."""
InputListing = dict[Any, tuple[InputFile, ...]]
"""Config path of an input -> the files that were found there."""


def build_pipeline(
    experiment: Experiment,
    files: InputListing | None = None,
    *,
    with_report: bool = False,
    allow_code_execution: bool = False,
) -> Pipeline:
    """Lay out the nodes of all arms.

    Args:
        with_report: lay out the diagnostics and the report as well, which a trial of a sweep does without.
        allow_code_execution: programs that the target writes may run where a metric asks for it.
        files: what was listed before for other experiments on the same data; filled with what is listed now.

    Raises:
        ConfigError, DataError: an input is missing or cannot be used.
    """
    nodes: dict[str, Node] = {}
    arms_of: dict[str, dict[str, None]] = {}
    files = {} if files is None else files
    compared: dict[str, Node] = {}
    reported: dict[str, Node] = {}
    checks: dict[str, list[Check]] = {}
    for arm, given in experiment.arms.items():
        config = settled(given)
        of_arm = arm_nodes(config, list_inputs(config, files), allow_code_execution=allow_code_execution)
        if with_report and "clusters" in of_arm:
            of_arm["diagnostics"] = _diagnostics_node(config, of_arm)
        for name, node in of_arm.items():
            nodes.setdefault(node.key, node)
            arms_of.setdefault(node.key, {})[arm] = None
            if name in ("examples", "overlap", "subset", "scores"):
                compared[f"{name}/{arm}"] = node
            if name in REPORTED:
                reported[f"{name}/{arm}"] = node
            if name in ("examples", "proxy_tokens", "target_tokens"):
                checks.setdefault(node.key, []).append(Needs(config))
            if name in ("eval_examples", "eval_tokens"):
                checks.setdefault(node.key, []).append(Tolerated(config))
            if name == "eval_examples" and judges_of(config.evaluate.metrics):
                checks.setdefault(node.key, []).append(JudgeableRows(config.evaluate.metrics))
    held_against = baselines(experiment.arms)
    comparison = Node(
        artifact="comparison",
        stage="compare_arms",
        config=CompareSettings(held_against),
        settings={"arms": list(experiment.arms), "baselines": held_against},
        inputs=compared,
    )
    last = [comparison]
    if with_report:
        last.append(_report_node(experiment, {"comparison": comparison, **reported}))
    order = list(STAGES)
    return Pipeline(
        tuple(sorted([*nodes.values(), *last], key=lambda node: order.index(node.stage))),
        {key: tuple(arms) for key, arms in arms_of.items() if len(arms) < len(experiment.arms)},
        {key: tuple(found) for key, found in checks.items()},
    )


def list_inputs(config: Config, files: InputListing) -> InputListing:
    """Add the files of an arm's inputs to those that were listed before, and return them all."""
    for path, key in ((config.examples.path, "examples.path"), (config.evaluate.path, "evaluate.path")):
        if path is not None and path not in files:
            files[path] = find_inputs(path, key=key)
    return files


def settled(config: Config) -> Config:
    """Replace what is left open, so that a fingerprint says what is computed: hub commits, and `precision: auto`."""
    resources = config.resources

    def precision(asked: str, gpus: float) -> str:
        return asked if asked != "auto" else "bf16" if gpus else "fp32"

    def settle(model: ModelT, gpus: float) -> ModelT:
        return pinned(model).model_copy(update={"precision": precision(model.precision, gpus)})

    scoring = {"precision": precision(config.score.precision, resources.score_examples.gpus)}
    evaluate = config.evaluate
    if evaluate.encoder is not None:
        evaluate = evaluate.model_copy(update={"encoder": pinned(evaluate.encoder)})
    return config.model_copy(
        update={
            "evaluate": evaluate,
            "proxy": settle(config.proxy, resources.train_proxy.gpus),
            "target": settle(config.target, resources.finetune_target.gpus),
            "score": config.score.model_copy(update=scoring),
        }
    )


def fetch_models(experiment: Experiment) -> None:
    """Fetch the models of the hub that are not on this machine, so that the plan knows which commit they are.

    Raises:
        ConfigError: one cannot be fetched, reads less than `tokens.max_tokens`, or has no such layers as `target.lora`
            or `evaluate.encoder` name.
    """
    checked: set[Any] = set()
    for config in experiment.arms.values():
        for key, model in models_of(config):
            outside = model_outside(pinned(model), key)
            if outside is not None and outside.is_unfetched:
                pretrained_folder(model, key)
            folder, max_tokens = local_folder(model), config.tokens.max_tokens
            # Its tokenizer was perhaps taken over for fewer tokens, and is not looked at again.
            if folder is not None and (folder, max_tokens) not in checked:
                check_fits(folder, key, max_tokens=max_tokens)
                checked.add((folder, max_tokens))
        target, lora = config.target, config.target.lora
        asked = (target.model, target.revision, lora)
        encoder = encoder_of(config)
        if encoder is not None and encoder not in checked:
            check_encoder(encoder)
            checked.add(encoder)
        # `all-linear` fits every model, and a sweep has hundreds of arms.
        if lora is not None and lora.target_modules != "all-linear" and asked not in checked:
            check_adapter(target, lora)
            checked.add(asked)


def _diagnostics_node(config: Config, nodes: Mapping[str, Node]) -> Node:
    names = ("examples", "proxy_tokens", "proxy_tokenizer", "proxy", "trajectories", "clusters")
    of_target = ("subset", "target", "target_tokens", "target_tokenizer")
    inputs = {name: nodes[name] for name in (*names, *of_target) if name in nodes}
    return Node(
        artifact="diagnostics",
        stage="diagnose_selection",
        config=DiagnoseSettings(config.report.sample, config.cluster, config.target.precision),
        settings={"sample": config.report.sample, "cluster": settings_of(config.cluster, without=("seed",))},
        inputs=inputs,
        seed=config.cluster.seed or 0,
    )


def _report_node(experiment: Experiment, inputs: Mapping[str, Node]) -> Node:
    text = experiment.text
    return Node(
        artifact="report",
        stage="write_report",
        config=ReportSettings(experiment.shared.report, experiment.arms, experiment.name, text),
        settings={**settings_of(experiment.shared.report), "name": experiment.name, "text": text},
        inputs=inputs,
    )
