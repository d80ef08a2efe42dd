"""The layout of the rows: which columns hold the texts of an example, and what the data calls them.

The layouts that are known, by the columns that they need, and in brackets those that they may have:

    alpaca             instruction, output [input, system, history: a list of (question, answer)]
    prompt_completion  prompt, completion [system]
    question_answer    question, answer [system]
    messages           messages: a list of {role, content} or {from, value} [system, tools]
    sharegpt           conversations: the same
    text               text, all of which is learned; only where no other layout fits

Any may have an `id` and the labels `source`, `skill`, `is_wrong`.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.formats.row import BadRow
from s2l_ray.input_files import InputFile, listed, shown
from s2l_ray.raw_rows import read_rows

LayoutName = Literal["alpaca", "prompt_completion", "messages", "sharegpt", "question_answer", "text"]

RESERVED = frozenset({"example_id", "content_hash", "input_file", "input_row"})
"""Columns that the data may not have: ours of the same name would hide them."""

MAX_PEEKED_ROWS = 64
"""Usable rows that `detect_layout` looks at, per source."""

REQUIRED: Mapping[LayoutName, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "question_answer": ("question", "answer"),
    "text": ("text",),
}
OPTIONAL: Mapping[LayoutName, tuple[str, ...]] = {
    "alpaca": ("input", "system", "history"),
    "prompt_completion": ("system",),
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "question_answer": ("system",),
    "text": (),
}
LABELS = ("source", "skill", "is_wrong")
_TEXTS = tuple(dict.fromkeys(itertools.chain(*REQUIRED.values(), *OPTIONAL.values())))
_OUR_NAMES = (*_TEXTS, "id", *LABELS)


@dataclass(frozen=True)
class Layout:
    """How a row is read: which columns it has to have, and what they are called in the data.

    Attributes:
        name: the layout.
        columns: our name -> the data's column. `id` is among them only where the data has ids.
    """

    name: LayoutName
    columns: Mapping[str, str]


def detect_layout(files: Sequence[InputFile], layout: str, columns: Mapping[str, str], *, key: str) -> Layout:
    """Settle layout and columns by the first usable rows of the first file of every source.

    An `id` column is used where it is mapped, or where every source has a column `id`.

    Args:
        files: from `find_inputs`.
        layout: a layout, or `auto`.
        columns: our name -> the data's column; what is not named is called the same.
        key: the config path of the input, e.g. `examples.path`, for messages.

    Raises:
        ConfigError: `columns` has a name that is not ours or does not go with the layout.
        DataError: no layout or more than one fits, a mapped column is missing, a column has a name of ours, or
            no row is usable.
    """
    section = key.rpartition(".")[0] or key
    candidates = _candidates(layout, columns, section)
    peeked = [_peek(group, key) for group in _by_source(files)]
    for file, found in peeked:
        check_reserved(file, found)
    name = _choose(candidates, columns, *peeked[0], section)
    ours = {our: columns.get(our, our) for our in (*REQUIRED[name], *OPTIONAL[name], *LABELS)}
    if "id" in columns or all("id" in found for _, found in peeked):
        ours["id"] = columns.get("id", "id")
    for file, found in peeked:
        needed = [our for our in ours if our in REQUIRED[name] or our in columns]
        check_columns(file, found, {our: ours[our] for our in needed}, f"{section}.columns")
    return Layout(name, ours)


def _candidates(layout: str, columns: Mapping[str, str], section: str) -> tuple[LayoutName, ...]:
    """Return the layouts that the config leaves open."""
    for our in columns:
        if our not in _OUR_NAMES:
            near = difflib.get_close_matches(our, _OUR_NAMES, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ConfigError(
                f"{section}.columns: `{shown(our)}` is no name of ours; {hint}It maps our name to the data's "
                f"column; ours are {listed(_OUR_NAMES)}."
            )
    names: tuple[LayoutName, ...] = get_args(LayoutName)
    if layout != "auto" and layout not in names:
        raise ConfigError(f"{section}.format: found {layout!r}, expected auto, {', '.join(names)}.")
    mapped = {our for our in columns if our not in ("id", *LABELS)}
    open_names = [name for name in names if layout in ("auto", name)]
    fitting = tuple(name for name in open_names if mapped <= _texts(name))
    if not fitting:
        wanted = (
            f"layout {layout} has {listed(sorted(_texts(open_names[0])))}" if layout != "auto" else "no layout has all"
        )
        raise ConfigError(
            f"{section}.columns: {listed(sorted(mapped))} are mapped, but {wanted}. Map one layout's names."
        )
    return fitting


def _texts(name: LayoutName) -> set[str]:
    return {*REQUIRED[name], *OPTIONAL[name]}


def _by_source(files: Sequence[InputFile]) -> list[list[InputFile]]:
    groups: dict[str | None, list[InputFile]] = {}
    for file in files:
        groups.setdefault(file.source, []).append(file)
    return list(groups.values())


def _peek(files: Sequence[InputFile], key: str) -> tuple[InputFile, tuple[str, ...]]:
    """Return the first file that has a usable row, and the columns of its first ones."""
    bad: tuple[InputFile, int, BadRow] | None = None
    for file in files:
        found: dict[str, None] = {}
        usable = 0
        for number, row in read_rows(file):
            if isinstance(row, BadRow):
                bad = bad or (file, number, row)
                continue
            found |= dict.fromkeys(row)
            usable += 1
            if usable == MAX_PEEKED_ROWS:
                break
        if usable:
            return file, tuple(found)
    if bad:
        file, number, row = bad
        raise DataError(
            f"{shown(file.name)}:{number + 1}: {row.reason}. No row of {listed([f.name for f in files], 3)} is usable; "
            "expected one JSON object per row."
        )
    raise DataError(f"{key}: {listed([file.name for file in files], 3)}: no row found. Give files with rows.")


def check_reserved(file: InputFile, found: Iterable[str]) -> None:
    """Raise `DataError` where the data has a column of our name."""
    taken = sorted(RESERVED.intersection(found))
    if taken:
        raise DataError(f"{shown(file.name)}: the data has {listed(taken)}, a name that we give. Rename that column.")


def _choose(
    candidates: Sequence[LayoutName], columns: Mapping[str, str], file: InputFile, found: Sequence[str], section: str
) -> LayoutName:
    if len(candidates) == 1:
        return candidates[0]
    fitting = [name for name in candidates if all(columns.get(our, our) in found for our in REQUIRED[name])]
    if len(fitting) > 1:  # many data sets carry the whole example as `text` beside its parts
        fitting = [name for name in fitting if name != "text"]
    if len(fitting) == 1:
        return fitting[0]
    expected = " or ".join(" + ".join(REQUIRED[name]) for name in fitting or candidates)
    if fitting:
        raise DataError(
            f"{shown(file.name)}: the columns {listed(found)} fit several layouts: {expected}. Say which to use by "
            f"mapping it, e.g. `{section}.columns: {{{', '.join(f'{our}: {our}' for our in REQUIRED[fitting[0]])}}}`."
        )
    raise DataError(
        f"{shown(file.name)}: found the columns {listed(found)}, expected {expected}. Map them, e.g. "
        f"`{section}.columns: {{instruction: task, output: solution}}`."
    )


def check_columns(file: InputFile, found: Sequence[str], needed: Mapping[str, str], mapping: str = "columns") -> None:
    """Raise `DataError` where a needed column is not among those found.

    Args:
        file: the file they were found in.
        found: its columns.
        needed: our name -> the data's column.
        mapping: the config path of the mapping, for the message.
    """
    for our, column in needed.items():
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1, cutoff=0.3)
            hint = f"; the nearest is `{shown(near[0])}`" if near else ""
            raise DataError(
                f"{shown(file.name)}: column `{shown(column)}` is missing. Found {listed(found)}{hint}. Name the "
                f"data's column with `{mapping}: {{{our}: ...}}`."
            )
