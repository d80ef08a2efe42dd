"""The YAML reader: what a scalar means, and what is refused."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s2l_ray.errors import ConfigError
from s2l_ray.strict_yaml import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2.0e-5", 2.0e-5),
        ("2E5", 2e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5", -1.5),
        ("1_000", 1000),
        ("010", 10.0),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("10%", "10%"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("'1'", "1"),
    ],
)
def test_yaml_scalar_means_what_it_says(text, value):
    parsed = parse_yaml(text, origin="x")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: {c: 1, c: 2}", 2),
        ("a: 1\nb: 2\na: 1", 3),
        ("a: &x [1]\nb: *x", 1),
        ("a: &x 1", 1),
        ("a: *x", 1),
        ("a:\n  <<: {b: 1}", 2),
        ("a: !!python/object:os.system {}", 1),
        ("a: !!python/object/apply:os.system [ls]", 1),
        ("a: 1\nb: !!python/name:os.system", 2),
        ("a: !!int x", 1),
        ("a: !!map x", 1),
        ("a: !!bool x", 1),
        ("a: !!timestamp x", 1),
        ("a: !custom 1", 1),
        ("1: a", 1),
        ("[1]: a", 1),
        ("a: [1", 1),
        ("a: 1\n---\nb: 2", 2),
        ("a: b: c", 1),
    ],
)
def test_yaml_not_plain_is_refused_with_its_line(text, line):
    with pytest.raises(ConfigError, match=rf"exp\.yaml:[{line}{line + 1}]:"):
        parse_yaml(text, origin="exp.yaml")


@pytest.mark.parametrize("text", ["a: \x00", "a: " + "9" * 5000, "[" * 5000, "[" * 5000 + "]" * 5000, "a: =", "\t- x"])
def test_yaml_that_breaks_parsers_is_a_config_error(text):
    with pytest.raises(ConfigError, match=r"exp\.yaml"):
        parse_yaml(text, origin="exp.yaml")


def test_yaml_aliases_that_explode_are_refused_at_the_first():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ConfigError):
        parse_yaml("\n".join(lines), origin="bomb")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.from_regex(r"[-+0-9.eE_:xo ]{0,8}")


@given(st.dictionaries(texts, texts | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()))
@example({"source": "08", "path": "1e3", "no": "yes", "010": "1:30", "2024-01-01": "a\x85b\u2028c"})
def test_what_is_written_is_read_back(data):
    assert parse_yaml(dump_yaml(data), origin="x") == data
