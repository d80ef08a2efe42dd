"""What the commands do that look at artifacts: take a subset along, lay two beside each other, explain, inspect."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from s2l_ray.artifacts import Artifact
from s2l_ray.commands import Document, laid_out, overrides
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import load_experiment
from s2l_ray.log import display


def export(options: argparse.Namespace) -> Document:
    """Write a subset, or what tops it up, to a folder to take along, or to a data set of the Hugging Face hub."""
    from s2l_ray import hub
    from s2l_ray.subsets.export import export_folder, push
    from s2l_ray.subsets.lineage import selection_at

    first, *later = options.subset
    subset = _subset_of_arm(first, options) if _is_config(first) else selection_at(first)
    artifacts = [subset, *map(selection_at, later)]
    if options.to.startswith(hub.SCHEME):
        told = push(artifacts, options.to, is_public=options.public, replaces=options.replace)
    elif options.public or options.replace:
        raise ConfigError("--public and --replace are for a data set of the hub: --to hf://datasets/owner/name.")
    else:
        told = export_folder(artifacts, options.to)
    display.say(f"{told['rows']} rows, {len(told['files'])} files and their card: {told['folder']}")
    return told


def _subset_of_arm(config: str, options: argparse.Namespace) -> Artifact:
    from s2l_ray.storage import Storage
    from s2l_ray.subsets.arms import arm_named, arms_of

    experiment = load_experiment(config, overrides(options))
    return arm_named(arms_of(experiment, Storage.at(experiment.shared.storage)), options.arm).need("subset")


def diff(options: argparse.Namespace) -> Document:
    """Say what two subsets have in common, and how they were made otherwise; or what an extension adds to its own."""
    from s2l_ray.subsets import diff, growth
    from s2l_ray.subsets.lineage import is_extension_of, selection_at

    a, b = selection_at(options.subset_a), selection_at(options.subset_b)
    if is_extension_of(a, b):
        a, b = b, a
    if is_extension_of(b, a):
        found = growth.growth(a, b)
        lines = growth.lines(found)
    else:
        found = diff.compare(a, b)
        lines = diff.lines(found)
    for line in lines:
        display.say(line)
    return found


def explain(options: argparse.Namespace) -> Document:
    """Say why a row was taken or not, or what a cluster is."""
    from s2l_ray.storage import Storage
    from s2l_ray.subsets.arms import arms_of
    from s2l_ray.subsets.explain import explain_cluster, explain_example
    from s2l_ray.subsets.explain_extension import explain_added
    from s2l_ray.subsets.explanation import cluster_lines, example_lines

    if not _is_config(options.config):
        told = explain_added(_extension_at(options), options.example)
        lines = example_lines(told)
    else:
        experiment = laid_out(options)[1]
        arms = arms_of(experiment, Storage.at(experiment.shared.storage))
        if options.example is not None:
            told = explain_example(arms, options.example)
            lines = example_lines(told)
        else:
            told = explain_cluster(arms, options.cluster, options.stratum)
            lines = cluster_lines(told)
    for line in lines:
        display.say(line)
    return told


def _is_config(path: str) -> bool:
    return Path(path).suffix in (".yaml", ".yml") or Path(path).is_file()


def _extension_at(options: argparse.Namespace) -> Artifact:
    from s2l_ray.subsets.lineage import selection_at

    found = selection_at(options.config)
    if found.manifest.artifact != "extension" or options.example is None:
        raise ConfigError(
            f"{options.config} is the folder of the {found.manifest.artifact}. Expected the YAML file of its "
            "experiment; or, for --example with a row that came later, the folder of its extension."
        )
    return found


def inspect(options: argparse.Namespace) -> Document:
    """Show an artifact: its summary, inputs and files."""
    from s2l_ray.summary import inspect_folder

    data = inspect_folder(options.folder)
    for key, value in data.items():
        if isinstance(value, Mapping):
            display.say(f"{key}:")
            for name, item in value.items():
                display.say(f"  {name}: {item}")
        else:
            display.say(f"{key}: {value}")
    return data


def settings(options: argparse.Namespace) -> Document:
    """List every setting of a config file with its default, or those of one part, as a config file."""
    from s2l_ray.reference import as_yaml
    from s2l_ray.reference import settings as known

    found = known(options.path)
    for line in as_yaml(found):
        display.hand_out(line)
    return {
        each.dotted: {"type": each.type, "default": each.default, "text": each.text}
        for setting in found
        for each in setting.every()
    }
