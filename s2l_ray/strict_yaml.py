"""YAML as people mean it: `1e-4` is a number, `no` is a word, a key stands once; no aliases, anchors or tags."""

import re
from pathlib import Path
from typing import Any

import yaml

from s2l_ray.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """YAML as people mean it: `1e-4` is a number, `no` is a word, a key stands once; no aliases, no tags."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        found = None
        if isinstance(event, yaml.events.AliasEvent) or event.anchor is not None:
            found = "an alias" if isinstance(event, yaml.events.AliasEvent) else "an anchor"
        elif event.tag not in (None, "!"):
            found = f"the tag {event.tag}"
        if found:
            raise yaml.constructor.ConstructorError(
                None, None, f"found {found}, expected plain values", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_NUMBER = re.compile(
    r"[-+]?(?:\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_StrictLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("bool", "int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][\d_]*)$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def parse_yaml(text: str, *, origin: str) -> Any:
    """Parse YAML with the strict loader.

    Raises:
        ConfigError: not YAML, a repeated key, an alias, an anchor, or a tag.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError as error:
        raise ConfigError(f"{origin}: lists or mappings are nested too deep. Expected plain YAML.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an integer of thousands of digits
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{origin}{line}: {problem}. Expected plain YAML; mend that line.") from error


def comment_in(line: str) -> str:
    """Return the end of a line that `parse_yaml` takes for a comment and leaves out; empty where there is none."""
    value = yaml.compose(line, Loader=_StrictLoader)
    return line[value.end_mark.index if value is not None else 0 :].strip()


def read_yaml(path: str | Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        ConfigError: it cannot be read, or is not what `parse_yaml` takes.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}. Give the path of a UTF-8 YAML file.") from error
    return parse_yaml(text, origin=str(path))


class _PlainDumper(yaml.SafeDumper):
    """Writes a value that stands twice twice, as the loader takes no aliases, and quotes what a reader would change."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _LINE_ENDS.search(text) else None)


_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""YAML takes them for ends of lines, and folds them into spaces."""
_PlainDumper.add_representer(str, _text)
# What looks like a number or a word of YAML 1.1 to others, or like a number to us, is no plain text.
_PlainDumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *_StrictLoader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_StrictLoader.yaml_implicit_resolvers}
}


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML that `parse_yaml` reads back."""
    return str(yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=110))
