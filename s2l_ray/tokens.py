"""From examples to token ids: tokenizers, templates, response spans, truncation, batches.

The tokenizer of a stage is a folder with `tokenizer.json`, read by the `tokenizers` library alone, so that
tokenizing needs neither torch nor transformers. Prompt and response are encoded apart: the border between them is
exact, and text in the data that looks like a special token stays text.
Legend: N examples, B batch, L tokens.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact
from s2l_ray.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, EOS, UNK = "<|pad|>", "<|endoftext|>", "<|unknown|>"

ALPACA_PREAMBLE = {
    False: "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n",
    True: "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n",
}
"""The prompt of Stanford Alpaca, which the released S2L configs use; by whether the example has an input."""

NO_RESPONSE = "no_response_tokens"


@dataclass(frozen=True)
class Segment:
    """A stretch of text that is either prompt or response."""

    text: str
    is_response: bool


def render(turns: Sequence[tuple[str, str]], template: Literal["alpaca", "plain"]) -> list[Segment]:
    """Lay out the turns of an example as text.

    Args:
        turns: (role, content) with roles system, user, input, assistant, tool.
        template: `alpaca`, or `plain`: prompt, then `Answer:`, then the response.
    """
    alpaca = template == "alpaca"
    segments: list[Segment] = []
    prompt = ""
    system = next((content for role, content in turns if role == "system"), None)
    if system is not None:
        prompt = f"{system}\n\n"
    elif alpaca:
        prompt = ALPACA_PREAMBLE[any(role == "input" for role, _ in turns)]
    for role, content in turns:
        if role == "assistant":
            segments.append(Segment(prompt + ("### Response:" if alpaca else "Answer: "), is_response=False))
            segments.append(Segment(content, is_response=True))
            prompt = "\n\n" if alpaca else "\n"
        elif role != "system":
            heading = {"user": "### Instruction:\n", "input": "### Input:\n", "tool": "### Tool:\n"}[role]
            prompt += f"{heading}{content}\n\n" if alpaca else f"{content}\n"
    return segments


def train_tokenizer(texts: Iterable[str], kind: Literal["byte_bpe", "word_level"], vocab_size: int) -> "Tokenizer":
    """Train a tokenizer on texts.

    Args:
        kind: `byte_bpe` (byte-level BPE, no unknown tokens) or `word_level` (split at white space).
        vocab_size: upper limit, special tokens included.

    Raises:
        ConfigError: `vocab_size` has no room for the bytes of `byte_bpe`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [PAD, EOS, UNK]
    if kind == "word_level":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        # The second split keeps a word that is spelt like a special token from sharing its id.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("<|", "isolated")]
        )
        trainer: Any = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        least = len(alphabet) + len(special)
        if vocab_size < least:
            raise ConfigError(
                f"tokens.vocab_size is {vocab_size}, but byte_bpe needs {least} for bytes and special tokens. Raise it."
            )
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: "Tokenizer", folder: Path, max_tokens: int) -> None:
    """Write a trained tokenizer as a folder that `AutoTokenizer.from_pretrained` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNK,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids with the half-open spans that the loss counts."""

    input_ids: list[int]
    response_start: list[int]
    response_stop: list[int]
    truncated: bool

    @property
    def num_response_tokens(self) -> int:
        """Tokens that the loss counts."""
        return sum(self.response_stop) - sum(self.response_start)


