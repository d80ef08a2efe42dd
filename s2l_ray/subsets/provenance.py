"""How a subset was chosen, as told by the manifests of what it was made from."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from s2l_ray.artifacts import Artifact
from s2l_ray.clustering.drift import Drift
from s2l_ray.config import Config
from s2l_ray.input_files import is_remote
from s2l_ray.log import redacted
from s2l_ray.nodes import OWN_LAYOUTS

Lineage = Mapping[str, Artifact]

HELD_OUT_ELSEWHERE = "your-held-out.jsonl"
"""Stands for held-out data of its own: rows are then held out of no input."""
TRAJECTORIES_ELSEWHERE = "your-trajectories"
"""Stands for trajectories that no proxy of the run computed."""
_ANY_FRESH_MODEL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
"""All models with random weights share a tokenizer, and of the target nothing else decides what is chosen."""


_DECIDED_BY_METHOD = ("guard", "stratify_by", "n_clusters_per", "quota_exponent")
"""Settings whose defaults depend on `select.method`."""


def settings_of(artifact: Artifact, *without: str) -> dict[str, Any]:
    """Return the settings an artifact was made with, its seed among them, but for what a reader has no use for.

    Local paths, such as that of a model, are left with their last part: they say more of a machine than of a subset.
    """
    settings = {key: value for key, value in artifact.manifest.config["settings"].items() if key not in without}
    if isinstance(model := settings.get("model"), str):
        settings["model"] = model_name(model)
    return {**redacted(settings), "seed": artifact.manifest.config["seed"]}


def model_name(model: str) -> str:
    """Return an id of the hub as it is, and of a local folder the name alone."""
    is_local = not is_remote(model) and (model.count("/") > 1 or PurePath(model).is_absolute() or model[0] in ".~")
    return PurePath(model).name if is_local else model


def facts_of(subset: Artifact, lineage: Lineage) -> dict[str, Any]:
    """Return what is worth saying first of how a subset was chosen; what its storage no longer knows is left out.

    Args:
        subset: or an extension.
        lineage: of it.
    """
    select, clusters, proxy = settings_of(subset), lineage.get("clusters"), lineage.get("proxy")
    is_extension = subset.manifest.artifact == "extension"
    facts: dict[str, Any] = {
        **(_facts_of_extension(lineage) if is_extension else {}),
        "method": select["method"],
        "budget": "all rows" if select["method"] == "full" else select["budget"],
        "rows taken": subset.summary["rows"],
        "rows to choose from": subset.summary["rows_pool"],
        "rows that the guard set aside": None if is_extension else subset.summary["rows_set_aside"] or None,
        "quota exponent": select["quota_exponent"] or None,
        "seed of the draw": select["seed"],
    }
    if clusters is not None:
        chosen = settings_of(clusters)
        facts |= {"clusters (K)": clusters.summary["n_clusters"], "clusters within each": chosen["stratify_by"]}
        facts |= {"guard": chosen["guard"], "seed of the clusters": chosen["seed"]}
    if proxy is not None:
        trained = settings_of(proxy)
        facts |= {"proxy": _model(trained["model"]), "revision of the proxy": trained["revision"]}
        facts["seed of the proxy"] = trained["seed"]
    if "trajectories" in lineage:
        facts["checkpoints (T)"] = lineage["trajectories"].summary["n_checkpoints"]
        facts["trajectories"] = "computed elsewhere" if proxy is None else None
    return {name: value for name, value in facts.items() if value is not None}


def _facts_of_extension(lineage: Lineage) -> dict[str, Any]:
    """Return what it tops up, and how its rows compare with those that were there."""
    facts: dict[str, Any] = {}
    if "subset" in lineage:
        subset = lineage["subset"]
        facts = {"tops up": f"subset {subset.manifest.fingerprint}, {subset.summary['rows']} rows"}
    if "assignments" in lineage:
        summary = lineage["assignments"].summary
        aside = ", ".join(f"{count} ({reason})" for reason, count in summary["rows_set_aside"].items())
        facts["rows set aside"] = aside or None
        if summary["drift"] is not None:
            drift = Drift(**summary["drift"])
            facts["drift"] = f"{'notable' if drift.is_notable else 'not notable'}: {drift.in_words}"
    return facts


def _model(model: str | Mapping[str, Any]) -> str:
    if isinstance(model, str):
        return model
    sizes = ", ".join(f"{key} {value}" for key, value in model.items() if key != "model_type" and value is not None)
    return f"{model['model_type']} with random weights, {sizes}"


def config_again(subset: Artifact, lineage: Lineage, inputs: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a config that makes a subset again, from the same files.

    Args:
        subset: what is to be made.
        lineage: of it, from `lineage.lineage`, with `examples`.
        inputs: name of each input file -> its source, where all its rows have one.
    """
    sections = {**_data(lineage, inputs), "tokens": _tokens(lineage), "select": settings_of(subset)}
    sections |= {"proxy": settings_of(lineage["proxy"], "max_tokens")} if "proxy" in lineage else {}
    sections |= {"cluster": settings_of(lineage["clusters"])} if "clusters" in lineage else {}
    scored = lineage.get("trajectories", lineage.get("hidden_states"))
    if scored is not None and "proxy" not in scored.manifest.inputs:
        sections["trajectories"] = {"path": TRAJECTORIES_ELSEWHERE, "columns": settings_of(scored)["columns"]}
    elif scored is not None:
        sections["score"] = {name: value for name, value in settings_of(scored).items() if name != "seed"}
    for key in ("target",) if "trajectories" in sections else ("proxy", "target"):
        if key not in sections and f"{key}_tokenizer" in lineage:
            tokenizer = lineage[f"{key}_tokenizer"]
            name = tokenizer.summary.get("model")
            sections |= {key: {"model": model_name(name)}} if name else {}
            sections |= {key: {"model": _ANY_FRESH_MODEL}} if tokenizer.manifest.inputs else {}
    sparse = {key: _without_defaults(key, sections[key]) for key in Config.model_fields if key in sections}
    return {key: section for key, section in sparse.items() if section}


