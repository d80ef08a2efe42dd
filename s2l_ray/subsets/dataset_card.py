"""The card of an export: `README.md` as the Hugging Face hub and `datasets` read it.

Everything that comes from the data (names of files, sources, columns) is escaped; the front matter is YAML by the
dumper. Nothing here depends on the time or on the machine: the same rows have the same card.
"""

import glob
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.artifacts import Artifact, FileRecord
from s2l_ray.input_files import shown
from s2l_ray.nodes import OWN_LAYOUTS
from s2l_ray.strict_yaml import dump_yaml
from s2l_ray.subsets.data_files import Group, of_one_kind
from s2l_ray.subsets.part import Part
from s2l_ray.subsets.provenance import HELD_OUT_ELSEWHERE, TRAJECTORIES_ELSEWHERE, facts_of

CARD = "README.md"
SELECTION = "selection.parquet"
_FOLDER = "FOLDER"
"""Stands for where the reader has put an export."""
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LARGER_SIZES = ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"))
_LARGEST = "10B<n<100B"
_NAME_LIMIT = 200
_MARKUP = frozenset('\\`*_{}[]<>()#+-.!|~&:@$^"')
"""What means something within a line of Markdown, a bare address among it."""


@dataclass(frozen=True)
class Card:
    """What a card tells.

    Attributes:
        parts: what was exported.
        groups: the files of rows; `datasets` reads those of the first one's kind.
        records: the files of the export, but for the card.
        again: a config that makes the subset again, which is exported or topped up.
        llama_factory: the names of the entries in `dataset_info.json`.
        repository: `owner/name` of the data set of the hub that it is the card of; None for a folder.
    """

    parts: Sequence[Part]
    groups: Sequence[Group]
    records: Sequence[FileRecord]
    again: Mapping[str, Any]
    llama_factory: Sequence[str]
    repository: str | None

    def text(self) -> str:
        """Return the card."""
        rows = sum(part.artifact.summary["rows"] for part in self.parts)
        inputs = list(dict.fromkeys(name for part in self.parts for name in part.inputs))
        method = self.parts[0].artifact.manifest.config["settings"]["method"]
        front = {
            "pretty_name": f"{rows} rows selected by S2L",
            "size_categories": [size_category(rows)],
            "tags": ["s2l-ray", "data-selection", str(method)],
            "configs": [group.front_matter() for group in self._configured],
        }
        of = ", ".join(escaped(name) for name in inputs[:5]) + (" and others" if len(inputs) > 5 else "")
        parts = [
            f"---\n{dump_yaml(front)}---\n",
            f"# {rows} rows of {of}\n",
            self._introduction(),
            *self._loading(),
            "## How the rows were chosen\n",
            *self._facts(),
            *self._composition(),
            *self._again(),
            *self._provenance(),
            "## Licence\n",
            "None is named here: the rows have that of the data they were taken from, which this program does not "
            "know. Whoever passes them on has to name it, with `license:` in the lines at the head of this file.\n",
        ]
        return "\n".join(parts)

    def _introduction(self) -> str:
        by = "chosen by [S2L](https://arxiv.org/abs/2403.07384) (SmallToLarge)"
        if self.parts[0].is_extension:
            what = (
                f"Rows that came later than a subset that was {by}, and top it up: scored by the same proxy, assigned "
                "to the same clusters, and taken where these had given less than their share."
            )
        elif self.parts[1:]:
            what = f"A subset for fine-tuning, {by}, and rows that came later and top it up. "
            what += f"`part` in `{SELECTION}` tells them apart: an `example_id` numbers the rows of one part."
        else:
            what = f"A subset for fine-tuning, {by} or a method to compare it with."
        return (
            f"{what} The rows are untouched, in the format and the order of the input. `{SELECTION}` says of each, in "
            "the same order, where it stood and why it was taken.\n"
        )

    def _facts(self) -> Iterator[str]:
        for part in self.parts:
            if self.parts[1:]:
                yield f"### {part.label}\n"
            facts = facts_of(part.artifact, part.lineage)
            yield _table(["", ""], [[name, str(value)] for name, value in facts.items()])

    @property
    def _configured(self) -> list[Group]:
        return of_one_kind(self.groups)

    def _loading(self) -> list[str]:
        place = self.repository or _FOLDER
        root = f"hf://datasets/{self.repository}" if self.repository else _FOLDER
        named = [group.name for group in self._configured if group.name != "default"]
        lines = [f'datasets.load_dataset("{place}", "{name}", split="train")' for name in named]
        lines = lines or [f'datasets.load_dataset("{place}", split="train")']
        for group in self.groups:
            if group not in self._configured:  # one data set has files of one kind, as `datasets` sees it
                paths = json.dumps([f"{root}/{glob.escape(file.path)}" for file in group.files])
                lines.append(f'datasets.load_dataset("{group.files[0].builder}", data_files={paths}, split="train")')
        parts = ["## Loading\n", _fenced("python", "\n".join(["import datasets", "", *lines]))]
        if any(file.path.endswith(".zst") for group in self.groups for file in group.files):
            parts.append("Files ending in `.zst` need the package `zstandard`.\n")
        if any(file.file.file_format == "pairs" for group in self.groups for file in group.files):
            parts.append("Files ending in `.txt` hold a question and its answer by turns, a line each.\n")
        if self.llama_factory:
            directory = f"REMOTE:{self.repository}" if self.repository else _FOLDER
            names = ",".join(self.llama_factory)
            parts.append(f"LLaMA-Factory: `dataset_dir: {directory}` and `dataset: {names}`.\n")
        return parts

    def _composition(self) -> list[str]:
        counts = Counter[str]()
        for part in self.parts:
            counts.update(part.artifact.summary["rows_per_source"])
        if set(counts) == {""}:
            return []
        return [_table(["source", "rows"], [[name or "(none)", str(count)] for name, count in counts.items()])]

    def _again(self) -> list[str]:
        notes = ["With the same files under the same names the result has the same rows."]
        examples = self.again["examples"]
        if "synthetic" in examples:
            seed = self.parts[0].examples.manifest.config["seed"]
            notes.append(
                f"The corpus is made up; it also follows from the run's `seed`, from which {seed} was derived."
            )
        if HELD_OUT_ELSEWHERE in self.again.get("evaluate", {}).values():
            notes.append(f"`{HELD_OUT_ELSEWHERE}` stands for held-out data, which the run had in files of their own.")
        if "trajectories" in self.again:
            notes.append(f"`{TRAJECTORIES_ELSEWHERE}` stands for the trajectories, which were computed elsewhere.")
        if "model" not in self.again.get("target", {}):
            notes.append("The target is not known; its tokenizer decides which rows fit and what a token budget holds.")
        for part in self.parts:
            if part.is_extension:
                of = ", ".join(escaped(name) for name in list(part.inputs)[:5])
                notes.append(f"`{_new_rows(part)}` stands for the rows that came later, of which {of} held some.")
        return [
            "## Making it again\n",
            _fenced("yaml", dump_yaml(dict(self.again)).rstrip("\n")),
            _fenced("bash", "\n".join(["s2l run again.yaml --until select_subset", *self._extending()])),
            f"`again.yaml` holds the lines above. {' '.join(notes)}\n",
        ]

    def _extending(self) -> Iterator[str]:
        for part in self.parts:
            if part.is_extension:
                budget = str(part.artifact.manifest.config["settings"]["budget"])
                words = ["s2l", "extend", "again.yaml", "--rows", _new_rows(part), "--budget", budget]
                yield shlex.join([*words, *_entry_options(part)])

    def _provenance(self) -> list[str]:
        names: dict[Artifact, str] = {}
        for part in self.parts:
            prefix = f"{part.label}: " if part.is_extension and self.parts[1:] else ""
            names.setdefault(part.artifact, part.label)
            for role, artifact in sorted(part.lineage.items()):
                names.setdefault(artifact, f"{prefix}{role}")
        made = [[name, found.manifest.fingerprint, found.digest] for found, name in names.items()]
        files = [[f.path, "-" if f.rows is None else str(f.rows), str(f.bytes), f.sha256] for f in self.records]
        versions = self.parts[-1].artifact.manifest.run.get("versions", {})
        return [
            "## Provenance\n",
            _table(["artifact", "fingerprint", "digest"], made),
            _table(["file", "rows", "bytes", "SHA-256"], files),
            "Made with " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".\n"
            if versions
            else "",
        ]


def _entry_options(extension: Part) -> Iterator[str]:
    """Yield the options that say how the rows of an extension were read, where that was said."""
    for own in list(extension.examples.manifest.config["settings"].get(OWN_LAYOUTS, {}).values())[:1]:
        if own["format"]:
            yield from ("--format", own["format"])
        if own["columns"]:
            yield from ("--columns", json.dumps(own["columns"], ensure_ascii=False))


def _new_rows(extension: Part) -> str:
    """Return what stands for the rows that an extension was chosen from: their name may be that of the first ones."""
    return f"your-rows-of-the-{extension.label}"


def size_category(rows: int) -> str:
    """Return the hub's word for a number of rows."""
    return next((name for limit, name in (*_SIZES, *_LARGER_SIZES) if rows < limit), _LARGEST)


def escaped(text: str) -> str:
    """Return text as it may stand in a line of Markdown, read as nothing but text."""
    return "".join(f"\\{c}" if c in _MARKUP else c for c in shown(text, _NAME_LIMIT))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines, ""])


def _fenced(language: str, text: str) -> str:
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"
