"""An experiment: a config file as read, its `--set` lines applied, its arms laid out.

Each arm is a complete `Config`; arms share what precedes their first difference. Everything that is wrong is said here,
with the file, the key, what was found and what was expected.
"""

import difflib
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from s2l_ray.config import Config, MetricName, Section
from s2l_ray.config.section import section_in
from s2l_ray.errors import ConfigError
from s2l_ray.log import display, redacted
from s2l_ray.strict_yaml import comment_in, dump_yaml, parse_yaml, read_yaml

MAIN_ARM = "main"
SHARED = ("storage", "resources", "tracking")
"""What all arms have in common: one run has one storage, one Ray, and one place where it is told of."""
MAX_SHOWN = 120
"""Characters of a wrong value in a message."""

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Experiment:
    """A config file as read: its arms, each a complete `Config`, and the sparse text they came from."""

    name: str
    arms: Mapping[str, Config]
    sparse: Mapping[str, Any]

    @property
    def shared(self) -> Config:
        """What all arms have in common for storage and resources: the first arm."""
        return next(iter(self.arms.values()))

    @property
    def metrics(self) -> set[MetricName]:
        """What any of the arms is judged by."""
        return {name for config in self.arms.values() for name in config.evaluate.metrics}

    @property
    def text(self) -> str:
        """The experiment as a file; see `text_of`."""
        return text_of(self.sparse)


@dataclass(frozen=True)
class Sparse:
    """A config file with its `--set` lines applied, nothing validated yet.

    Attributes:
        name: of the file.
        origin: the file, for messages.
        data: the sections.
        arms: name -> overrides; `main` alone where the file has none, or where `--set` changed what they differ in.
        sweep: the section `sweep`, empty where there is none.
        set_paths: the paths that `--set` changed.
    """

    name: str
    origin: str
    data: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    sweep: Mapping[str, Any]
    set_paths: tuple[str, ...]


def load_sparse(path: str | Path, overrides: list[str] | None = None) -> Sparse:
    """Read a YAML file and apply `--set` lines.

    Args:
        path: the YAML file.
        overrides: lines `dotted.path=value`; a value is read as a YAML scalar, list or mapping.

    Raises:
        ConfigError: the file or a line is not what it must be.
    """
    return parse_sparse(read_yaml(path), overrides or [], origin=str(path), name=Path(path).stem)


def parse_sparse(data: Any, overrides: list[str], *, origin: str, name: str) -> Sparse:
    """Take a parsed mapping and `--set` lines apart; see `load_sparse`."""
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: found {_kind(data)}, expected a mapping of sections such as `examples:`.")
    data = dict(data)
    arms = data.pop("arms", None)
    if arms is not None and (not isinstance(arms, dict) or not all(isinstance(a, dict) for a in arms.values())):
        raise ConfigError(f"{origin}: `arms` must map a name to overrides, e.g. `random: {{select.method: random}}`.")
    set_paths = []
    for line in overrides:
        dotted, value = parse_override(line)
        if dotted.partition(".")[0] == "arms":
            raise ConfigError(
                f"--set {line!r}: found `arms`, expected a value of a section. Write arms in {origin}; "
                "to run one variant alone, set its own paths, e.g. `--set select.method=random`."
            )
        set_paths.append(dotted)
        data = override(data, dotted, value)
    sweep = data.pop("sweep", None) or {}
    if not isinstance(sweep, dict):
        raise ConfigError(f"{origin}: `sweep`: found {_kind(sweep)}, expected a mapping with `parameters`.")
    for arm, changes in (arms or {}).items():
        _check_arm(arm, changes, origin)
    clashing = [
        (path, str(arm))
        for path in set_paths
        for arm, changes in (arms or {}).items()
        if any(paths_overlap(path, str(own)) for own in changes)
    ]
    if clashing:
        path, names = clashing[0][0], ", ".join(dict.fromkeys(arm for _, arm in clashing))
        if sweep:
            raise ConfigError(
                f"--set {path}: the arms {names} of {origin} set it themselves. Change it there, or name the arms that "
                "are to be swept by `sweep.parameters.arm`."
            )
        display.warn(f"--set {path}: the arms {names} set it themselves; all arms of {origin} are left out, one runs")
    if not arms or clashing:
        arms = {MAIN_ARM: {}}
    return Sparse(name, origin, data, {str(arm): changes for arm, changes in arms.items()}, sweep, tuple(set_paths))


def load_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read a YAML file, apply `--set` lines, and return its arms; see `load_sparse`.

    Raises:
        ConfigError: the file, a key or a value is not what it must be, or the file is a sweep.
    """
    return experiment_of(load_sparse(path, overrides))


def experiment_of(sparse: Sparse) -> Experiment:
    """Lay out the arms of a file.

    Raises:
        ConfigError: a key or a value is not what it must be, or the file is a sweep.
    """
    if sparse.sweep:
        raise ConfigError(f"{sparse.origin} has a `sweep:` section. Run it with `s2l sweep {sparse.origin}`.")
    configs = {}
    for arm, changes in sparse.arms.items():
        where = sparse.origin if arm == MAIN_ARM else f"{sparse.origin} (arm {arm})"
        configs[arm] = validated(Config, with_overrides(sparse.data, changes), where)
    return Experiment(name=sparse.name, arms=configs, sparse={**sparse.data, "arms": dict(sparse.arms)})


def text_of(data: Mapping[str, Any]) -> str:
    """Return the sections of a file as YAML that would run again, without where it runs and without secrets."""
    return dump_yaml(redacted({name: value for name, value in data.items() if name not in SHARED}))


def with_overrides(data: Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a copy of `data` with the values at several dotted paths replaced; see `override`."""
    for dotted, value in changes.items():
        data = override(data, str(dotted), value)
    return data


