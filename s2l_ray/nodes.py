"""The nodes of an arm: what each stage is to do, what its address depends on, and from which artifacts it works.

Neither torch nor ray is imported here, and no row of an input is read.
"""

from collections.abc import Mapping
from typing import Any

from s2l_ray.artifacts import hash_of
from s2l_ray.config import (
    Config,
    EncoderConfig,
    ExamplesConfig,
    ModelConfig,
    ModelKey,
    NamedModel,
    PromptName,
    Section,
    derive_seed,
)
from s2l_ray.digests import OutsideFile, model_files
from s2l_ray.graph import Node, Outside
from s2l_ray.imported import find_losses
from s2l_ray.input_files import InputFile
from s2l_ray.judging.metrics import judges_of
from s2l_ray.needs import CLUSTERED
from s2l_ray.pretrained import is_pretrained, located, own_folder
from s2l_ray.stage_settings import (
    EvaluateSettings,
    ImportSettings,
    PrepareSettings,
    ProxySettings,
    SelectSettings,
    TargetSettings,
    TokenizerSettings,
    TokenizeSettings,
)

SCORED = ("least_confidence", "middle_perplexity", "high_learnability", "curriculum")
"""The selectors that read the losses themselves."""
NOT_IN_BYTES = ("path", "on_bad_row", "max_rejected", "decontaminate")
"""Keys of `examples` that change nothing in the examples themselves."""
OWN_LAYOUTS = "layouts_by_file"
"""Setting of examples: how the files are read whose entry of a mixture says so."""


def arm_nodes(
    config: Config, files: Mapping[Any, tuple[InputFile, ...]], *, allow_code_execution: bool = False
) -> dict[str, Node]:
    """Lay out the nodes of one arm, by name, up to its scores."""
    data = files.get(config.examples.path, ())
    nodes = {"examples": (examples := _examples_node(config, data))}
    nodes["eval_examples"] = eval_examples = _eval_examples_node(config, files, examples)
    nodes["overlap"] = overlap = overlap_node(config, examples, eval_examples)
    drops = config.examples.decontaminate == "drop"
    for key, model in models_of(config):
        nodes[f"{key}_tokenizer"] = tokenizer = _tokenizer_node(config, key, model, examples)
        nodes[f"{key}_tokens"] = tokens_node(config, key, examples, tokenizer, overlap if drops else None)
    prompt = config.evaluate.prompt
    nodes["eval_tokens"] = tokens_node(config, "target", eval_examples, nodes["target_tokenizer"], prompt=prompt)
    # Whoever brings trajectories has no proxy here, and its rows are those that the target can be trained on.
    nodes.setdefault("proxy_tokens", nodes["target_tokens"])
    selecting = {"examples": examples, "proxy_tokens": nodes["proxy_tokens"], "target_tokens": nodes["target_tokens"]}
    method = config.select.method
    if method in CLUSTERED or method in SCORED or method == "facility_location":
        nodes |= _imported_nodes(config, nodes) if config.trajectories.path else _proxy_nodes(config, nodes)
        if method in CLUSTERED:
            nodes["clusters"] = _clusters_node(config, nodes)
        selecting |= {name: nodes[name] for name in ("clusters", "trajectories", "hidden_states") if name in nodes}
    if method in CLUSTERED:
        # The ranking follows from the clusters alone.
        selecting = {name: node for name, node in selecting.items() if name not in ("trajectories", "hidden_states")}
    nodes["subset"] = Node(
        artifact="subset",
        stage="select_subset",
        config=SelectSettings(config.select, data),
        settings=settings_of(config.select, without=("seed",)),
        inputs=selecting,
        seed=config.select.seed or 0,
        # The rows are copied whole from the input, and not every column of it has gone into the examples.
        outside=examples.outside,
    )
    nodes["target"] = Node(
        artifact="target",
        stage="finetune_target",
        config=TargetSettings(located(config.target), config.tokens.max_tokens),
        settings={**settings_of(config.target, without=("seed",)), "max_tokens": config.tokens.max_tokens},
        inputs={
            "subset": nodes["subset"],
            "tokens": nodes["target_tokens"],
            "tokenizer": nodes["target_tokenizer"],
        },
        seed=config.target.seed or 0,
        outside=model_outside(config.target, "target"),
    )
    judges, encoder, engine = judges_of(config.evaluate.metrics), encoder_of(config), config.evaluate.engine
    nodes["scores"] = Node(
        artifact="scores",
        stage="evaluate_target",
        config=EvaluateSettings(
            config.evaluate.model_copy(update={"encoder": located(encoder)}) if encoder else config.evaluate,
            config.target.precision,
            allow_code_execution,
        ),
        settings={
            **settings_of(config.evaluate, without=("path", "columns", "held_out", "encoder", "prompt", "engine")),
            "precision": config.target.precision,
            **({"engine": engine} if engine != "transformers" else {}),
            **({"judges": judges} if judges else {}),
            **({"encoder": settings_of(encoder, without=("model", "revision"))} if encoder else {}),
        },
        inputs={
            "target": nodes["target"],
            "eval_tokens": nodes["eval_tokens"],
            "eval_examples": eval_examples,
            "tokenizer": nodes["target_tokenizer"],
        },
        outside=model_outside(encoder, "evaluate.encoder") if encoder else None,
    )
    return nodes


