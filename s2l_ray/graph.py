"""The graph of artifacts: which stage writes which from which, and what of it exists already.

Neither torch nor ray is imported here, and no input is read. A fingerprint follows from the digests of a node's
inputs, so it is known only once they exist; until then a node "will run".
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, find_artifact, hash_of
from s2l_ray.digests import DigestCache, OutsideFile
from s2l_ray.errors import ConfigError
from s2l_ray.storage import Storage

STAGES = {
    "prepare_examples": 2,
    "measure_overlap": 1,
    "prepare_tokenizer": 4,
    "tokenize_examples": 3,
    "train_proxy": 3,
    "score_examples": 2,
    "import_trajectories": 2,
    "embed_examples": 1,
    "cluster_trajectories": 4,
    "assign_trajectories": 4,
    "select_subset": 1,
    "finetune_target": 5,
    "evaluate_target": 3,
    "compare_arms": 5,
    "diagnose_selection": 4,
    "write_report": 2,
    "run_sweep": 1,
}
"""The stages in order, each with its code epoch: raised by hand when a stage's bytes change for equal settings."""

Check = Callable[[Artifact], None]
"""Refuses an artifact that does not hold what later, dearer stages need."""


NAMED_ARMS = 3
"""Arms that a label names where many need an artifact."""


@dataclass(frozen=True)
class Outside:
    """Something a node reads that is no artifact."""

    label: str
    files: tuple[OutsideFile, ...]
    facts: Mapping[str, str | None] = field(default_factory=dict)
    """What else decides the content; a fact that is None is not known yet."""

    @property
    def is_unfetched(self) -> bool:
        """Whether it has to be fetched before anything can be said of it."""
        return None in self.facts.values()


