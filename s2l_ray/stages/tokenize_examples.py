"""`examples` + `tokenizer` -> `tokens`: `tokens-*.parquet` beside each examples file, `rejected.parquet`.

A row none of whose response tokens survives the cut at `max_tokens` is rejected and counted: a loss over nothing is
no loss. A row that the chat template refuses is a bad row like any other. Every other row stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact, FileRecord, StageResult
from s2l_ray.chat_template import Chat, UnusableChatError, opened_chat_template
from s2l_ray.config import ResourcesConfig
from s2l_ray.errors import ArtifactError, DataError
from s2l_ray.examples import RejectedRow, bad_row_error, turn_pairs
from s2l_ray.log import display
from s2l_ray.needs import check_rejected
from s2l_ray.prompts import with_instruction
from s2l_ray.stage_settings import TokenizeSettings
from s2l_ray.staged_output import StagedOutput
from s2l_ray.stages.shards import ExamplesFile, Receipt, map_shards
from s2l_ray.tokens import NO_RESPONSE, NOTHING, Segment, TokenizedExample, opened_tokenizer, render, tokens_table

COLUMNS = ["example_id", "source", "input_file", "input_row", "turns"]


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
    config: TokenizeSettings
    output: StagedOutput

    def __call__(self, file: ExamplesFile) -> Receipt:
        """Write `tokens-*` and what was rejected."""
        rejected: list[pa.Table] = []
        note = {"tokens": 0, "response_tokens": 0, "truncated": 0, "dropped": 0, "refused": 0}
        tables = self._tables(file, rejected, note)
        records = [self.output.write_parquet(f"tokens-{file.piece}.parquet", tables, schemas.TOKENS)]
        if rejected:
            path = f"scratch/rejected-{file.piece}.parquet"
            self.output.write_parquet(path, rejected, schemas.REJECTED)
        return records, {**note, "rejected": sum(t.num_rows for t in rejected)}

    def _tables(self, file: ExamplesFile, rejected: list[pa.Table], note: dict[str, int]) -> Iterator[pa.Table]:
        like = None
        if self.inputs.overlap is not None:
            named = self.inputs.overlap.read_table(f"training-{file.piece}.parquet", ["example_id"])
            like, note["dropped"] = named.column(0).combine_chunks(), named.num_rows
        # The row groups are small in characters too, whatever rows look like, and so is what their tokens take.
        for group in self.inputs.examples.read_groups(file.record, COLUMNS):
            part = group if like is None else group.filter(pc.invert(pc.is_in(group.column("example_id"), like)))
            tokenized, reasons = self._tokenize(part)
            table = tokens_table(part.column("example_id").to_pylist(), part.column("source").to_pylist(), tokenized)
            kept = pc.greater(table.column("num_response_tokens"), 0)
            if not pc.all(kept, min_count=0).as_py():
                lost = part.select(["input_file", "input_row"]).append_column("reason", pa.array(reasons, pa.string()))
                rejected.append(lost.filter(pc.invert(kept)).cast(schemas.REJECTED))
                note["refused"] += sum(reason != NO_RESPONSE for reason in reasons)
            table = table.filter(kept)
            note["tokens"] += sum(len(t.input_ids) for t in tokenized)
            note["response_tokens"] += int(pc.sum(table.column("num_response_tokens")).as_py() or 0)
            note["truncated"] += int(pc.sum(table.column("truncated")).as_py() or 0)
            yield table

    def _tokenize(self, part: pa.Table) -> tuple[list[TokenizedExample], list[str]]:
        """Return every example tokenized, and why, should it have no response token."""
        tokenizer = opened_tokenizer(self.inputs.tokenizer)
        conversations = [with_instruction(turns, self.config.prompt) for turns in turn_pairs(part.column("turns"))]
        reasons = [NO_RESPONSE] * len(conversations)
        laid_out: dict[int, list[Segment]] = {}
        chats: dict[int, Chat] = {}
        for row, turns in enumerate(conversations):
            if self.config.template != "chat":
                laid_out[row] = render(turns, self.config.template)
            elif turns[0][0] == "text":
                laid_out[row] = render(turns, "plain")
            else:
                try:
                    chats[row] = opened_chat_template(self.inputs.tokenizer).render(turns)
                except UnusableChatError as error:
                    reasons[row] = f"chat_template: {error}"
                    self._refuse(part, row, reasons[row])
        max_tokens = self.config.max_tokens
        tokenized = dict(zip(laid_out, tokenizer.tokenize(list(laid_out.values()), max_tokens), strict=True))
        tokenized |= zip(chats, tokenizer.tokenize_chats(list(chats.values()), max_tokens), strict=True)
        return [tokenized.get(row, NOTHING) for row in range(len(conversations))], reasons

    def _refuse(self, part: pa.Table, row: int, reason: str) -> None:
        if self.config.examples.on_bad_row == "error":
            file, number = (part.column(name)[row].as_py() for name in ("input_file", "input_row"))
            raise bad_row_error(RejectedRow(file, number, reason))


def tokenize_examples(
    inputs: Inputs, config: TokenizeSettings, resources: ResourcesConfig, output: StagedOutput, *, seed: int
) -> StageResult:
    """Tokenize all examples and account for every row.

    Raises:
        DataError: the chat template refuses a row where none may be bad, or too many; no row has a response token
            within `max_tokens`.
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
    summary = _account(config, sum(file.rows for file in files), records, receipts)
    records.append(output.write_parquet("rejected.parquet", parts, schemas.REJECTED))
    return StageResult(records, summary)


def _account(
    config: TokenizeSettings, rows_in: int, records: list[FileRecord], receipts: list[Receipt]
) -> dict[str, int]:
    names = ("rejected", "refused", "dropped", "tokens", "response_tokens", "truncated")
    total = {name: sum(note[name] for _, note in receipts) for name in names}
    rows_kept = sum(record.rows or 0 for record in records)
    rejected, dropped, refused = total["rejected"], total["dropped"], total["refused"]
    if rows_in != rows_kept + rejected + dropped:
        raise ArtifactError(
            f"{rows_in} examples in, but {rows_kept} tokenized + {rejected} rejected + {dropped} dropped. A row was "
            "lost; this is a fault of the program, please report it."
        )
    check_rejected(config.examples, refused, rows_in)
    if rows_kept == 0 and dropped:
        raise DataError(
            f"no example is left: {dropped} of {rows_in} are like held-out ones, and {rejected} have no response "
            "token. Mend the data, or set examples.decontaminate: report."
        )
    if rows_kept == 0:
        raise DataError(
            f"none of {rows_in} examples has a response token within tokens.max_tokens = {config.max_tokens}. Raise it."
        )
    if rejected > refused:
        lost = rejected - refused
        display.warn(
            f"{lost} of {rows_in} examples have no response token within tokens.max_tokens = {config.max_tokens} and "
            "are left out; raise it to keep them"
        )
    return {
        "rows_in": rows_in,
        "rows_kept": rows_kept,
        "rows_rejected": rejected,
        "rows_refused": refused,
        "rows_dropped": dropped,
        "tokens": total["tokens"],
        "response_tokens": total["response_tokens"],
        "truncated": total["truncated"],
    }
