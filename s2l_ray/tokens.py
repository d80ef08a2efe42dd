"""From examples to token ids: tokenizers, templates, response spans, truncation.

The tokenizer of a stage is a folder with `tokenizer.json`, read by the `tokenizers` library alone, so that
tokenizing needs neither torch nor transformers. With the templates of this module prompt and response are encoded
apart: the border between them is exact. What a `ChatTemplate` wrote is encoded whole, as its model will meet it.
Either way, text in the data that looks like a special token stays text.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact
from s2l_ray.chat_template import Chat
from s2l_ray.errors import ConfigError
from s2l_ray.turns import LEARNED

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

PAD, EOS, UNK = "<|pad|>", "<|endoftext|>", "<|unknown|>"

ALPACA_PREAMBLE = {
    False: "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n",
    True: "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n",
}
"""The prompt of Stanford Alpaca, which the released S2L configs use; by whether the example has an input."""

_HEADINGS = {"user": "Instruction", "input": "Input", "tools": "Tools", "tool": "Tool"}
NO_RESPONSE = "no_response_tokens"


@dataclass(frozen=True)
class Segment:
    """A stretch of text that is either prompt or response."""

    text: str
    is_response: bool


def render(turns: Sequence[tuple[str, str]], template: Literal["alpaca", "plain"]) -> list[Segment]:
    """Lay out the turns of an example as text.

    Args:
        turns: (role, content) with the roles of `turns`.
        template: `alpaca`, or `plain`: prompt, then `Answer:`, then the response.
    """
    alpaca = template == "alpaca"
    if any(role == "text" for role, _ in turns):
        return [Segment(content, is_response=True) for _, content in turns]
    segments: list[Segment] = []
    prompt = ""
    if alpaca and not any(role == "system" for role, _ in turns):
        prompt = ALPACA_PREAMBLE[any(role == "input" for role, _ in turns)]
    for role, content in turns:
        if role in LEARNED:
            segments.append(Segment(prompt + ("### Response:" if alpaca else "Answer: "), is_response=False))
            segments.append(Segment(content, is_response=True))
            prompt = "\n\n" if alpaca else "\n"
        elif role == "system":
            prompt += f"{content}\n\n"
        else:
            prompt += f"### {_HEADINGS[role]}:\n{content}\n\n" if alpaca else f"{content}\n"
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


NOTHING = TokenizedExample([], [], [], truncated=False)
"""In place of an example that could not be laid out."""


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
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._take_as_text(True)
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

    @cached_property
    def _ends_are_free(self) -> bool:
        """Whether a text may be encoded in parts; some tokenizers put a space before whatever they are given."""
        whole, *parts = self._tokenizer.encode_batch(["\na", "\n", "a"], add_special_tokens=False)
        return bool(whole.ids == [token for part in parts for token in part.ids])

    def _take_as_text(self, as_text: bool) -> None:
        """Say whether the name of a special token is text, or that token."""
        self._tokenizer.encode_special_tokens = as_text

    def token_id(self, token: str) -> int:
        """Return the id of a token.

        Raises:
            ConfigError: the vocabulary has no such token.
        """
        found = self._id_of(token)
        if found is None:
            raise ConfigError(f"the tokenizer's chat template writes {token!r}, which its vocabulary lacks.")
        return found

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
        return _cut(input_ids, spans, max_tokens)

    def tokenize_chats(self, chats: Sequence[Chat], max_tokens: int) -> list[TokenizedExample]:
        """Encode conversations as their template wrote them.

        A token counts as part of an answer where it holds a character of it. What a model that generates would be
        given is encoded by itself, as it will be then.
        """
        cuts = [_parts(chat, self._ends_are_free) for chat in chats]
        encoded = {}
        for as_text in (False, True):
            parts = [part for cut in cuts for part, is_data in cut if is_data == as_text]
            self._take_as_text(as_text)
            encoded[as_text] = iter(self._tokenizer.encode_batch(parts, add_special_tokens=False))
        self._take_as_text(True)
        return [
            self._with_answers(chat, [(part, next(encoded[is_data])) for part, is_data in cut], max_tokens)
            for chat, cut in zip(chats, cuts, strict=True)
        ]

    def _with_answers(self, chat: Chat, parts: list[tuple[str, "Encoding"]], max_tokens: int) -> TokenizedExample:
        input_ids: list[int] = []
        begins: list[int] = []
        ends: list[int] = []
        offset = 0
        for text, encoding in parts:
            input_ids.extend(encoding.ids)
            begins.extend(offset + begin for begin, _ in encoding.offsets)
            ends.extend(offset + end for _, end in encoding.offsets)
            offset += len(text)
        spans = [(max(bisect_right(ends, start), 1), bisect_left(begins, stop)) for start, stop in chat.answers]
        if not chat.ended:
            assert self.eos_id is not None
            input_ids.append(self.eos_id)
            spans[-1] = (spans[-1][0], len(input_ids))
        return _cut(input_ids, spans, max_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _cut(input_ids: list[int], spans: Sequence[tuple[int, int]], max_tokens: int) -> TokenizedExample:
    kept = [(start, min(stop, max_tokens)) for start, stop in spans if start < min(stop, max_tokens)]
    return TokenizedExample(
        input_ids=input_ids[:max_tokens],
        response_start=[start for start, _ in kept],
        response_stop=[stop for _, stop in kept],
        truncated=len(input_ids) > max_tokens,
    )


def _parts(chat: Chat, cut_before_answers: bool) -> list[tuple[str, bool]]:
    """Cut a conversation into what is read as it stands and names of special tokens that are data (True)."""
    data = dict(chat.data)
    borders = {0, len(chat.text), *(border for span in chat.data for border in span)}
    if cut_before_answers:
        borders.update(chat.invited)
    return [(chat.text[start:stop], start in data) for start, stop in pairwise(sorted(borders))]


@lru_cache(maxsize=2)
def opened_tokenizer(tokenizer: Artifact) -> ExampleTokenizer:
    """Open a tokenizer once per process."""
    with tokenizer.local_folder("") as folder:
        return ExampleTokenizer(folder)


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