def _without_defaults(key: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what would be so anyway."""
    default = Config.model_fields[key].default
    return {
        name: value
        for name, value in section.items()
        if name in _DECIDED_BY_METHOD or repr(value) != repr(getattr(default, name, ...))
    }


def _data(lineage: Lineage, inputs: Mapping[str, str | None]) -> dict[str, Any]:
    examples = lineage["examples"]
    settings = settings_of(examples, "held_out")
    section: dict[str, Any] = {} if settings["format"] == "auto" else {"format": settings["format"]}
    section |= {"columns": settings["columns"]} if settings["columns"] else {}
    held_out = examples.manifest.config["settings"]["held_out"]
    own = settings.get(OWN_LAYOUTS, {})
    if settings["synthetic"] is not None:
        section["synthetic"] = settings["synthetic"]
    elif len(inputs) == 1 and not own:
        section["path"] = next(iter(inputs))
    else:
        section["path"] = [_entry(name, source, own.get(name, {})) for name, source in inputs.items()]
    if examples.summary["rows_rejected"]:
        section |= {"on_bad_row": "reject", "max_rejected": 1.0}
    if "overlap" in lineage:
        section["decontaminate"] = "drop"
    evaluate = {"held_out": held_out} if held_out else {"path": HELD_OUT_ELSEWHERE}
    return {"examples": section} | ({} if settings["synthetic"] is not None else {"evaluate": evaluate})


def _entry(name: str, source: str | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a file in a mixture; an evaluation set is its own source."""
    is_named = source and source != own.get("format")
    kept = {key: value for key, value in own.items() if value}
    return {"path": name, **({"source": source} if is_named else {}), **kept}


def _tokens(lineage: Lineage) -> dict[str, Any]:
    section: dict[str, Any] = {}
    if "target_tokens" in lineage:
        chosen = lineage["target_tokens"].manifest.config["settings"]
        section = {"max_tokens": chosen["max_tokens"], "template": chosen["template"]}
    if "proxy_tokens" in lineage:
        template = lineage["proxy_tokens"].manifest.config["settings"]["template"]
        section |= {"proxy_template": template} if template != section.get("template") else {}
    for key in ("proxy_tokenizer", "target_tokenizer"):
        if key in lineage and lineage[key].manifest.inputs:  # trained on the examples
            trained = lineage[key].manifest.config["settings"]
            section |= {"tokenizer": trained["tokenizer"], "vocab_size": trained["vocab_size"]}
    return section