def models_of(config: Config) -> list[tuple[ModelKey, ModelConfig]]:
    """Return the models that are used: none is watched where trajectories are brought along."""
    proxy: list[tuple[ModelKey, ModelConfig]] = [] if config.trajectories.path else [("proxy", config.proxy)]
    return [*proxy, ("target", config.target)]


def encoder_of(config: Config) -> EncoderConfig | None:
    """Return the model that some metric reads texts with, if any does."""
    return config.evaluate.encoder if "bert_score" in config.evaluate.metrics else None


def _imported_nodes(config: Config, nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Lay out the trajectories that were computed elsewhere."""
    assert config.trajectories.path is not None
    files = find_losses(config.trajectories.path)
    inputs = {"examples": nodes["examples"], "tokens": nodes["target_tokens"]}
    if config.evaluate.path is None:
        inputs["held_out"] = nodes["eval_examples"]
    imported = Node(
        artifact="trajectories",
        stage="import_trajectories",
        config=ImportSettings(files, config.trajectories.columns),
        settings={"columns": config.trajectories.columns},
        inputs=inputs,
        outside=Outside(config.trajectories.path, files),
    )
    return {"trajectories": imported}


def _proxy_nodes(config: Config, made: Mapping[str, Node]) -> dict[str, Node]:
    """Lay out what the selector learns from the proxy, and no more."""
    method, tokens, tokenizer = config.select.method, made["proxy_tokens"], made["proxy_tokenizer"]
    proxy = Node(
        artifact="proxy",
        stage="train_proxy",
        config=ProxySettings(located(config.proxy), config.tokens.max_tokens),
        settings={**settings_of(config.proxy, without=("seed",)), "max_tokens": config.tokens.max_tokens},
        inputs={"tokens": tokens, "tokenizer": tokenizer},
        seed=config.proxy.seed or 0,
        outside=model_outside(config.proxy, "proxy"),
    )
    nodes = {"proxy": proxy}
    scoring = {"tokens": tokens, "tokenizer": tokenizer, "proxy": proxy}
    scored = settings_of(config.score, without=("checkpoints_per_pass",))
    if method == "facility_location" or (method in CLUSTERED and config.cluster.features == "hidden_state"):
        nodes["hidden_states"] = Node(
            artifact="hidden_states", stage="embed_examples", config=config.score, settings=scored, inputs=scoring
        )
    if method != "facility_location":
        nodes["trajectories"] = Node(
            artifact="trajectories", stage="score_examples", config=config.score, settings=scored, inputs=scoring
        )
    return nodes


def _clusters_node(config: Config, nodes: Mapping[str, Node]) -> Node:
    names = ("trajectories", "examples", "hidden_states")
    return Node(
        artifact="clusters",
        stage="cluster_trajectories",
        config=config.cluster,
        settings=settings_of(config.cluster, without=("seed",)),
        inputs={name: nodes[name] for name in names if name in nodes},
        seed=config.cluster.seed or 0,
    )


def _examples_node(config: Config, files: tuple[InputFile, ...]) -> Node:
    held_out = config.evaluate.held_out if config.evaluate.path is None and config.examples.synthetic is None else 0.0
    return Node(
        artifact="examples",
        stage="prepare_examples",
        config=PrepareSettings(
            config.examples, files, "train", held_out, derive_seed(config.seed, "synthetic"), "examples"
        ),
        settings={
            **settings_of(config.examples, without=NOT_IN_BYTES),
            "held_out": held_out,
            **_mixture(files),
        },
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
    return all_rows_node("eval_examples", section, files[config.evaluate.path], "evaluate")


def all_rows_node(artifact: str, section: ExamplesConfig, listed: tuple[InputFile, ...], key: str) -> Node:
    """Lay out all rows of some files as examples; `key` is the config section that is named in messages."""
    return Node(
        artifact=artifact,
        stage="prepare_examples",
        config=PrepareSettings(section, listed, "all", 0.0, 0, key),
        settings={**settings_of(section, without=NOT_IN_BYTES), "part": "all", **_mixture(listed)},
        inputs={},
        outside=_files_outside(listed),
    )


def _mixture(files: tuple[InputFile, ...]) -> dict[str, Any]:
    """Return what the entries of a mixture decide: which files are laid out alike, and how, where an entry says so."""
    found = {
        file.name: {"format": file.layout, "columns": dict(file.columns or {})}
        for file in files
        if file.layout is not None or file.columns is not None
    }
    first: dict[int, str] = {}
    alike = [[file.name, first.setdefault(file.entry, file.name)] for file in files]
    entries = {"entries": hash_of(alike)} if len(first) > 1 else {}
    return {**({OWN_LAYOUTS: found} if found else {}), **entries}


def _tokenizer_node(config: Config, key: ModelKey, model: ModelConfig, examples: Node) -> Node:
    pretrained = is_pretrained(model)
    template = config.tokens.template_of(key)
    # Two fresh models share one tokenizer; a pretrained one brings its own, whatever `tokens` says of training.
    trained = {**settings_of(config.tokens, without=("proxy_template",)), "template": template}
    return Node(
        artifact="tokenizer",
        stage="prepare_tokenizer",
        config=TokenizerSettings(config.tokens, template, located(model) if pretrained else None, key),
        settings={} if pretrained else trained,
        inputs={} if pretrained else {"examples": examples},
        outside=model_outside(model, key),
    )


def overlap_node(config: Config, examples: Node, eval_examples: Node) -> Node:
    """Compare some examples with the held-out ones."""
    return Node(
        artifact="overlap",
        stage="measure_overlap",
        config=config.examples.decontaminate,
        settings={},
        inputs={"examples": examples, "eval_examples": eval_examples},
    )


def tokens_node(
    config: Config,
    key: ModelKey,
    examples: Node,
    tokenizer: Node,
    overlap: Node | None = None,
    *,
    prompt: PromptName = "plain",
) -> Node:
    """Lay out the tokens of some examples for one of the models; `prompt` is of held-out ones."""
    max_tokens, template = config.tokens.max_tokens, config.tokens.template_of(key)
    asked = {} if prompt == "plain" else {"prompt": prompt}
    return Node(
        artifact="tokens",
        stage="tokenize_examples",
        config=TokenizeSettings(max_tokens, template, config.examples, prompt),
        settings={"max_tokens": max_tokens, "template": template, **asked},
        inputs={"examples": examples, "tokenizer": tokenizer} | ({"overlap": overlap} if overlap else {}),
    )


def settings_of(section: Section, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what of a section changes the bytes."""
    return section.model_dump(mode="python", exclude=set(without))


def _files_outside(files: tuple[InputFile, ...]) -> Outside | None:
    """Return input files as what a node reads beside artifacts."""
    if not files:
        return None
    listed = tuple(OutsideFile(f.path, f.name, f.bytes, f.modified_ns) for f in files)
    label = files[0].path if len(files) == 1 else f"{len(files)} files"
    return Outside(label, listed, {f"source of {f.name}": f.source for f in files if f.source is not None})


def model_outside(model: NamedModel, key: str) -> Outside | None:
    """Return the files of a pretrained model, which its artifacts depend on; None where one is built from a config."""
    if not isinstance(model.model, str):
        return None
    if (folder := own_folder(model)) is not None:
        return Outside(str(folder), model_files(folder))
    return Outside(f"{key}.model {model.model}", (), {"model": model.model, "revision": model.revision})
