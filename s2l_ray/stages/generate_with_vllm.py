"""Answers by vLLM, which Ray Data runs: prompts as token ids in, token ids of greedy answers out, by example id.

What is answered is kept per shard in the attempt, so that a kill costs no more than the shards under way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.exceptions import RayError

from s2l_ray import schemas
from s2l_ray.answers import before_stop_id, room_for_answer
from s2l_ray.artifacts import Artifact
from s2l_ray.config import PoolResources
from s2l_ray.errors import StageFailed
from s2l_ray.log import display
from s2l_ray.models import longest_input
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.capacity import remote_options
from s2l_ray.stages.runtime import building_quietly
from s2l_ray.stages.shards import quiet_data

if TYPE_CHECKING:
    from ray.data.llm import Processor, vLLMEngineProcessorConfig

BLOCK_ROWS = 128
"""Prompts that an engine is given at a time; Ray Data keeps eight such blocks in it at once."""
ANSWERS = pa.schema([pa.field("example_id", pa.int64()), pa.field("token_ids", pa.list_(pa.int32()))])
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}
"""vLLM tells its makers about every start, unless told not to."""

Prompts = Mapping[int, NDArray[np.int32]]
"""Token ids of prompts, by example id."""


@dataclass(frozen=True)
class Vllm:
    """What answers, and where its answers end."""

    target: Artifact
    in_bf16: bool
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    """Texts at which an answer need not go on; they are part of what is returned."""
    pool: PoolResources

    @property
    def sampling(self) -> dict[str, Any]:
        """What holds for every prompt, by the names of vLLM's `SamplingParams`."""
        # vLLM reads an answer together with its prompt, we read it alone: a decoder may drop a space at its start.
        texts = [stop for stop in self.stops if not stop.startswith(" ")]
        ends = {"stop_token_ids": list(self.stop_ids), "ignore_eos": True, "detokenize": bool(texts)}
        return {"temperature": 0.0, **ends, **({"stop": texts} if texts else {})}

    @cached_property
    def _limit(self) -> int | None:
        return longest_input(self.target, schemas.MODEL_FOLDER)

    def room_for(self, prompt: NDArray[np.int32]) -> int:
        """Return how many tokens the answer to a prompt may have; none where the prompt fills the model."""
        return room_for_answer(len(prompt), self.max_new_tokens, self._limit)

    def table(self, prompts: Prompts) -> pa.Table:
        """Return prompts as Ray's processor takes them: `example_id, tokenized_prompt, max_tokens`."""
        rooms = [self.room_for(prompt) for prompt in prompts.values()]
        return pa.table(
            {
                "example_id": pa.array(prompts, pa.int64()),
                "tokenized_prompt": pa.array(prompts.values(), pa.list_(pa.int32())),
                "max_tokens": pa.array(rooms, pa.int32()),
            }
        )

    def processor_config(self, table: pa.Table) -> "vLLMEngineProcessorConfig":
        """Return how Ray is to run the engine over a table of prompts.

        Source: `ray.data.llm.vLLMEngineProcessorConfig`; `engine_kwargs` are vLLM's `EngineArgs`.
        """
        from ray.data.llm import vLLMEngineProcessorConfig

        blocks = -(-len(table) // BLOCK_ROWS)
        lengths = zip(table.column("tokenized_prompt").to_pylist(), table.column("max_tokens").to_pylist(), strict=True)
        return vLLMEngineProcessorConfig(
            model_source=self.target.path(schemas.MODEL_FOLDER),
            batch_size=BLOCK_ROWS,
            concurrency=(min(self.pool.actors[0], blocks), min(self.pool.actors[1], blocks)),
            engine_kwargs={
                "dtype": "bfloat16" if self.in_bf16 else "float32",
                "max_model_len": max(len(prompt) + room for prompt, room in lengths),
                "skip_tokenizer_init": not self.sampling["detokenize"],
                "generation_config": "vllm",  # the model folder may ask for sampling
                "trust_remote_code": self.target.summary.get("trust_remote_code", False),
                "enforce_eager": not self.pool.gpus,  # compiling for a CPU takes longer than the answers
            },
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,  # asks for Ray Serve
        )

    def processor(self, table: pa.Table) -> "Processor":
        """Return what maps a dataset of prompts to one of answers, with the resources of the pool."""
        from ray.data.llm import build_processor

        free = {"num_cpus": 0}  # engines keep their CPUs, and nothing is to wait for one beside them
        with building_quietly():
            built = build_processor(
                self.processor_config(table),
                preprocess=partial(_request, sampling=self.sampling),
                postprocess=_answer,
                preprocess_map_kwargs=free,
                postprocess_map_kwargs=free,
            )
        # The config itself has no place for memory and labels, and would pass its environment to `ray.init`.
        asked = built.get_stage_by_name("vLLMEngineStage").map_batches_kwargs
        asked.update(remote_options(self.pool), runtime_env={"env_vars": ENVIRONMENT})
        return built


def _request(row: dict[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {"sampling_params": {**sampling, "max_tokens": row["max_tokens"]}}


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {"example_id": row["example_id"], "token_ids": np.asarray(row["generated_tokens"], np.int32)}


def answer_shards(shards: Mapping[str, Prompts], vllm: Vllm, output: StagedOutput) -> None:
    """Answer the prompts of every shard and keep the answers in the attempt, for `kept_answers`.

    A shard that an earlier attempt finished is not done again.

    Args:
        shards: prompts by the shard's name.

    Raises:
        StageFailed: the engine does not start, or fails on the way.
    """
    todo = {piece: prompts for piece, prompts in shards.items() if output.finished(_name(piece)) is None}
    piece_of = {example_id: piece for piece, prompts in todo.items() for example_id in prompts}
    said: dict[str, dict[int, list[int]]] = {piece: {} for piece in todo}
    total = sum(len(prompts) for prompts in shards.values())
    done = total - len(piece_of)
    with display.progress("generate answers", total, "rows") as progress:
        progress.update(done)
        for example_id, ids in _stream({i: p for prompts in todo.values() for i, p in prompts.items()}, vllm):
            piece = piece_of[example_id]
            said[piece][example_id] = ids
            if len(said[piece]) == len(todo[piece]):
                _keep(piece, said.pop(piece), output)
            done += 1
            progress.update(done)


def kept_answers(output: StagedOutput, piece: str) -> dict[int, list[int]]:
    """Return the answers to a shard's prompts, as token ids by example id."""
    kept = output.finished(_name(piece))
    assert kept is not None
    (record,) = kept[0]
    table = output.read_parquet(record.path)
    return dict(zip(table.column("example_id").to_pylist(), table.column("token_ids").to_pylist(), strict=True))


def _name(piece: str) -> str:
    return f"answers-{piece}"


def _keep(piece: str, said: Mapping[int, list[int]], output: StagedOutput) -> None:
    ids = sorted(said)
    table = pa.table({"example_id": ids, "token_ids": [said[i] for i in ids]}, schema=ANSWERS)
    output.keep(_name(piece), [output.write_parquet(f"scratch/{_name(piece)}.parquet", [table], ANSWERS)], {})


def _stream(prompts: Prompts, vllm: Vllm) -> Iterator[tuple[int, list[int]]]:
    """Yield answers as they come."""
    import ray.data

    answerable = {example_id: prompt for example_id, prompt in prompts.items() if vllm.room_for(prompt) > 0}
    yield from ((example_id, list[int]()) for example_id in prompts if example_id not in answerable)
    if not answerable:
        return
    table = vllm.table(answerable)
    blocks = [table.slice(start, BLOCK_ROWS) for start in range(0, len(table), BLOCK_ROWS)]
    with quiet_data():
        results = vllm.processor(table)(ray.data.from_arrow(blocks))
    try:
        for row in results.iter_rows():
            yield row["example_id"], before_stop_id(row["token_ids"].tolist(), vllm.stop_ids)
    except RayError as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise StageFailed(
            f"evaluate.engine: vllm failed ({last}). With S2L_VERBOSE=1 its own output is shown; evaluate.engine: "
            "transformers answers without it."
        ) from error
