"""A first config for a user's own data: a look at its first rows, and a commented YAML that runs as it stands."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from s2l_ray.config import GPU_STAGES, ExamplesConfig, FormatName, InputPath
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.evaluation_sets import SETS
from s2l_ray.examples import Example, RejectedRow, read_examples
from s2l_ray.experiment import experiment_of, parse_sparse
from s2l_ray.input_files import Columns, InputFile, listed
from s2l_ray.inputs import find_inputs
from s2l_ray.layouts import REQUIRED, Layout, detect_layouts, distinct
from s2l_ray.strict_yaml import parse_yaml
from s2l_ray.turns import LEARNED

DATA = "examples.path"
OPTION = "--columns"
"""Where a newcomer says what the data calls its columns."""
SAMPLE_ROWS = 20_000
"""Rows that are looked at, the first of every file alike."""
CHARACTERS_PER_TOKEN = 3.5
"""Of English text with today's tokenizers; only a first guess at `tokens.max_tokens`."""
N_CLUSTERS = 100
ROWS_PER_CLUSTER = 10
SMALL = {"proxy": (64, 2, "2.0e-3"), "target": (128, 4, "1.0e-3")}
"""Models that two cores can train: width, layers, learning rate."""


@dataclass(frozen=True)
class Look:
    """What the first rows say.

    Attributes:
        files: the input.
        entries: the inputs; of a mixture each with the names of columns that it takes.
        columns: our name -> the data's column, of a single input.
        layouts: how the rows of each file are read.
        examples: the usable rows among those looked at.
        rejected: the others.
        is_all: whether these are all the rows there are.
    """

    entries: tuple[InputPath, ...]
    columns: Columns
    files: tuple[InputFile, ...]
    layouts: Mapping[str, Layout]
    examples: tuple[Example, ...]
    rejected: tuple[RejectedRow, ...]
    is_all: bool

    @property
    def sources(self) -> Counter[str]:
        """Rows per source."""
        return Counter(example.source for example in self.examples if example.source is not None)

    @property
    def distinct_layouts(self) -> tuple[Layout, ...]:
        """The layouts, each once."""
        return distinct(self.layouts)

    @property
    def characters(self) -> list[int]:
        """Length of every example, ascending."""
        return sorted(sum(len(turn.content) for turn in example.turns) for example in self.examples)

    @property
    def max_tokens(self) -> int:
        """A limit that about 98 % of the examples are below, between 64 and 2,048."""
        length = self.characters[min(len(self.examples) - 1, int(0.98 * len(self.examples)))]
        return min(2048, 64 * max(1, math.ceil(length / CHARACTERS_PER_TOKEN / 64)))


