"""One local Ray for the tests of single stages, and what they train on."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.attempts import begin
from s2l_ray.config import Config, ResourcesConfig
from s2l_ray.stage_settings import PrepareSettings, SelectSettings, TokenizerSettings, TokenizeSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages import prepare_examples, prepare_tokenizer, tokenize_examples
from s2l_ray.stages import select_subset as select
from s2l_ray.storage import Storage
from tests.conftest import TINY, one_local_ray


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    yield from one_local_ray()


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


class Prepared:
    """What models are trained on: examples, a tokenizer, tokens and a subset."""

    def __init__(self, bench: Bench, config: Config) -> None:
        self.bench = bench
        prepare = PrepareSettings(config.examples, (), "train", 0.0, 7, "examples")
        self.examples = bench.run(prepare_examples.prepare_examples, prepare_examples.Inputs(), prepare)
        self.tokenizer = bench.run(
            prepare_tokenizer.prepare_tokenizer,
            prepare_tokenizer.Inputs(self.examples),
            TokenizerSettings(config.tokens, config.tokens.template, None, "proxy"),
        )
        self.tokens = bench.run(
            tokenize_examples.tokenize_examples,
            tokenize_examples.Inputs(self.examples, self.tokenizer),
            TokenizeSettings(config.tokens.max_tokens, config.tokens.template, config.examples),
        )
        self.subset = bench.run(
            select.select_subset,
            select.Inputs(self.examples, self.tokens, self.tokens),
            SelectSettings(config.select.model_copy(update={"method": "random"}), ()),
        )


def losses(artifact: Artifact) -> list[float]:
    """Return the mean loss of every training step [nats/token]."""
    lines = Path(artifact.path("metrics.jsonl")).read_text().splitlines()
    return [json.loads(line)["mean_loss"] for line in lines]


@pytest.fixture(scope="package")
def config() -> Config:
    return Config.model_validate({**TINY, "examples": {"synthetic": {"rows": 200, "skills": 5}}})


@pytest.fixture(scope="package")
def prepared(tmp_path_factory: pytest.TempPathFactory, config: Config, local_ray: None) -> Prepared:
    return Prepared(Bench(tmp_path_factory.mktemp("storage")), config)
