"""Examples, or a pretrained model -> `tokenizer`: a folder that `AutoTokenizer.from_pretrained` loads.

Later stages read text with this folder alone, so that they need neither the model nor a network.
"""

import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.chat_template import ChatTemplate
from s2l_ray.config import ResourcesConfig
from s2l_ray.draws import Draws
from s2l_ray.errors import ConfigError
from s2l_ray.examples import turn_pairs
from s2l_ray.log import Task, display
from s2l_ray.pretrained import check_fits, pretrained_folder
from s2l_ray.stage_settings import TokenizerSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.tokens import ExampleTokenizer, render, save_tokenizer, train_tokenizer

MOST_ROWS = 100_000
"""Rows that a tokenizer is trained on, drawn by their content: more would change few of its tokens."""

TOKENIZER_SEED = 0
"""All arms share a tokenizer, whatever their seeds."""

_one_at_a_time = threading.Lock()
"""Stages are threads of one process, and transformers' lazy modules break when two threads import at once."""


@dataclass(frozen=True)
class Inputs:
    """`examples` where a tokenizer is trained on them."""

    examples: Artifact | None = None


def prepare_tokenizer(
    inputs: Inputs, config: TokenizerSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Train a tokenizer, or take over that of a pretrained model."""
    with tempfile.TemporaryDirectory(prefix="s2l-") as temporary:
        folder = Path(temporary)
        turn_end = None
        if inputs.examples is None:
            with _one_at_a_time:
                _take_over(config, folder)
                turn_end = _turn_end(folder, must_have=config.template == "chat")
        else:
            kind = config.tokens.tokenizer
            with display.progress(
                "train tokenizer", min(MOST_ROWS, inputs.examples.summary["rows_kept"]), "rows"
            ) as progress:
                texts = _texts(inputs.examples, config, progress)
                tokenizer = train_tokenizer(texts, kind, config.tokens.vocab_size)
            save_tokenizer(tokenizer, folder, config.tokens.max_tokens)
        opened = ExampleTokenizer(folder)
        records = output.add_folder(folder, "")
    stops = {opened.eos_id, *([] if turn_end is None else [opened.token_id(turn_end)])}
    summary = {"vocab_size": opened.vocab_size, "eos_id": opened.eos_id, "pad_id": opened.pad_id}
    model = config.pretrained.model if config.pretrained is not None else None
    return StageResult(records, {**summary, "stop_ids": sorted(stops), "model": model})


def _turn_end(folder: Path, must_have: bool) -> str | None:
    """Return the token with which a model that was tuned on chats ends an answer."""
    try:
        return ChatTemplate(folder).turn_end
    except ConfigError:
        if must_have:
            raise
        return None


def _texts(examples: Artifact, config: TokenizerSettings, progress: Task) -> Iterator[str]:
    assert config.template != "chat"  # the config has refused it
    draws = Draws.of(examples.read_table("examples-", list(Draws.COLUMNS)), TOKENIZER_SEED)
    taken = pa.array(draws.example_id_N[np.lexsort((draws.example_id_N, draws.draw_N))[:MOST_ROWS]])
    for record in examples.files("examples-"):
        table = examples.read_rows(record, columns=["example_id", "turns"])
        is_taken = pc.is_in(table.column("example_id"), value_set=taken)
        for turns in turn_pairs(table.column("turns").filter(is_taken)):
            progress.advance()
            for segment in render(turns, config.template):
                yield segment.text


def _take_over(config: TokenizerSettings, folder: Path) -> None:
    from transformers import AutoTokenizer

    assert config.pretrained is not None
    source = pretrained_folder(config.pretrained, config.key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.pretrained.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"{config.key}.model: the tokenizer in {source} does not load: {error}") from error
    check_fits(source, config.key, max_tokens=config.tokens.max_tokens, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
