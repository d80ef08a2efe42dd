"""What models are trained on in tests of single stages: examples, a tokenizer, tokens and a subset."""

import json
from pathlib import Path

from s2l_ray.artifacts import Artifact
from s2l_ray.config import Config
from s2l_ray.stage_settings import PrepareSettings, SelectSettings, TokenizerSettings, TokenizeSettings
from s2l_ray.stages import prepare_examples, prepare_tokenizer, tokenize_examples
from s2l_ray.stages import select_subset as select
from tests.stages.conftest import Bench


class Prepared:
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
