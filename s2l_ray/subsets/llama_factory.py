"""`dataset_info.json`: how LLaMA-Factory finds the rows of an export, and what it calls their columns.

Source: the README of its folder `data`, for the keys; where `columns` or `tags` stand, what they leave out counts as
absent there, so everything that the rows have is named.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from s2l_ray.formats.row import BadRow
from s2l_ray.layouts import REQUIRED, Layout, LayoutName
from s2l_ray.raw_rows import read_rows
from s2l_ray.subsets.data_files import FOLDER, DataFile, Group

DATASET_INFO = "dataset_info.json"
_READABLE = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
_COLUMNS: Mapping[LayoutName, Mapping[str, str]] = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    },
    "prompt_completion": {"prompt": "prompt", "response": "completion", "system": "system"},
    "question_answer": {"prompt": "question", "response": "answer", "system": "system"},
    "messages": {"messages": "messages", "system": "system", "tools": "tools"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "text": {"prompt": "text"},
    "gsm8k": {"prompt": "question", "response": "answer"},
    "math": {"prompt": "problem", "response": "solution"},
}
"""Its name -> ours. The other evaluation sets have prompts of several columns, or answers that are no text."""
_CONTENT_TAGS = {"from": "value", "role": "content"}
"""How a message names who speaks -> how it names what is said."""
_ROLES = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function_call"),
    "system_tag": ("system", "system"),
}
"""Its tag -> its own word for that role, and that of OpenAI's messages."""


def dataset_info(groups: Sequence[Group], layouts: Sequence[Layout], repository: str | None) -> dict[str, Any]:
    """Return the entries for the files of an export; none for what LLaMA-Factory cannot read.

    Args:
        groups: the files.
        layouts: those that the rows were read by; a group has the first one whose columns it has.
        repository: the data set of the hub that holds the export and names these groups; None for a folder, of which
            only files with endings that LLaMA-Factory knows are readable.
    """
    entries: dict[str, Any] = {}
    for group in groups:
        described = next((_description(group, layout) for layout in layouts if _fits(group, layout)), None)
        if described is None:
            continue
        if repository is not None:
            part = {} if group.name == "default" else {"subset": group.name}
            name = "_".join([repository.partition("/")[2], *part.values()])
            entries[_unused(name, entries)] = {"hf_hub_url": repository, **part, **described}
            continue
        for place in _places(group.files, [file for other in groups for file in other.files]):
            entries[_unused(place.removeprefix(f"{FOLDER}/"), entries)] = {"file_name": place, **described}
    return entries


def _unused(name: str, entries: Mapping[str, Any]) -> str:
    """Return a name that can stand in its comma-separated list of data sets."""
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    while name in entries:
        name += "_"
    return name


def _places(files: Sequence[DataFile], all_files: Iterable[DataFile]) -> list[str]:
    """Return the folders that hold these files and no other, and the files of other folders one by one."""
    readable = {
        file.path: str(PurePosixPath(file.path).parent)
        for file in files
        if file.path.lower().endswith(_READABLE) and file.delimiter in (None, ",")
    }
    # Files straight in a folder that can be read, and all that it holds, however deep.
    flat = Counter(readable.values())
    held = Counter(str(folder) for file in all_files for folder in PurePosixPath(file.path).parents)
    places = (folder if 1 < flat[folder] == held[folder] else path for path, folder in readable.items())
    return list(dict.fromkeys(places))


def _fits(group: Group, layout: Layout) -> bool:
    # Of a question and its answer by turns `datasets` makes rows of one line each, whatever we call the two.
    if layout.name not in _COLUMNS or group.files[0].builder == "text":
        return False
    needed = {layout.columns[our] for our in REQUIRED[layout.name]}
    # Rows of an evaluation set may have the same columns, with numbers or objects in them.
    is_text = layout.name in ("messages", "sharegpt") or group.has_text_alone(needed)
    return needed <= set(group.columns) and is_text


def _description(group: Group, layout: Layout) -> dict[str, Any] | None:
    columns = layout.columns
    named = {theirs: columns[ours] for theirs, ours in _COLUMNS[layout.name].items() if ours in columns}
    found = {theirs: column for theirs, column in named.items() if column in group.columns}
    if layout.name not in ("messages", "sharegpt"):
        return {"columns": found}
    tags = _tags(group, named["messages"])
    return {"formatting": "sharegpt", "columns": found, "tags": tags} if tags is not None else None


def _tags(group: Group, column: str) -> dict[str, str] | None:
    """Return what the rows call keys and roles; None where they call one by two names, which cannot be said."""
    spoken: set[tuple[str, str]] = set()
    for file in group.files:
        for _, row in read_rows(file.file, (column,)):
            messages = [] if isinstance(row, BadRow) else row[column]
            spoken |= {(key, message[key]) for message in messages for key in _CONTENT_TAGS if message.get(key)}
    keys, roles = {key for key, _ in spoken}, {role for _, role in spoken}
    if len(keys) != 1:
        return None
    (key,) = keys
    tags = {"role_tag": key, "content_tag": _CONTENT_TAGS[key]}
    for tag, (own, other) in _ROLES.items():
        if {own, other} <= roles and own != other:
            return None
        tags[tag] = other if other in roles or (key == "role" and own not in roles) else own
    return tags