class ExampleTokenizer:
    """A tokenizer folder, opened: encodes examples and decodes answers."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        file = folder / "tokenizer.json"
        if not file.exists():
            raise ConfigError(
                f"{folder} has no tokenizer.json; expected a tokenizer that the `tokenizers` library can load. "
                "Convert it with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`."
            )
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings_file = folder / "tokenizer_config.json"
        settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file.exists() else {}
        self.eos_id = self._id_of(settings.get("eos_token"))
        pad = self._id_of(settings.get("pad_token"))
        self.pad_id = pad if pad is not None else self.eos_id
        self._beginning = self._beginning_ids()
        if self.eos_id is None or self.pad_id is None:
            raise ConfigError(
                f"the tokenizer in {folder} names no end-of-sequence token, so a model could not learn where an answer "
                "ends. Set `eos_token` in its tokenizer_config.json."
            )

    def _id_of(self, token: str | dict[str, str] | None) -> int | None:
        text = token["content"] if isinstance(token, dict) else token
        found = None if text is None else self._tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def _beginning_ids(self) -> list[int]:
        # A post-processor may also add tokens at the end, which here would part the prompt from its response.
        encoded = self._tokenizer.encode("a")
        added = zip(encoded.ids, encoded.special_tokens_mask, strict=True)
        return [token for token, _ in takewhile(lambda pair: pair[1] == 1, added)]

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def tokenize(self, rendered: Sequence[list[Segment]], max_tokens: int) -> list[TokenizedExample]:
        """Encode examples; an end-of-sequence token follows every response and counts as part of it.

        What the tokenizer puts before a text, such as a beginning-of-sequence token, stands once at the start.
        """
        encoded = iter(
            self._tokenizer.encode_batch_fast(
                [segment.text for segments in rendered for segment in segments], add_special_tokens=False
            )
        )
        return [self._assemble(segments, [next(encoded).ids for _ in segments], max_tokens) for segments in rendered]

    def _assemble(self, segments: list[Segment], ids: list[list[int]], max_tokens: int) -> TokenizedExample:
        input_ids = list(self._beginning)
        spans: list[tuple[int, int]] = []
        for segment, part in zip(segments, ids, strict=True):
            start = len(input_ids)
            input_ids.extend(part)
            if segment.is_response:
                assert self.eos_id is not None
                input_ids.append(self.eos_id)
                # The first token of all has nothing before it that could predict it.
                spans.append((max(start, 1), len(input_ids)))
        kept = [(start, min(stop, max_tokens)) for start, stop in spans if start < min(stop, max_tokens)]
        return TokenizedExample(
            input_ids=input_ids[:max_tokens],
            response_start=[start for start, _ in kept],
            response_stop=[stop for _, stop in kept],
            truncated=len(input_ids) > max_tokens,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


@lru_cache(maxsize=2)
def opened_tokenizer(tokenizer: Artifact) -> ExampleTokenizer:
    """Open a tokenizer once per process."""
    with tokenizer.local_folder("") as folder:
        return ExampleTokenizer(folder)


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids and what the loss counts.

    Attributes:
        input_ids_BL: int64 [B, L].
        response_BL: bool [B, L], True where a token belongs to a response.
    """

    input_ids_BL: NDArray[np.int64]
    response_BL: NDArray[np.bool_]


