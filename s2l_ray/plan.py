"""The plan: the graph of an experiment. What each stage is to do, from which artifacts, for all arms.

Neither torch nor ray is imported here, and no input is read: `s2l plan` answers within a second. Arms share every
node that comes before their first difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from s2l_ray.artifacts import Artifact
from s2l_ray.config import (
    ClusterConfig,
    Config,
    EvaluateConfig,
    ExamplesConfig,
    ModelConfig,
    ProxyConfig,
    ReportConfig,
    Section,
    SelectConfig,
    TargetConfig,
    TokensConfig,
    derive_seed,
)
from s2l_ray.digests import OutsideFile, model_files
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.experiment import Experiment
from s2l_ray.graph import STAGES, Check, Node, Outside, Pipeline
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import find_inputs
from s2l_ray.models import is_pretrained, pinned, pretrained_folder

ModelT = TypeVar("ModelT", bound=ModelConfig)

CLUSTERED = ("paper", "official", "guarded", "embedding_kmeans")
"""The selectors that need clusters."""
SCORED = ("least_confidence", "middle_perplexity", "high_learnability", "curriculum")
"""The selectors that read the losses themselves."""
NOT_IN_BYTES = ("path", "on_bad_row", "max_rejected", "decontaminate")
"""Keys of `examples` that change nothing in the examples themselves."""
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
BY_SOURCE = ("official", "random_per_source")
"""The selectors that divide the budget by source."""


@dataclass(frozen=True)
class PrepareSettings:
    """What `prepare_examples` is to do."""

    examples: ExamplesConfig
    files: tuple[InputFile, ...]
    part: str
    """`train`, `held_out` (by hash), `eval` (the generator's held-out rows), or `all`."""
    held_out: float
    """Share of the rows that is held out by hash."""
    synthetic_seed: int
    key: str
    """Config section, for messages."""


@dataclass(frozen=True)
class TokenizerSettings:
    """What `prepare_tokenizer` is to do: take a pretrained model's, or train one."""

    tokens: TokensConfig
    pretrained: ModelConfig | None
    key: str


@dataclass(frozen=True)
class ProxySettings:
    """A training run of the proxy."""

    model: ProxyConfig
    max_tokens: int


@dataclass(frozen=True)
class TargetSettings:
    """A training run of the target."""

    model: TargetConfig
    max_tokens: int


@dataclass(frozen=True)
class SelectSettings:
    """What `select_subset` is to do, and where the raw rows are."""

    select: SelectConfig
    files: tuple[InputFile, ...]


@dataclass(frozen=True)
class EvaluateSettings:
    """What `evaluate_target` is to do."""

    evaluate: EvaluateConfig
    precision: str


@dataclass(frozen=True)
class DiagnoseSettings:
    """What `diagnose_selection` is to do."""

    sample: int
    """Rows whose gradients are computed."""
    cluster: ClusterConfig
    target_precision: str


@dataclass(frozen=True)
class ReportSettings:
    """What `write_report` is to do."""

    report: ReportConfig
    arms: Mapping[str, Config]
    name: str
    text: str
    """The experiment as a file that would run again."""


InputListing = dict[Any, tuple[InputFile, ...]]
"""Config path of an input -> the files that were found there."""


def build_pipeline(experiment: Experiment, files: InputListing | None = None, *, with_report: bool = False) -> Pipeline:
    """Lay out the nodes of all arms.

    Args:
        with_report: lay out the diagnostics and the report as well, which a trial of a sweep does without.
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
        config = _settled(given)
        for path, key in ((config.examples.path, "examples.path"), (config.evaluate.path, "evaluate.path")):
            if path is not None and path not in files:
                files[path] = find_inputs(path, key=key)
        of_arm = _arm_nodes(config, files)
        if with_report and "clusters" in of_arm:
            of_arm["diagnostics"] = _diagnostics_node(config, of_arm)
        for name, node in of_arm.items():
            nodes.setdefault(node.key, node)
            arms_of.setdefault(node.key, {})[arm] = None
            if name in ("examples", "overlap", "subset", "scores"):
                compared[f"{name}/{arm}"] = node
            if name in REPORTED:
                reported[f"{name}/{arm}"] = node
            if name in ("examples", "proxy_tokens"):
                checks.setdefault(node.key, []).append(Needs(config))
    comparison = Node(
        artifact="comparison",
        stage="compare_arms",
        config=None,
        settings={"arms": list(experiment.arms)},
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


def check_rejected(examples: ExamplesConfig, rows_rejected: int, rows_in: int) -> None:
    """Refuse more bad rows than the config allows.

    Raises:
        DataError: any, where `on_bad_row` is `error`; else a larger share than `max_rejected`.
    """
    if rows_rejected and examples.on_bad_row == "error":
        raise DataError(
            f"{rows_rejected} of {rows_in} rows are bad and were set aside by an earlier run; this one has "
            "`examples.on_bad_row: error`. Mend the data, or set `reject`."
        )
    # As it is written: in floats 29 of 100 rows are more than 0.29.
    if rows_rejected > Fraction(str(examples.max_rejected)) * rows_in:
        raise DataError(
            f"{rows_rejected} of {rows_in} rows are bad, more than examples.max_rejected = "
            f"{examples.max_rejected:g} allows. Mend the data, or raise the limit."
        )


@dataclass(frozen=True)
class Needs:
    """What one arm needs of the rows, said as soon as they are counted and not after hours of training."""

    config: Config

    def __call__(self, artifact: Artifact) -> None:
        """Check the summary of `examples` or of the proxy's `tokens`.

        Raises:
            ConfigError: a number does not fit the rows, or rows lack the source that the config divides them by.
        """
        if artifact.manifest.artifact == "examples":
            # The rows that are kept are the same for every tolerance; they may come from a run that had a greater one.
            check_rejected(self.config.examples, artifact.summary["rows_rejected"], artifact.summary["rows_in"])
            self._check_sources(artifact.summary["rows_per_source"])
        else:
            self._check_numbers(artifact.summary["rows_kept"])

    def _check_sources(self, rows_per_source: Mapping[str, int]) -> None:
        select, cluster = self.config.select, self.config.cluster
        # `guarded` takes rows without a source for one more.
        asks = select.method in CLUSTERED and select.method != "guarded" and cluster.stratify_by == "source"
        by_source = select.method in BY_SOURCE or asks
        if by_source and rows_per_source.get("", 0):
            asked = f"select.method: {select.method}" if select.method in BY_SOURCE else "cluster.stratify_by: source"
            raise ConfigError(
                f"`{asked}` divides the rows by source, but {rows_per_source['']} rows have none. Name the column "
                "with `examples.columns: {source: ...}`, or choose another method."
            )

    def _check_numbers(self, n_rows: int) -> None:
        from s2l_ray.sampling import parse_budget, rows_in_budget

        select, cluster = self.config.select, self.config.cluster
        whole = cluster.stratify_by is None and cluster.n_clusters_per == "stratum"
        if select.method in CLUSTERED and whole and cluster.n_clusters > n_rows:
            raise ConfigError(f"cluster.n_clusters is {cluster.n_clusters}, but there are {n_rows} examples. Lower it.")
        budget = parse_budget(select.budget)
        if select.method != "full" and budget.kind != "tokens":
            rows_in_budget(budget, n_rows)


def _settled(config: Config) -> Config:
    """Replace what is left open, so that a fingerprint says what is computed: hub commits, and `precision: auto`."""
    resources = config.resources

    def precision(asked: str, gpus: float) -> str:
        return asked if asked != "auto" else "bf16" if gpus else "fp32"

    def settle(model: ModelT, gpus: float) -> ModelT:
        return pinned(model).model_copy(update={"precision": precision(model.precision, gpus)})

    scoring = {"precision": precision(config.score.precision, resources.score_examples.gpus)}
    return config.model_copy(
        update={
            "proxy": settle(config.proxy, resources.train_proxy.gpus),
            "target": settle(config.target, resources.finetune_target.gpus),
            "score": config.score.model_copy(update=scoring),
        }
    )


def fetch_models(experiment: Experiment) -> None:
    """Fetch the models of the hub that are not on this machine, so that the plan knows which commit they are.

    Raises:
        ConfigError: one cannot be fetched.
    """
    for config in experiment.arms.values():
        for key, model in (("proxy", config.proxy), ("target", config.target)):
            outside = _model_outside(pinned(model), key)
            if outside is not None and outside.is_unfetched:
                pretrained_folder(model, key)


def _arm_nodes(config: Config, files: Mapping[Any, tuple[InputFile, ...]]) -> dict[str, Node]:
    data = files.get(config.examples.path, ())
    nodes = {"examples": (examples := _examples_node(config, data))}
    nodes["eval_examples"] = eval_examples = _eval_examples_node(config, files, examples)
    nodes["overlap"] = overlap = Node(
        artifact="overlap",
        stage="measure_overlap",
        config=config.examples.decontaminate,
        settings={},
        inputs={"examples": examples, "eval_examples": eval_examples},
    )
    drops = config.examples.decontaminate == "drop"
    for key, model in (("proxy", config.proxy), ("target", config.target)):
        nodes[f"{key}_tokenizer"] = tokenizer = _tokenizer_node(config, key, model, examples)
        nodes[f"{key}_tokens"] = _tokens_node(config, examples, tokenizer, overlap if drops else None)
    nodes["eval_tokens"] = _tokens_node(config, eval_examples, nodes["target_tokenizer"])
    selecting = {"examples": examples, "proxy_tokens": nodes["proxy_tokens"], "target_tokens": nodes["target_tokens"]}
    method = config.select.method
    if method in CLUSTERED or method in SCORED or method == "facility_location":
        nodes |= _proxy_nodes(config, examples, nodes["proxy_tokens"], nodes["proxy_tokenizer"])
        selecting |= {name: nodes[name] for name in ("clusters", "trajectories", "hidden_states") if name in nodes}
    if method in CLUSTERED:
        # The ranking follows from the clusters alone.
        selecting = {name: node for name, node in selecting.items() if name not in ("trajectories", "hidden_states")}
    nodes["subset"] = Node(
        artifact="subset",
        stage="select_subset",
        config=SelectSettings(config.select, data),
        settings=_settings(config.select, without=("seed",)),
        inputs=selecting,
        seed=config.select.seed or 0,
        # The rows are copied whole from the input, and not every column of it has gone into the examples.
        outside=examples.outside,
    )
    nodes["target"] = Node(
        artifact="target",
        stage="finetune_target",
        config=TargetSettings(config.target, config.tokens.max_tokens),
        settings={**_settings(config.target, without=("seed",)), "max_tokens": config.tokens.max_tokens},
        inputs={
            "subset": nodes["subset"],
            "tokens": nodes["target_tokens"],
            "tokenizer": nodes["target_tokenizer"],
        },
        seed=config.target.seed or 0,
        outside=_model_outside(config.target, "target"),
    )
    nodes["scores"] = Node(
        artifact="scores",
        stage="evaluate_target",
        config=EvaluateSettings(config.evaluate, config.target.precision),
        settings={
            **_settings(config.evaluate, without=("path", "columns", "held_out")),
            "precision": config.target.precision,
        },
        inputs={
            "target": nodes["target"],
            "eval_tokens": nodes["eval_tokens"],
            "eval_examples": eval_examples,
            "tokenizer": nodes["target_tokenizer"],
        },
    )
    return nodes


def _diagnostics_node(config: Config, nodes: Mapping[str, Node]) -> Node:
    names = ("examples", "proxy_tokens", "proxy_tokenizer", "proxy", "trajectories", "clusters")
    of_target = ("subset", "target", "target_tokens", "target_tokenizer")
    return Node(
        artifact="diagnostics",
        stage="diagnose_selection",
        config=DiagnoseSettings(config.report.sample, config.cluster, config.target.precision),
        settings={"sample": config.report.sample, "cluster": _settings(config.cluster, without=("seed",))},
        inputs={name: nodes[name] for name in (*names, *of_target)},
        seed=config.cluster.seed or 0,
    )


def _report_node(experiment: Experiment, inputs: Mapping[str, Node]) -> Node:
    text = experiment.text
    return Node(
        artifact="report",
        stage="write_report",
        config=ReportSettings(experiment.shared.report, experiment.arms, experiment.name, text),
        settings={**_settings(experiment.shared.report), "name": experiment.name, "text": text},
        inputs=inputs,
    )


def _proxy_nodes(config: Config, examples: Node, tokens: Node, tokenizer: Node) -> dict[str, Node]:
    """Lay out what the selector learns from the proxy, and no more."""
    method = config.select.method
    proxy = Node(
        artifact="proxy",
        stage="train_proxy",
        config=ProxySettings(config.proxy, config.tokens.max_tokens),
        settings={**_settings(config.proxy, without=("seed",)), "max_tokens": config.tokens.max_tokens},
        inputs={"tokens": tokens, "tokenizer": tokenizer},
        seed=config.proxy.seed or 0,
        outside=_model_outside(config.proxy, "proxy"),
    )
    nodes = {"proxy": proxy}
    scoring = {"tokens": tokens, "tokenizer": tokenizer, "proxy": proxy}
    scored = _settings(config.score, without=("checkpoints_per_pass",))
    embeds = method == "facility_location" or (method in CLUSTERED and config.cluster.features == "hidden_state")
    if embeds:
        nodes["hidden_states"] = Node(
            artifact="hidden_states", stage="embed_examples", config=config.score, settings=scored, inputs=scoring
        )
    if method != "facility_location":
        nodes["trajectories"] = Node(
            artifact="trajectories", stage="score_examples", config=config.score, settings=scored, inputs=scoring
        )
    if method in CLUSTERED:
        clustering = {"trajectories": nodes["trajectories"], "examples": examples}
        nodes["clusters"] = Node(
            artifact="clusters",
            stage="cluster_trajectories",
            config=config.cluster,
            settings=_settings(config.cluster, without=("seed",)),
            inputs=clustering | ({"hidden_states": nodes["hidden_states"]} if embeds else {}),
            seed=config.cluster.seed or 0,
        )
    return nodes


def _examples_node(config: Config, files: tuple[InputFile, ...]) -> Node:
    held_out = config.evaluate.held_out if config.evaluate.path is None and config.examples.synthetic is None else 0.0
    return Node(
        artifact="examples",
        stage="prepare_examples",
        config=PrepareSettings(
            config.examples, files, "train", held_out, derive_seed(config.seed, "synthetic"), "examples"
        ),
        settings={**_settings(config.examples, without=NOT_IN_BYTES), "held_out": held_out},
        inputs={},
        seed=derive_seed(config.seed, "synthetic") if config.examples.synthetic else 0,
        outside=_files_outside(files),
    )


def _eval_examples_node(config: Config, files: Mapping[Any, tuple[InputFile, ...]], examples: Node) -> Node:
    prepare: PrepareSettings = examples.config
    if config.evaluate.path is None:
        part = "held_out" if config.examples.synthetic is None else "eval"
        return Node(
            artifact="eval_examples",
            stage="prepare_examples",
            config=PrepareSettings(
                prepare.examples, prepare.files, part, prepare.held_out, prepare.synthetic_seed, "examples"
            ),
            settings={**examples.settings, "part": part},
            inputs={},
            seed=examples.seed,
            outside=examples.outside,
        )
    # Bad rows of held-out data are treated as those of the examples are.
    section = config.examples.model_copy(
        update={"path": config.evaluate.path, "synthetic": None, "format": "auto", "columns": config.evaluate.columns}
    )
    listed = files[config.evaluate.path]
    return Node(
        artifact="eval_examples",
        stage="prepare_examples",
        config=PrepareSettings(section, listed, "all", 0.0, 0, "evaluate"),
        settings={**_settings(section, without=NOT_IN_BYTES), "part": "all"},
        inputs={},
        outside=_files_outside(listed),
    )


def _tokenizer_node(config: Config, key: str, model: ModelConfig, examples: Node) -> Node:
    pretrained = is_pretrained(model)
    # Two fresh models share one tokenizer; a pretrained one brings its own, whatever `tokens` says of training.
    settings = {} if pretrained else _settings(config.tokens)
    return Node(
        artifact="tokenizer",
        stage="prepare_tokenizer",
        config=TokenizerSettings(config.tokens, model if pretrained else None, key),
        settings=settings,
        inputs={} if pretrained else {"examples": examples},
        outside=_model_outside(model, key),
    )


def _tokens_node(config: Config, examples: Node, tokenizer: Node, overlap: Node | None = None) -> Node:
    return Node(
        artifact="tokens",
        stage="tokenize_examples",
        config=config.tokens,
        settings={"max_tokens": config.tokens.max_tokens, "template": config.tokens.template},
        inputs={"examples": examples, "tokenizer": tokenizer} | ({"overlap": overlap} if overlap else {}),
    )


def _settings(section: Section, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return section.model_dump(mode="python", exclude=set(without))


def _files_outside(files: tuple[InputFile, ...]) -> Outside | None:
    if not files:
        return None
    listed = tuple(OutsideFile(f.path, f.name, f.bytes, f.modified_ns) for f in files)
    label = files[0].path if len(files) == 1 else f"{len(files)} files"
    return Outside(label, listed, {f"source of {f.name}": f.source for f in files if f.source is not None})


def _model_outside(model: ModelConfig, key: str) -> Outside | None:
    if not isinstance(model.model, str):
        return None
    folder = Path(model.model).expanduser()
    if folder.is_dir():
        return Outside(str(folder), model_files(folder))
    return Outside(f"{key}.model {model.model}", (), {"model": model.model, "revision": model.revision})
