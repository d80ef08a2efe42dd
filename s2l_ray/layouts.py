"""The layout of the rows: which columns hold the texts of an example, and what the data calls them.

The layouts that are known, by the columns that they need, and in brackets those that they may have:

    alpaca             instruction, output [input, system, history: a list of (question, answer)]
    prompt_completion  prompt, completion [system]
    question_answer    question, answer [system]
    messages           messages: a list of {role, content} or {from, value} [system, tools]
    sharegpt           conversations: the same
    text               text, all of which is learned; only where no other layout fits

Beside them stand the layouts of `evaluation_sets`, by the set's name. `auto` takes one only where none of the above
fits, and only those that their columns tell apart.

Any may have an `id` and the labels `source`, `skill`, `is_wrong`.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.evaluation_sets import SETS, SetName
from s2l_ray.formats.row import BadRow, Row
from s2l_ray.input_files import Columns, InputFile, listed, shown
from s2l_ray.raw_rows import read_rows

GeneralName = Literal["alpaca", "prompt_completion", "messages", "sharegpt", "question_answer", "text"]
LayoutName = Literal[GeneralName, SetName]

RESERVED = frozenset({"example_id", "content_hash", "input_file", "input_row"})
"""Columns that the data may not have: ours of the same name would hide them."""

MAX_PEEKED_ROWS = 64
"""Usable rows that `detect_layout` looks at."""

REQUIRED: Mapping[LayoutName, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "question_answer": ("question", "answer"),
    "text": ("text",),
    **{name: SETS[name].required for name in get_args(SetName)},
}
OPTIONAL: Mapping[LayoutName, tuple[str, ...]] = {
    "alpaca": ("input", "system", "history"),
    "prompt_completion": ("system",),
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "question_answer": ("system",),
    "text": (),
    **{name: SETS[name].optional for name in get_args(SetName)},
}
LABELS = ("source", "skill", "is_wrong")
_TEXTS = tuple(dict.fromkeys(itertools.chain(*REQUIRED.values(), *OPTIONAL.values())))
_OUR_NAMES = (*_TEXTS, "id", *LABELS)


@dataclass(frozen=True)
class Layout:
    """How a row is read: which columns it has to have, and what they are called in the data.

    Attributes:
        name: the layout.
        columns: our name -> the data's column. `id` is among them only where the data has ids, and nothing that is
            not to be read.
    """

    name: LayoutName
    columns: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"name": self.name, "columns": dict(self.columns)}

    def value_in(self, row: Row, our: str) -> Any:
        """Return what a row holds under a name of ours; None where it holds nothing, or it is not to be read."""
        return row.get(self.columns[our]) if our in self.columns else None

    def without_ids(self) -> "Layout":
        """Return the same, without a column of ids."""
        return Layout(self.name, {our: column for our, column in self.columns.items() if our != "id"})


def detect_layouts(
    files: Sequence[InputFile], layout: str, columns: Columns, *, key: str, mapping: str = ""
) -> dict[str, Layout]:
    """Settle how the rows of every file are read, for each entry of a mixture by itself.

    An `id` column that nobody mapped is used only where every entry has one.

    Args:
        files: from `find_inputs`.
        layout: a layout, or `auto`; of the entries that do not say their own.
        columns: our name -> the data's column, likewise.
        key: the config path of the input, e.g. `examples.path`, for messages.
        mapping: what `columns` are given by, for messages; the config's key unless given.

    Returns:
        Name of a file -> its layout.

    Raises:
        ConfigError, DataError: as `detect_layout`.
    """
    entries: dict[str, list[InputFile]] = {}
    for file in files:
        entries.setdefault(repr((file.entry, file.source, file.layout, file.columns)), []).append(file)
    mapping = mapping or (f"{_section(key)}.columns:" if len(entries) == 1 else f"{key}[].columns:")
    found: list[tuple[list[InputFile], Columns, Layout]] = []
    for group in entries.values():
        own = columns if group[0].columns is None else group[0].columns
        found.append((group, own, detect_layout(group, group[0].layout or layout, own, key=key, mapping=mapping)))
    all_have_ids = all("id" in each.columns for _, _, each in found)
    return {
        file.name: each if all_have_ids or "id" in own else each.without_ids()
        for group, own, each in found
        for file in group
    }


def distinct(layouts: Mapping[str, Layout]) -> tuple[Layout, ...]:
    """Return the layouts that `detect_layouts` found, each once."""
    return tuple({repr(layout): layout for layout in layouts.values()}.values())


def detect_layout(files: Sequence[InputFile], layout: str, columns: Columns, *, key: str, mapping: str = "") -> Layout:
    """Settle layout and columns of one input by the first usable rows of the first of its files that has any.

    An `id` column is used where it is mapped, or where there is one.

    Args:
        files: from `find_inputs`.
        layout: a layout, or `auto`.
        columns: our name -> the data's column; what is not named is called the same, and None is not there.
        key: the config path of the input, e.g. `examples.path`, for messages.
        mapping: what `columns` are given by, for messages; the config's key unless given.

    Raises:
        ConfigError: `columns` has a name that is not ours or does not go with the layout.
        DataError: no layout or more than one fits, a mapped column is missing, a column has a name of ours, or
            no row is usable.
    """
    mapping = mapping or f"{_section(key)}.columns:"
    candidates = _candidates(layout, columns, mapping)
    file, found = _peek(files, key)
    check_reserved(file, found)
    name = _choose(candidates, columns, file, found, mapping)
    wanted = (*REQUIRED[name], *OPTIONAL[name], *LABELS, *(["id"] if "id" in columns or "id" in found else []))
    ours = {our: column for our in wanted if (column := columns.get(our, our)) is not None}
    needed = [our for our in ours if our in REQUIRED[name] or our in columns]
    check_columns(file, found, {our: ours[our] for our in needed}, mapping)
    return Layout(name, ours)


def _section(key: str) -> str:
    return key.rpartition(".")[0] or key


def _candidates(layout: str, columns: Columns, mapping: str) -> tuple[LayoutName, ...]:
    """Return the layouts that the config leaves open."""
    for our in columns:
        if our not in _OUR_NAMES:
            near = difflib.get_close_matches(our, _OUR_NAMES, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ConfigError(
                f"{mapping} `{shown(our)}` is no name of ours; {hint}It maps our name to the data's "
                f"column; ours are {listed(_OUR_NAMES)}."
            )
    names: tuple[LayoutName, ...] = get_args(LayoutName)
    if layout != "auto" and layout not in names:
        raise ConfigError(
            f"{mapping.removesuffix('columns:')}format: found {layout!r}, expected auto, {', '.join(names)}."
        )
    mapped = _mapped_texts(columns)
    absent = {our for our, column in columns.items() if column is None}
    open_names = get_args(GeneralName) if layout == "auto" else [name for name in names if name == layout]
    if layout != "auto" and (needed := absent.intersection(REQUIRED[open_names[0]])):
        raise ConfigError(f"{mapping} {listed(sorted(needed))} is null, but layout {layout} needs it. Name its column.")
    fitting = tuple(name for name in open_names if mapped <= _texts(name) and absent.isdisjoint(REQUIRED[name]))
    if not fitting:
        wanted = (
            f"layout {layout} has {listed(sorted(_texts(open_names[0])))}" if layout != "auto" else "no layout has all"
        )
        raise ConfigError(f"{mapping} {listed(sorted(mapped))} are mapped, but {wanted}. Map one layout's names.")
    return fitting


def _mapped_texts(columns: Columns) -> set[str]:
    return {our for our, column in columns.items() if column is not None and our not in ("id", *LABELS)}


def _texts(name: LayoutName) -> set[str]:
    return {*REQUIRED[name], *OPTIONAL[name]}


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
    candidates: Sequence[LayoutName],
    columns: Columns,
    file: InputFile,
    found: Sequence[str],
    mapping: str,
) -> LayoutName:
    if len(candidates) == 1:
        return candidates[0]
    fitting = [name for name in candidates if all(columns.get(our, our) in found for our in REQUIRED[name])]
    if len(fitting) > 1:  # many data sets carry the whole example as `text` beside its parts
        fitting = [name for name in fitting if name != "text"]
    if len(fitting) == 1:
        return fitting[0]
    told: list[LayoutName] = [name for name in get_args(SetName) if _tells(name, columns, found)]
    if not fitting and len(told) == 1:
        return told[0]
    expected = " or ".join(" + ".join(REQUIRED[name]) for name in fitting or candidates)
    if fitting:
        raise DataError(
            f"{shown(file.name)}: the columns {listed(found)} fit several layouts: {expected}. Say which to use by "
            f"mapping it, e.g. `{mapping} {{{', '.join(f'{our}: {our}' for our in REQUIRED[fitting[0]])}}}`."
        )
    raise DataError(
        f"{shown(file.name)}: found the columns {listed(found)}, expected {expected}. Map them, e.g. "
        f"`{mapping} {{instruction: task, output: solution}}`, or name the evaluation set that they are of, e.g. "
        "`{path: ..., format: numglue}`."
    )


def _tells(name: SetName, columns: Columns, found: Sequence[str]) -> bool:
    """Return whether the columns are those of a set and of nothing else that is known."""
    told_by = SETS[name].told_by
    return bool(told_by) and not _mapped_texts(columns) and set(told_by) <= set(found)


def check_columns(file: InputFile, found: Sequence[str], needed: Mapping[str, str], mapping: str = "columns:") -> None:
    """Raise `DataError` where a needed column is not among those found.

    Args:
        file: the file they were found in.
        found: its columns.
        needed: our name -> the data's column.
        mapping: what columns are given by, for the message.
    """
    for our, column in needed.items():
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1, cutoff=0.3)
            hint = f"; the nearest is `{shown(near[0])}`" if near else ""
            raise DataError(
                f"{shown(file.name)}: column `{shown(column)}` is missing. Found {listed(found)}{hint}. Name the "
                f"data's column with `{mapping} {{{our}: ...}}`."
            )