@dataclass(frozen=True)
class TokenRows:
    """Tokenized examples in flat arrays: 4 bytes per token and 40 per example.

    Attributes:
        example_id_N: int64 [N].
        token: int32, the token ids of all examples behind one another.
        token_offset: int64 [N + 1], where each example's tokens begin.
        span: int32 [S, 2], the response spans of all examples.
        span_offset: int64 [N + 1], where each example's spans begin.
        num_response_tokens_N: int32 [N].
    """

    example_id_N: NDArray[np.int64]
    token: NDArray[np.int32]
    token_offset: NDArray[np.int64]
    span: NDArray[np.int32]
    span_offset: NDArray[np.int64]
    num_response_tokens_N: NDArray[np.int32]

    COLUMNS = ("example_id", "input_ids", "response_start", "response_stop", "num_response_tokens")

    @classmethod
    def from_table(cls, table: pa.Table) -> "TokenRows":
        """Take the columns of a `schemas.TOKENS` table."""
        ids = _flat(table.column("input_ids"))
        starts, stops = _flat(table.column("response_start")), _flat(table.column("response_stop"))
        return cls(
            example_id_N=table.column("example_id").to_numpy(),
            token=ids[0],
            token_offset=ids[1],
            span=np.stack([starts[0], stops[0]], axis=1),
            span_offset=starts[1],
            num_response_tokens_N=table.column("num_response_tokens").to_numpy(),
        )

    def __len__(self) -> int:
        """Return N."""
        return len(self.example_id_N)

    @property
    def length_N(self) -> NDArray[np.int64]:
        """Tokens per example, int64 [N]."""
        return np.diff(self.token_offset)

    def take(self, example_id_M: NDArray[np.int64]) -> "TokenRows":
        """Return the rows of some examples, in the order of the ids.

        Raises:
            ArtifactError: an id is not among the rows.
        """
        if np.array_equal(example_id_M, self.example_id_N):
            return self
        missing = example_id_M[~np.isin(example_id_M, self.example_id_N)]
        if len(missing):
            raise ArtifactError(f"{len(missing)} examples have no tokens, the first is {missing[0]}. Run `s2l gc`.")
        order = np.argsort(self.example_id_N, kind="stable")
        position_M = order[np.searchsorted(self.example_id_N, example_id_M, sorter=order)]
        token, token_offset = _gather(self.token, self.token_offset, position_M)
        span, span_offset = _gather(self.span, self.span_offset, position_M)
        return TokenRows(example_id_M, token, token_offset, span, span_offset, self.num_response_tokens_N[position_M])

    def batch(self, positions: NDArray[np.int64] | Sequence[int], pad_id: int) -> Batch:
        """Return the examples at some positions as one right-padded batch."""
        longest = max(int(self.token_offset[p + 1] - self.token_offset[p]) for p in positions)
        input_ids_BL = np.full((len(positions), longest), pad_id, dtype=np.int64)
        response_BL = np.zeros((len(positions), longest), dtype=np.bool_)
        for row, p in enumerate(positions):
            ids = self.token[self.token_offset[p] : self.token_offset[p + 1]]
            input_ids_BL[row, : len(ids)] = ids
            for start, stop in self.span[self.span_offset[p] : self.span_offset[p + 1]]:
                response_BL[row, start:stop] = True
        return Batch(input_ids_BL, response_BL)

    def length_batches(self, batch_tokens: int) -> Iterator[NDArray[np.int64]]:
        """Yield positions in batches of similar length: at most `batch_tokens` padded tokens, or one example.

        A pure function of the rows, longest first, so that the largest batch meets the memory limit at once.
        """
        order = np.lexsort((self.example_id_N, -self.length_N))
        start = 0
        while start < len(order):
            size = max(1, batch_tokens // int(self.length_N[order[start]]))
            yield order[start : start + size]
            start += size


def tokens_table(
    example_ids: Sequence[int], sources: Sequence[str | None], tokenized: Sequence[TokenizedExample]
) -> pa.Table:
    """Return tokenized examples as a `schemas.TOKENS` table."""
    return pa.table(
        {
            "example_id": list(example_ids),
            "source": list(sources),
            "input_ids": [t.input_ids for t in tokenized],
            "response_start": [t.response_start for t in tokenized],
            "response_stop": [t.response_stop for t in tokenized],
            "num_response_tokens": [t.num_response_tokens for t in tokenized],
            "truncated": [t.truncated for t in tokenized],
        },
        schema=schemas.TOKENS,
    )


def _gather(
    values: NDArray[np.int32], offset: NDArray[np.int64], position_M: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    length_M = offset[position_M + 1] - offset[position_M]
    new_offset = np.concatenate([[0], np.cumsum(length_M)])
    index = np.repeat(offset[position_M] - new_offset[:-1], length_M) + np.arange(new_offset[-1])
    return values[index], new_offset


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    # Chunk by chunk: the 32-bit offsets of one Arrow array end at 2^31 tokens.
    values, lengths = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
    for array in column.chunks:
        offsets = array.offsets.to_numpy()
        values.append(array.values.to_numpy()[offsets[0] : offsets[-1]])
        lengths.append(np.diff(offsets))
    return np.concatenate(values), np.cumsum(np.concatenate(lengths), dtype=np.int64)
