"""`examples` + `tokenizer` -> `tokens`: `tokens-*.parquet` beside each examples file, `rejected.parquet`.

A row none of whose response tokens survives the cut at `max_tokens` is rejected and counted: a loss over nothing is
no loss. Every other row stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.attempts import StagedOutput
from s2l_ray.config import ResourcesConfig, TokensConfig
from s2l_ray.errors import ArtifactError, DataError
from s2l_ray.log import display
from s2l_ray.stages.shards import ExamplesFile, Receipt, map_shards
from s2l_ray.tokens import NO_RESPONSE, opened_tokenizer, render, tokens_table

BATCH_ROWS = 4096


@dataclass(frozen=True)
class Inputs:
    """Examples and the tokenizer that reads them."""

    examples: Artifact
    tokenizer: Artifact
    overlap: Artifact | None = None
    """Where given, the training examples that it names are left out."""


@dataclass(frozen=True)
class TokenizeFile:
    """Tokenizes one file of examples."""

    inputs: Inputs
    config: TokensConfig
    output: StagedOutput

    def __call__(self, file: ExamplesFile) -> Receipt:
        """Write `tokens-*` and what was rejected."""
        rejected: list[pa.Table] = []
        note = {"tokens": 0, "response_tokens": 0, "truncated": 0, "dropped": 0}
        tables = self._tables(file, rejected, note)
        records = [self.output.write_parquet(f"tokens-{file.piece}.parquet", tables, schemas.TOKENS)]
        if rejected:
            path = f"scratch/rejected-{file.piece}.parquet"
            self.output.write_parquet(path, rejected, schemas.REJECTED)
        return records, {**note, "rejected": sum(t.num_rows for t in rejected)}

    def _tables(self, file: ExamplesFile, rejected: list[pa.Table], note: dict[str, int]) -> Iterator[pa.Table]:
        tokenizer = opened_tokenizer(self.inputs.tokenizer)
        examples = self.inputs.examples.read_rows(
            file.record, columns=["example_id", "source", "input_file", "input_row", "turns"]
        )
        if self.inputs.overlap is not None:
            like = self.inputs.overlap.read_table(f"training-{file.piece}.parquet", ["example_id"])
            is_like = pc.is_in(examples.column("example_id"), value_set=like.column(0).combine_chunks())
            note["dropped"] = like.num_rows
            examples = examples.filter(pc.invert(is_like))
        for start in range(0, max(1, examples.num_rows), BATCH_ROWS):
            part = examples.slice(start, BATCH_ROWS)
            rendered = [
                render([(turn["role"], turn["content"]) for turn in turns], self.config.template)
                for turns in part.column("turns").to_pylist()
            ]
            tokenized = tokenizer.tokenize(rendered, self.config.max_tokens) if rendered else []
            table = tokens_table(part.column("example_id").to_pylist(), part.column("source").to_pylist(), tokenized)
            kept = pc.greater(table.column("num_response_tokens"), 0)
            if not pc.all(kept, min_count=0).as_py():
                lost = part.filter(pc.invert(kept)).select(["input_file", "input_row"])
                reason = pa.array([NO_RESPONSE] * lost.num_rows, pa.string())
                rejected.append(lost.append_column("reason", reason).cast(schemas.REJECTED))
            table = table.filter(kept)
            note["tokens"] += sum(len(t.input_ids) for t in tokenized)
            note["response_tokens"] += int(pc.sum(table.column("num_response_tokens")).as_py() or 0)
            note["truncated"] += int(pc.sum(table.column("truncated")).as_py() or 0)
            yield table


def tokenize_examples(
    inputs: Inputs, config: TokensConfig, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Tokenize all examples and account for every row.

    Raises:
        DataError: no row has a response token within `max_tokens`.
    """
    files = [ExamplesFile(record) for record in inputs.examples.files("examples-")]
    work = TokenizeFile(inputs, config, output)
    receipts = map_shards(work, files, output, resources.tokenize_examples, label="tokenize examples")
    parts = [
        output.read_parquet(f"scratch/rejected-{file.piece}.parquet")
        for file, (_, note) in zip(files, receipts, strict=True)
        if note["rejected"]
    ]
    records = [record for written, _ in receipts for record in written]
    rows_in = sum(file.rows for file in files)
    rows_kept = sum(record.rows or 0 for record in records)
    rows_rejected = sum(table.num_rows for table in parts)
    rows_dropped = sum(note["dropped"] for _, note in receipts)
    if rows_in != rows_kept + rows_rejected + rows_dropped:
        raise ArtifactError(
            f"{rows_in} examples in, but {rows_kept} tokenized + {rows_rejected} rejected + {rows_dropped} dropped. A "
            "row was lost; this is a fault of the program, please report it."
        )
    if rows_kept == 0 and rows_dropped:
        raise DataError(
            f"no example is left: {rows_dropped} of {rows_in} are like held-out ones, and {rows_rejected} have no "
            "response token. Mend the data, or set examples.decontaminate: report."
        )
    if rows_kept == 0:
        raise DataError(
            f"none of {rows_in} examples has a response token within tokens.max_tokens = {config.max_tokens}. Raise it."
        )
    if rows_rejected:
        display.warn(f"{rows_rejected} of {rows_in} examples have no response token within {config.max_tokens} tokens")
    records.append(output.write_parquet("rejected.parquet", parts, schemas.REJECTED))
    totals = {name: sum(note[name] for _, note in receipts) for name in ("tokens", "response_tokens", "truncated")}
    counts = {"rows_in": rows_in, "rows_kept": rows_kept, "rows_rejected": rows_rejected, "rows_dropped": rows_dropped}
    return StageResult(records, counts | totals)
