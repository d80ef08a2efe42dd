"""Rows that came later: the graph by which they join the subset of an arm, with its proxy and without any training.

The new rows are scored with the proxy's saved checkpoints, assigned to the centroids as they are, and taken where the
quotas of the clusters now fall short. What the arm has is read and left as it is.
"""

from collections.abc import Mapping
from dataclasses import replace

from s2l_ray.budgets import parse_budget
from s2l_ray.config import Config, InputPath, ModelKey, SelectConfig
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import Experiment
from s2l_ray.graph import STAGES, Node, Pipeline
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import find_inputs
from s2l_ray.nodes import all_rows_node, arm_nodes, overlap_node, settings_of, tokens_node
from s2l_ray.plan import list_inputs, settled
from s2l_ray.stage_settings import SelectSettings

EXTENDABLE = ("paper", "guarded")
"""The selectors whose quotas can be topped up."""


def arm_to_extend(experiment: Experiment, named: str | None) -> str:
    """Return the arm that is meant: the one that is named, or the only one whose quotas can be topped up.

    Raises:
        ConfigError: there is no such arm, or there are several or none.
    """
    if named is not None and named not in experiment.arms:
        raise ConfigError(f"--arm {named}: there is no such arm. Expected one of {', '.join(experiment.arms)}.")
    able = [arm for arm, config in experiment.arms.items() if config.select.method in EXTENDABLE]
    if named is None and len(able) != 1:
        raise ConfigError(
            f"which subset is to be extended? {', '.join(able) or 'No arm'} of {', '.join(experiment.arms)} can be. "
            f"Expected --arm with one whose select.method is {' or '.join(EXTENDABLE)}."
        )
    return named or able[0]


def build_extension(
    experiment: Experiment, arm: str, rows: InputPath, budget: int | float | str | None = None
) -> Pipeline:
    """Lay out how rows that came later join an arm's subset, with its proxy, its clusters, and no training.

    Args:
        rows: the new ones, laid out as the first ones were unless they say otherwise.
        budget: how many of them to take; where None, the share that `select.budget` asks of the first rows.

    Raises:
        ConfigError, DataError: the arm selects in a way that has no quotas, or the rows cannot be used.
    """
    config = settled(experiment.arms[arm])
    if config.select.method not in EXTENDABLE or config.cluster.features != "loss" or config.trajectories.path:
        raise ConfigError(
            f"arm {arm!r} (select.method: {config.select.method}) cannot be extended: that takes a proxy of its own "
            f"and clusters of its losses. Expected select.method {' or '.join(EXTENDABLE)}; or run all anew."
        )
    if budget is None and parse_budget(config.select.budget).kind != "fraction":
        raise ConfigError(
            f"select.budget is {config.select.budget!r}, which says nothing of new rows. Expected --budget with how "
            'many to take of them, e.g. `--budget 500` or `--budget "10%"`.'
        )
    nodes = arm_nodes(config, list_inputs(config, {}))
    select = config.select if budget is None else config.select.model_copy(update={"budget": budget})
    listed = find_inputs((rows,), key="--rows")
    section = config.examples.model_copy(update={"path": (rows,), "synthetic": None})
    examples = all_rows_node("examples", section, listed, "examples")
    # Measured whether or not such rows are dropped: what comes later must not spoil the scores in silence.
    overlap = overlap_node(config, examples, nodes["eval_examples"])
    extension = _extension_node(config, nodes | {"later": examples, "later_overlap": overlap}, listed, select)
    made = {node.key: node for last in (overlap, extension) for node in last.with_ancestors()}
    order = list(STAGES)
    return Pipeline(tuple(sorted(made.values(), key=lambda node: order.index(node.stage))), {}, {})


def _extension_node(
    config: Config, nodes: Mapping[str, Node], listed: tuple[InputFile, ...], select: SelectConfig
) -> Node:
    examples = nodes["later"]
    overlap = nodes["later_overlap"] if config.examples.decontaminate == "drop" else None
    keys: tuple[ModelKey, ...] = ("proxy", "target")
    tokens = {key: tokens_node(config, key, examples, nodes[f"{key}_tokenizer"], overlap) for key in keys}
    scoring = {"tokens": tokens["proxy"], "tokenizer": nodes["proxy_tokenizer"], "proxy": nodes["proxy"]}
    trajectories = replace(nodes["trajectories"], inputs=scoring)
    assignments = Node(
        artifact="assignments",
        stage="assign_trajectories",
        config=config.cluster,
        settings=settings_of(config.cluster, without=("seed",)),
        inputs={
            "trajectories": trajectories,
            "examples": examples,
            "clusters": nodes["clusters"],
            "known": nodes["examples"],
        },
    )
    return Node(
        artifact="extension",
        stage="select_subset",
        config=SelectSettings(select, listed),
        settings=settings_of(select, without=("seed",)),
        inputs={
            "examples": examples,
            "proxy_tokens": tokens["proxy"],
            "target_tokens": tokens["target"],
            "assignments": assignments,
            "clusters": nodes["clusters"],
            "subset": nodes["subset"],
        },
        seed=select.seed or 0,
        outside=examples.outside,
    )