@dataclass(frozen=True)
class Node:
    """One artifact to be: the stage that writes it, with what, from what."""

    artifact: str
    stage: str
    config: Any
    """What the stage function gets."""
    settings: Mapping[str, Any]
    """The part of it that changes the bytes."""
    inputs: Mapping[str, "Node"]
    seed: int = 0
    outside: Outside | None = None

    @cached_property
    def key(self) -> str:
        """Equal for nodes that would compute the same thing."""
        outside = [f.key for f in self.outside.files] + [dict(self.outside.facts)] if self.outside else []
        inputs = {name: node.key for name, node in self.inputs.items()}
        return hash_of([self.artifact, self.stage, self.settings, self.seed, outside, inputs])

    def with_ancestors(self) -> "list[Node]":
        """Return what the node is made from, each once and after its own inputs, and the node."""
        found: dict[str, Node] = {}
        for parent in self.inputs.values():
            found |= {each.key: each for each in parent.with_ancestors()}
        return list((found | {self.key: self}).values())

    def made(self, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Return by name, of artifacts by node key, what the node is made from and its own; of one name the last."""
        return {node.artifact: artifacts[node.key] for node in self.with_ancestors()}

    def fingerprint(self, inputs: Mapping[str, str], outside: str | None) -> str:
        """Return the address of the artifact, given the digests of what it is made from."""
        return hash_of(
            {
                "artifact": self.artifact,
                "schema": schemas.SCHEMA_VERSION,
                "stage": self.stage,
                "epoch": STAGES[self.stage],
                "settings": self.settings,
                "seed": self.seed,
                "inputs": dict(inputs),
                "outside": outside,
            }
        )[:32]


@dataclass(frozen=True)
class Pipeline:
    """The nodes of an experiment, each after its inputs, shared ones once."""

    nodes: tuple[Node, ...]
    arms: Mapping[str, tuple[str, ...]]
    """Node key -> the arms that need it, where not all of them do."""
    checks: Mapping[str, tuple[Check, ...]]
    """Node key -> what its artifact must hold for later, dearer stages to be worth starting."""

    def label(self, node: Node) -> str:
        """Return how a node is called in front of the user: no two of a pipeline are called the same."""
        return self._labels[node.key]

    @cached_property
    def _labels(self) -> dict[str, str]:
        labels: dict[str, str] = {}
        times: Counter[str] = Counter()
        for node in self.nodes:
            arms = self.arms.get(node.key, ())
            held_out = node.artifact == "tokens" and node.inputs["examples"].artifact == "eval_examples"
            name = "eval_tokens" if held_out else node.artifact
            more = f" and {len(arms) - NAMED_ARMS} more" if len(arms) > NAMED_ARMS + 1 else ""
            shown = arms[:NAMED_ARMS] if more else arms
            label = f"{name} [{', '.join(shown)}{more}]" if arms else name
            times[label] += 1
            labels[node.key] = label if times[label] == 1 else f"{label} #{times[label]}"
        return labels

    @property
    def comparison(self) -> Node:
        """The node at which all arms come together, where the pipeline goes that far."""
        return next(node for node in self.nodes if node.artifact == "comparison")

    def check(self, node: Node, artifact: Artifact) -> None:
        """Check what a node has made, before anything that follows from it is begun.

        Raises:
            S2LError: an arm cannot go on from it.
        """
        for check in self.checks.get(node.key, ()):
            check(artifact)

    def until(self, stage: str) -> "Pipeline":
        """Return the part that a stage needs, the stage included.

        Raises:
            ConfigError: there is no such stage, or no arm needs it.
        """
        if stage not in STAGES:
            raise ConfigError(f"unknown stage {stage!r}. Expected one of {', '.join(STAGES)}.")
        wanted = {node.key for node in self.nodes if node.stage == stage}
        if not wanted:
            used = dict.fromkeys(node.stage for node in self.nodes)
            raise ConfigError(
                f"no arm of this experiment needs the stage {stage!r}. Expected one of {', '.join(used)}, "
                "or another `select.method`."
            )
        order = list(STAGES)
        for node in reversed(self.nodes):
            # Nothing is made of the overlap, but it is to be known before anything dear is.
            if node.stage == "measure_overlap" and order.index(stage) > order.index(node.stage):
                wanted.add(node.key)
            if node.key in wanted:
                wanted.update(parent.key for parent in node.inputs.values())
        return Pipeline(tuple(node for node in self.nodes if node.key in wanted), self.arms, self.checks)

    @staticmethod
    def before(stage: str, pipelines: "Iterable[Pipeline]") -> "Pipeline":
        """Return what several pipelines need before a stage, shared nodes once."""
        order = list(STAGES)
        nodes: dict[str, Node] = {}
        checks: dict[str, list[Check]] = {}
        for pipeline in pipelines:
            for node in pipeline.nodes:
                if order.index(node.stage) < order.index(stage):
                    nodes.setdefault(node.key, node)
                    checks.setdefault(node.key, []).extend(pipeline.checks.get(node.key, ()))
        ordered = sorted(nodes.values(), key=lambda node: order.index(node.stage))
        return Pipeline(tuple(ordered), {}, {key: tuple(found) for key, found in checks.items()})


@dataclass(frozen=True)
class NodeState:
    """What is known about a node before anything runs."""

    node: Node
    fingerprint: str | None
    artifact: Artifact | None
    why: str


def examine(
    pipeline: Pipeline, storage: Storage, digests: DigestCache, known: dict[str, NodeState] | None = None
) -> Iterator[NodeState]:
    """Say of every node whether it exists, and if not, why it will run.

    Args:
        known: node key -> what was found before, of nodes that other pipelines share; filled with what is found now.
    """
    known = {} if known is None else known
    for node in pipeline.nodes:
        if node.key not in known:
            known[node.key] = _examine_node(node, known, storage, digests)
        yield known[node.key]


def _examine_node(node: Node, known: Mapping[str, NodeState], storage: Storage, digests: DigestCache) -> NodeState:
    parents = {name: known[parent.key] for name, parent in node.inputs.items()}
    waiting = [name for name, parent in parents.items() if parent.artifact is None]
    if waiting:
        return NodeState(node, None, None, f"after {', '.join(dict.fromkeys(n.split('/')[0] for n in waiting))}")
    outside = None
    if node.outside is not None:
        if node.outside.is_unfetched:
            return NodeState(node, None, None, f"not on this machine yet: {node.outside.label}")
        outside = digests.known(node.outside.files, node.outside.facts)
        if outside is None:
            return NodeState(node, None, None, f"input not yet hashed: {node.outside.label}")
    inputs = {name: parent.artifact.digest for name, parent in parents.items() if parent.artifact is not None}
    fingerprint = node.fingerprint(inputs, outside)
    artifact = find_artifact(storage, node.artifact, fingerprint)
    if artifact is not None:
        return NodeState(node, fingerprint, artifact, "cached")
    return NodeState(node, fingerprint, None, "no artifact of these settings and inputs")
