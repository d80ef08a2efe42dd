"""`examples` and `eval_examples` -> `overlap`: how much of the held-out data stands in the training data.

`held_out.parquet` names the held-out examples that do, `training-*.parquet` the training examples that are like one of
them, each with the strongest grade. With `examples.decontaminate: drop` no model is trained on the latter.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import ResourcesConfig
from s2l_ray.examples import turn_pairs
from s2l_ray.log import display
from s2l_ray.overlap import AT_ONCE, NGRAM_WORDS, Grade, HeldOutPrompts, PromptKeys, count_grades, prompt_keys
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.shards import ExamplesFile, Receipt, map_shards


@dataclass(frozen=True)
class Inputs:
    """The two sides."""

    examples: Artifact
    eval_examples: Artifact


@dataclass(frozen=True)
class MeetFile:
    """Looks for the held-out prompts in one file of training examples."""

    inputs: Inputs
    output: StagedOutput

    def __call__(self, file: ExamplesFile) -> Receipt:
        """Write `training-*`; the note holds which keys of the held-out prompts were seen."""
        held_out = HeldOutPrompts(_held_out_keys(self.inputs.eval_examples)[1])
        examples = self.inputs.examples.read_rows(file.record, columns=["example_id", "turns"])
        parts = (_keys(examples.slice(start, AT_ONCE)) for start in range(0, len(examples), AT_ONCE))
        grades = [grade for _, prompts in parts for grade in held_out.meet(prompts)]
        table = _graded(examples.column("example_id").to_pylist(), grades)
        record = self.output.write_parquet(f"training-{file.piece}.parquet", [table], schemas.OVERLAP)
        return [record], {"seen": held_out.seen, "grades": table.column("grade").to_pylist()}


def measure_overlap(
    inputs: Inputs,
    config: Literal["report", "drop"],
    resources: ResourcesConfig,
    output: StagedOutput,
    *,
    seed: int,
) -> StageResult:
    """Compare the prompts of both sides."""
    ids, prompts = _held_out_keys(inputs.eval_examples)
    held_out = HeldOutPrompts(prompts)
    files = [ExamplesFile(record) for record in inputs.examples.files("examples-")]
    pool = resources.prepare_examples
    receipts = map_shards(MeetFile(inputs, output), files, output, pool, label="measure overlap")
    for _, note in receipts:
        held_out.merge(note["seen"])
    grades = held_out.grades()
    records = [record for written, _ in receipts for record in written]
    records.append(output.write_parquet("held_out.parquet", [_graded(ids, grades)], schemas.OVERLAP))
    met, like = count_grades(grades), count_grades(grade for _, note in receipts for grade in note["grades"])
    if met["ngram"]:
        display.warn(
            f"of {len(ids)} held-out prompts {met['exact']} stand in the training data word for word, "
            f"{met['digit_blind']} up to their numbers, and {met['ngram']} share {NGRAM_WORDS} words in a row with it; "
            + (
                f"the {like['ngram']} training rows that are like them are left out"
                if config == "drop"
                else "scores on them say little. `examples.decontaminate: drop` leaves such training rows out"
            )
        )
    return StageResult(records, {"rows_held_out": len(ids), "held_out": met, "training": like})


@lru_cache(maxsize=2)
def _held_out_keys(eval_examples: Artifact) -> tuple[list[int], PromptKeys]:
    return _keys(eval_examples.read_in_order("examples-", ["example_id", "turns"]))


def _keys(table: pa.Table) -> tuple[list[int], PromptKeys]:
    return table.column("example_id").to_pylist(), prompt_keys(turn_pairs(table.column("turns")))


def _graded(ids: list[int], grades: list[Grade | None]) -> pa.Table:
    found = [(example_id, grade) for example_id, grade in zip(ids, grades, strict=True) if grade is not None]
    columns = [[example_id for example_id, _ in found], [grade for _, grade in found]]
    return pa.table(columns, schema=schemas.OVERLAP)
