"""What a run says about itself, running or finished: for every artifact whether it is there, in the making, or to come.

Read from the storage alone, so it can be asked from any machine that reaches it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from s2l_ray.attempts import at_work
from s2l_ray.digests import DigestCache
from s2l_ray.graph import NodeState, Pipeline, examine
from s2l_ray.log import duration
from s2l_ray.storage import Storage


@dataclass(frozen=True)
class Line:
    """One artifact of a run.

    Attributes:
        state: `done`, `at work` or `to come`.
        says: where it is, how far it is, or what it waits for.
    """

    artifact: str
    stage: str
    state: str
    says: str

    def as_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return asdict(self)


def status(pipeline: Pipeline, storage: Storage) -> Iterator[Line]:
    """Say of every artifact of a pipeline what has become of it, in order."""
    for state in examine(pipeline, storage, DigestCache(storage)):
        yield Line(pipeline.label(state.node), state.node.stage, *_say(state, storage))


def _say(state: NodeState, storage: Storage) -> tuple[str, str]:
    if state.artifact is not None:
        seconds = state.artifact.manifest.run.get("seconds")
        return "done", state.artifact.uri if seconds is None else f"{duration(seconds)}, {state.artifact.uri}"
    now = None if state.fingerprint is None else at_work(storage, state.node.artifact, state.fingerprint)
    if now is None:
        return "to come", state.why
    return "at work", f"{now.doing or duration(now.seconds)}, on {now.host}"