def _check_arm(arm: Any, changes: Mapping[Any, Any], origin: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", str(arm)):
        raise ConfigError(f"{origin}: arm name {arm!r}: expected letters, digits, `_` or `-`, 40 at most.")
    for dotted, value in changes.items():
        if str(dotted).partition(".")[0] in SHARED:
            raise ConfigError(
                f"{origin} (arm {arm}): found `{dotted}`, which all arms share. Set it outside `arms`, or with `--set`."
            )
        if isinstance(value, Mapping) and dotted in Config.model_fields:
            # It would replace the section, and silently drop what the file sets there for all arms.
            first = next(iter(value), "...")
            raise ConfigError(
                f"{origin} (arm {arm}): found the whole section `{dotted}`, expected dotted keys. "
                f"Write `{dotted}.{first}: ...`."
            )


def override(data: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """Return a copy of `data` with the value at a dotted path replaced; missing sections are made.

    Raises:
        ConfigError: the path is empty or runs through something that is not a section.
    """
    names = dotted.split(".")
    if not all(names):
        raise ConfigError(f"override path {dotted!r}: expected names joined by dots, e.g. `cluster.n_clusters`.")
    result = section = dict(data)
    for depth, name in enumerate(names[:-1], start=1):
        inner = section.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            above = ".".join(names[:depth])
            raise ConfigError(
                f"override path {dotted!r}: `{above}` is {_kind(inner)}, expected a section. Set `{above}` itself, or "
                "mend the path."
            )
        section[name] = dict(inner or {})
        section = section[name]
    section[names[-1]] = value
    return result


def parse_override(line: str) -> tuple[str, Any]:
    """Split a `--set` line into its path and its value.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML, or a part of it would be taken for a comment.
    """
    dotted, equals, text = line.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"--set {line!r}: expected `path=value`, e.g. `--set cluster.n_clusters=200`.")
    value = parse_yaml(text, origin=f"--set {line}")
    if comment := comment_in(text):
        quoted = json.dumps(text, ensure_ascii=False)
        raise ConfigError(
            f"--set {line!r}: `{comment}` would be a comment, and no part of the value. Put quotes around the value, "
            f"e.g. --set {shlex.quote(f'{dotted}={quoted}')}."
        )
    return dotted.strip(), value


def validated(section: type[SectionT], data: Any, origin: str) -> SectionT:
    """Turn a mapping into a section.

    Args:
        origin: file and place, for messages.

    Raises:
        ConfigError: an unknown key or a wrong value; a line for each.
    """
    try:
        config = section.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        # A mapping or list was not meant as the text that the key may also hold.
        meant = [d for d in details if d["type"] != "string_type" or not isinstance(d["input"], Mapping | list)]
        lines = [f"{origin}: {_explain(detail, section)}" for detail in meant or details]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from error
    _check_finite(config.model_dump(), origin)
    return config


def _check_finite(value: Any, origin: str, dotted: str = "") -> None:
    if isinstance(value, Mapping):
        for key, child in value.items():
            _check_finite(child, origin, f"{dotted}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            _check_finite(child, origin, f"{dotted}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{origin}: `{dotted}`: found {value}, expected a finite number.")


_BRANCH = re.compile(r"(?:FreshModel|str|int|float)$|tuple\[|literal\[|function-")
"""Where pydantic names the type that it tried instead of a key."""


_EXPECTED = {
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping of its keys",
    "tuple_type": "expected a list",
}
_WORDS = (
    (r"^Input should be (greater|less)", r"expected a number \1"),
    (r"^Input should be", "expected"),
    (r"^Tuple should have (at .+) after validation, not .+", r"expected \1"),
)
"""What pydantic says in the words of Python -> in those of YAML."""


def _explain(detail: ErrorDetails, root: type[Section]) -> str:
    path = [str(part) for part in detail["loc"] if not _BRANCH.match(str(part))]
    dotted = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(path[:-1], root)
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}."
        return f"unknown key `{dotted}`; {hint}"
    if detail["type"] == "missing":
        in_list = any(isinstance(part, int) for part in detail["loc"])
        advice = "" if in_list else f" or with `--set {dotted}=...`"
        return f"`{dotted}` is missing; set it in the file{advice}."
    message = _EXPECTED.get(detail["type"], detail["msg"]).removeprefix("Value error, ")
    for pattern, ours in _WORDS:
        message = re.sub(pattern, ours, message)
    found = detail["input"]
    shown = "" if isinstance(found, Mapping | BaseModel) else f"found {_shown(found)}; "
    where = f"`{dotted}`: " if dotted else ""  # what concerns several sections names its keys itself
    return f"{where}{shown}{message[0].lower()}{message[1:].rstrip('.')}."


def _known_keys(path: list[str], root: type[Section]) -> list[str]:
    model: type[Section] | None = root
    for name in path:
        if model is None:
            return []
        if name.isdigit():
            continue
        field = model.model_fields.get(name)
        model = section_in(field.annotation) if field else None
    keys = list(model.model_fields) if model else []
    return [*keys, "arms", "sweep"] if model is Config else keys


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def paths_overlap(one: str, other: str) -> bool:
    """Return whether one dotted path is the other, or runs through it."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