def look_at(paths: Sequence[str], columns: Columns | None = None, layout: FormatName | None = None) -> Look:
    """Read the first rows of the data.

    Args:
        paths: what `examples.path` takes; several are a mixture.
        columns: our name -> the data's column; of a mixture, for those inputs that cannot be read without.
        layout: how the rows are laid out; of a mixture, where their columns are those of the layout, or of none.

    Raises:
        ConfigError, DataError: the data cannot be read, or no row of those looked at is usable.
    """
    columns = columns or {}
    if len(paths) == 1:
        entries = [InputPath(path=paths[0], format=layout)]
    else:
        entries = [_entry(path, columns, layout) for path in paths]
    is_plain = len(paths) == 1 and layout is None
    files = find_inputs(paths[0] if is_plain else tuple(entries), key=DATA)
    layouts = detect_layouts(files, "auto", columns if len(paths) == 1 else {}, key=DATA, mapping=OPTION)
    share = max(1, SAMPLE_ROWS // len(files))
    items: list[Example | RejectedRow] = []
    is_all = True
    for file in files:
        rows = iter(read_examples(file, layouts[file.name]))
        items += islice(rows, share)
        is_all &= next(rows, None) is None
        if len(items) >= SAMPLE_ROWS:
            is_all &= file is files[-1]
            break
    examples = tuple(item for item in items if isinstance(item, Example))
    rejected = tuple(item for item in items if isinstance(item, RejectedRow))
    if not examples:
        raise DataError(f"none of the first {len(items)} rows is usable; the first: {rejected[0].reason}.")
    return Look(tuple(entries), columns, files, layouts, examples, rejected, is_all)


def _entry(path: str, columns: Columns, layout: FormatName | None) -> InputPath:
    """Return one input of a mixture: in the given layout where its columns say so or say nothing we know."""
    source = None if layout in SETS else _stem(path)
    given = InputPath(path=path, source=source, format=layout, columns=dict(columns) or None)
    if (
        layout is not None
        and layout != "auto"
        and REQUIRED[layout]
        and _fits(given.model_copy(update={"columns": None}))
    ):
        return given.model_copy(update={"columns": None})
    plain = InputPath(path=path, source=_stem(path))
    return plain if _fits(plain) else given


def _fits(entry: InputPath) -> bool:
    """Return whether the first rows of an input have the columns of its layout, or those of one that we know."""
    try:
        detect_layouts(find_inputs((entry,), key=DATA), "auto", {}, key=DATA, mapping=OPTION)
    except (ConfigError, DataError):
        return False
    return True


def _stem(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].partition(".")[0] or path


def first_config(look: Look, *, proxy: str | None, target: str | None) -> str:
    """Return a commented YAML for the data; it has been read back and is a config.

    Args:
        proxy: a pretrained model; a small one with random weights unless given.
        target: the same.
    """
    lines = [
        "# Which part of this data is worth fine-tuning on? A start, from a look at the data; change what you like.",
        "# What is not named here has its default: `s2l settings` lists all. `s2l plan` says what would run.",
        "seed: 0",
        *_examples_lines(look),
        *_tokens_lines(look, proxy, target),
        *_model_lines("proxy", proxy),
        "  checkpoints: 8                     # points of a row's trajectory",
        f"cluster: {{n_clusters: {_n_clusters(look)}}}",
        "select: {budget: 0.1}                # a fraction, a number of rows, or a text: 5k, 2M tokens",
        *_model_lines("target", target),
        "evaluate: {metrics: [loss]}          # on a held-out 5 %; `path: test.jsonl` names data of its own",
        "arms:                                # what is compared; `s2l sweep` repeats it over seeds",
        "  random: {select.method: random}",
        "  s2l: {select.method: paper}",
        *(_resources_lines() if proxy or target else ()),
    ]
    text = "\n".join(lines) + "\n"
    experiment_of(parse_sparse(parse_yaml(text, origin="the new config"), [], origin="the new config", name="new"))
    return text


def _n_clusters(look: Look) -> int:
    return max(1, min(N_CLUSTERS, len(look.examples) // ROWS_PER_CLUSTER)) if look.is_all else N_CLUSTERS


def _examples_lines(look: Look) -> list[str]:
    count = f"{'All' if look.is_all else 'The first'} {len(look.examples) + len(look.rejected):,} rows"
    files = "1 file" if len(look.files) == 1 else f"{len(look.files)} files"
    read = [
        ", by ".join([layout.name, *([listed([layout.columns[our] for our in needed])] if needed else [])])
        for layout, needed in ((layout, REQUIRED[layout.name]) for layout in look.distinct_layouts)
    ]
    lines = [f"# {count} of {files} were read: {'; '.join(map(_comment, read))}."]
    if look.sources:
        shares = ", ".join(f"{_comment(name)} {count}" for name, count in look.sources.most_common(5))
        lines.append(f"# Rows per source: {shares}{' and others' if len(look.sources) > 5 else ''}.")
    looked_for = {layout.columns["source"] for layout in look.distinct_layouts if "source" in layout.columns}
    if not look.sources and looked_for:
        (column,) = looked_for
        lines.append(f"# No column `{_comment(column)}`; name yours with `columns: {{source: ...}}`.")
    lines.append("examples:")
    if len(look.entries) == 1 and look.entries[0].format is None:
        lines.append(f"  path: {_quoted(look.entries[0].path)}")
    else:
        lines += ["  path:", *(f"    - {{{', '.join(_entry_parts(entry))}}}" for entry in look.entries)]
    if len(look.entries) == 1 and look.columns:
        lines.append(f"  columns: {_mapped(look.columns)}")
    if look.rejected:
        first = look.rejected[0]
        where = f"{first.input_file}:{first.input_row + 1}: {first.reason}"
        lines.append(f"  # {len(look.rejected)} bad rows among them, the first is {_comment(where)}")
        lines.append("  on_bad_row: reject                 # or mend them, and leave this at `error`")
        share = len(look.rejected) / (len(look.rejected) + len(look.examples))
        if share > ExamplesConfig.model_fields["max_rejected"].default:
            lines.append(
                f"  max_rejected: {math.ceil(150 * share) / 100:g}                 # {share:.1%} of these are bad"
            )
    return lines


def _entry_parts(entry: InputPath) -> list[str]:
    parts = [f"path: {_quoted(entry.path)}"]
    if entry.source is not None:
        parts.append(f"source: {_quoted(entry.source)}")
    if entry.format is not None:
        parts.append(f"format: {entry.format}")
    if entry.columns:
        parts.append(f"columns: {_mapped(entry.columns)}")
    return parts


def _tokens_lines(look: Look, proxy: str | None, target: str | None) -> list[str]:
    characters = look.characters
    lines = [
        f"# Half of the examples have up to {characters[len(characters) // 2]:,} characters, "
        f"the longest {characters[-1]:,}; what exceeds max_tokens is cut.",
        "tokens:",
        f"  max_tokens: {look.max_tokens}",
    ]
    is_chat = all(layout.name in ("messages", "sharegpt") for layout in look.distinct_layouts)
    if is_chat and target:
        lines.append("  template: chat                     # the tokenizer's own")
        if not proxy:
            lines.append("  proxy_template: alpaca             # a model from scratch has none")
    elif target and any(turn.role not in ("text", *LEARNED) for turn in look.examples[0].turns):
        lines.append("  template: alpaca                   # `chat` for a model that has a chat template")
    return lines


def _model_lines(key: str, model: str | None) -> list[str]:
    if model is not None:
        return [
            f"{key}:",
            f"  model: {_quoted(model)}",
            "  epochs: 3",
            "  learning_rate: 2.0e-5",
            "  global_batch_size: 128",
            "  micro_batch_size: 4                # raise it as far as the memory goes",
        ]
    width, layers, rate = SMALL[key]
    return [
        f"{key}:",
        "  # Random weights, for two cores; a Hugging Face id or a folder may stand here.",
        f"  model: {{hidden_size: {width}, num_hidden_layers: {layers}, num_attention_heads: 4}}",
        "  epochs: 2",
        f"  learning_rate: {rate}",
        "  global_batch_size: 64",
    ]


def _resources_lines() -> list[str]:
    return [
        "# Where there are GPUs, take the # away; `workers: 8` trains on eight of them.",
        "# resources:",
        *(f"#   {name}: {{gpus: 1}}" for name in GPU_STAGES),
    ]


def _mapped(columns: Columns) -> str:
    named = (f"{our}: {'null' if column is None else _quoted(column)}" for our, column in columns.items())
    return "{" + ", ".join(named) + "}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return " ".join(text.split())[:100]
