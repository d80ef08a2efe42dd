"""What exists of the arms of an experiment: reading it starts nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from s2l_ray.artifacts import Artifact
from s2l_ray.config import Config
from s2l_ray.digests import DigestCache
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import Experiment
from s2l_ray.graph import Node, examine
from s2l_ray.plan import build_pipeline
from s2l_ray.storage import Storage


@dataclass(frozen=True)
class Arm:
    """One arm: its subset to be, and which of what leads to it is there.

    Attributes:
        name: of the arm.
        config: its settings.
        subset: the node of its subset.
        held_out: the node of its held-out examples.
        artifacts: what is there, by node key.
        why_missing: node key -> why it is not there.
    """

    name: str
    config: Config
    subset: Node
    held_out: Node
    artifacts: Mapping[str, Artifact]
    why_missing: Mapping[str, str]

    def find(self, name: str) -> Artifact | None:
        """Return what the subset is made from under this name, or `subset` itself; None where the arm has none.

        Raises:
            ConfigError: the arm has it, but it is not there yet.
        """
        node = self._node(self.subset, name)
        if node is None:
            return None
        if node.key not in self.artifacts:
            first = self._first_missing(node)
            before = "" if first is node else f"{first.artifact} is missing before it, "
            raise ConfigError(
                f"{node.artifact} of the arm {self.name} is not there yet: {before}{self.why_missing[first.key]}. "
                f"Run the stages up to it, with `s2l run CONFIG --until {node.stage}`."
            )
        return self.artifacts[node.key]

    def need(self, name: str) -> Artifact:
        """Return what every arm has; see `find`."""
        found = self.find(name)
        assert found is not None
        return found

    def _first_missing(self, node: Node) -> Node:
        missing = [parent for parent in node.inputs.values() if parent.key not in self.artifacts]
        return self._first_missing(missing[0]) if missing else node

    def _node(self, node: Node, name: str) -> Node | None:
        if node.artifact == name:
            return node
        if name in node.inputs:
            return node.inputs[name]
        return next((found for parent in node.inputs.values() if (found := self._node(parent, name))), None)


def arms_of(experiment: Experiment, storage: Storage) -> dict[str, Arm]:
    """Look for what exists of every arm.

    Raises:
        ConfigError, DataError: an input is missing or cannot be used.
    """
    pipeline = build_pipeline(experiment)
    states = {state.node.key: state for state in examine(pipeline, storage, DigestCache(storage))}
    artifacts = {key: state.artifact for key, state in states.items() if state.artifact is not None}
    why_missing = {key: state.why for key, state in states.items()}
    inputs = pipeline.comparison.inputs
    return {
        name: Arm(
            name,
            config,
            inputs[f"subset/{name}"],
            inputs[f"overlap/{name}"].inputs["eval_examples"],
            artifacts,
            why_missing,
        )
        for name, config in experiment.arms.items()
    }


def arm_named(arms: Mapping[str, Arm], name: str | None) -> Arm:
    """Return one arm; where there is one alone it needs no name.

    Raises:
        ConfigError: there is none of that name, or none is named of several.
    """
    if name is None and len(arms) == 1:
        return next(iter(arms.values()))
    if name is None or name not in arms:
        found = "several arms and no --arm" if name is None else f"no arm {name!r}"
        raise ConfigError(f"found {found}. Expected --arm with one of {', '.join(arms)}.")
    return arms[name]
