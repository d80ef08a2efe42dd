"""A local Ray for the tests of a module of stages."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.attempts import StagedOutput, begin
from s2l_ray.config import ResourcesConfig
from s2l_ray.storage import Storage


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    import ray

    # More logical CPUs than cores: two training workers and Ray Data's tasks must fit side by side.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


class Bench:
    """Runs single stages on artifacts made by hand."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage.at(str(folder))
        self._count = 0

    def output(self, name: str) -> StagedOutput:
        self._count += 1
        found = begin(self.storage, name, f"{self._count:032x}")
        assert found is not None
        return found

    def commit(self, output: StagedOutput, result: StageResult) -> Artifact:
        return output.commit(result.files, config={}, inputs={}, summary=result.summary, run={"seconds": 0.0})

    def make(self, name: str, write: Callable[[StagedOutput], StageResult]) -> Artifact:
        output = self.output(name)
        return self.commit(output, write(output))

    def run(
        self,
        stage: Callable[..., StageResult],
        inputs: Any,
        config: Any,
        resources: ResourcesConfig | None = None,
        seed: int = 0,
    ) -> Artifact:
        output = self.output(stage.__name__)
        resources = resources or ResourcesConfig()
        return self.commit(output, stage(inputs, config, resources, output, seed=seed))


@pytest.fixture
def bench(tmp_path: Path, local_ray: None) -> Bench:
    return Bench(tmp_path / "storage")
