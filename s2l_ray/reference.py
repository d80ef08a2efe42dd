"""Every setting of a config file, with its type, its default and what it is, told by the config's own classes.

What is printed is a config file: all that it sets are defaults, so any part of it can be pasted into one.
"""

import ast
import difflib
import inspect
import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from s2l_ray.config import Config, Section
from s2l_ray.config.section import section_in
from s2l_ray.errors import ConfigError
from s2l_ray.sweep import SweepConfig

WIDTH = 110
"""Characters of a line."""
_TYPES = {
    bool: "true or false",
    int: "int",
    float: "number",
    str: "text",
    ByteSize: 'size such as "16GiB"',
    NoneType: "null",
    Any: "any value",
}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """A key of the config.

    Attributes:
        path: its keys from the root.
        type: what may stand there.
        default: what stands there unless set; None where it has to be set, too.
        text: what it is.
        children: the keys of a section, or of what may stand there as a mapping.
        is_section: it always is a mapping, so that its default is that of its keys.
    """

    path: tuple[str, ...]
    type: str
    default: Any
    text: str
    children: tuple["Setting", ...] = ()
    is_section: bool = False

    @property
    def dotted(self) -> str:
        """The path as `--set` takes it."""
        return ".".join(self.path)

    def every(self) -> Iterator["Setting"]:
        """Yield this one and all below it."""
        yield self
        for child in self.children:
            yield from child.every()


def settings(path: str | None = None) -> list[Setting]:
    """Return the settings of a config file, those of arms and sweeps among them.

    Args:
        path: only what is at this path: `cluster`, `select.method`.

    Raises:
        ConfigError: no setting is there.
    """
    arms = Setting(
        ("arms",), "mapping of a name to a mapping", None,
        "Variants that run side by side: `{random: {select.method: random}, s2l: {select.method: paper}}`.",
    )  # fmt: skip
    sweep = Setting(("sweep",), "mapping", None, _doc(SweepConfig), tuple(_of(SweepConfig, None, ("sweep",))))
    roots = [*_of(Config, None, ()), arms, sweep]
    if path is None:
        return roots
    every = {setting.dotted: setting for root in roots for setting in root.every()}
    if path not in every:
        ends = [dotted for dotted in every if dotted.endswith(f".{path}")]
        near = ends or difflib.get_close_matches(path, every, n=3) or [root.dotted for root in roots]
        raise ConfigError(f"found the setting {path!r}, which there is not. Did you mean {', '.join(near)}?")
    return [every[path]]


def as_yaml(found: Iterable[Setting]) -> Iterator[str]:
    """Yield settings as the lines of a config file, with all that is not set as comments."""
    explained: set[str] = set()
    for setting in found:
        for depth, key in enumerate(setting.path[:-1]):
            yield f"{'  ' * depth}{key}:"
        yield from _lines(setting, len(setting.path) - 1, explained)


def _lines(setting: Setting, depth: int, explained: set[str]) -> Iterator[str]:
    indent = "  " * depth
    text = "" if setting.text in explained else setting.text  # of seven stages, the first tells what a CPU is
    explained.add(setting.text)
    is_left_out = setting.path in (("arms",), ("sweep",))
    value = "" if setting.is_section or is_left_out else f" {_scalar(setting.default)}"
    line = f"{indent}{setting.path[-1]}:{value}"
    kind = "" if setting.is_section else f"  # {setting.type}"
    if len(line + kind) > WIDTH:
        text, kind = f"{text} Values: {setting.type}.".lstrip(), ""
    below = [line for child in setting.children for line in _lines(child, depth + 1, explained)]
    if not setting.is_section:
        below = [f"# {line}" for line in below]  # what may stand in place of the default
    own = [f"{indent}# {part}" for part in textwrap.wrap(text, WIDTH - len(indent) - 2)]
    yield from own
    yield f"{'# ' * is_left_out}{line}{kind}"
    yield from below


def _scalar(value: Any) -> str:
    """Return a value as it stands behind a key."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump([plain], default_flow_style=True, width=math.inf, allow_unicode=True).strip()[1:-1]


def _of(section: type[Section], instance: Section | None, path: tuple[str, ...]) -> Iterator[Setting]:
    """Yield the settings of a section; their defaults are those of an instance, or of its class."""
    docs = _field_docs(section)
    for name, field in section.model_fields.items():
        here = (*path, name)
        default = getattr(instance, name) if instance is not None else field.get_default(call_default_factory=True)
        inner = section_in(field.annotation)
        if isinstance(default, Section) or field.annotation is inner:
            given = default if isinstance(default, Section) else None
            text = " ".join(filter(None, (_doc(inner or type(default)), docs.get(name, ""))))
            yield Setting(here, "mapping", None, text, tuple(_of(inner or type(default), given, here)), True)
            continue
        children = tuple(_of(inner, None, here)) if inner is not None else ()
        shown = None if default is PydanticUndefined else default
        yield Setting(here, _kind_of_field(field), shown, docs.get(name, ""), children)


def _kind_of_field(field: FieldInfo) -> str:
    bounds = [f"{sign} {getattr(found, name)}" for found in field.metadata for name, sign in _BOUNDS.items()
              if hasattr(found, name)]  # fmt: skip
    kinds = _kinds(field.annotation)
    kinds[0] = " ".join(filter(None, (kinds[0], " and ".join(bounds))))
    return " or ".join(kinds) + (", has to be set" if field.is_required() else "")


def _kinds(annotation: Any) -> list[str]:
    """Return what may stand where a type is expected, in the words of YAML."""
    arguments = get_args(annotation)
    match get_origin(annotation):
        case None:
            return ["mapping" if section_in(annotation) else _TYPES[annotation]]
        case origin if origin is Literal:
            return [", ".join(map(str, arguments))]
        case origin if origin is tuple:
            counted = "list of" if Ellipsis in arguments else f"list of {len(arguments)}:"
            return [f"{counted} {' or '.join(_kinds(arguments[0]))}"]
        case origin if origin is dict:
            return ["mapping"]
        case origin if origin is Annotated:
            return _kinds(arguments[0])
        case _:
            return [kind for argument in arguments for kind in _kinds(argument)]


def _doc(section: type[Section]) -> str:
    return inspect.cleandoc(section.__doc__ or "").partition("\n\n")[0]


@cache
def _field_docs(section: type[Section]) -> dict[str, str]:
    """Return what the strings below a section's fields say of them, those of its bases included."""
    docs: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not (issubclass(base, Section) and base is not Section):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, definition.body[1:], strict=False):
            match field, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ):
                    docs[name] = " ".join(text.split())
    return docs
