"""The tiers: nouns never import ray, nothing heavy is imported before it is needed, nothing unpickles."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import s2l_ray

PACKAGE = Path(s2l_ray.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PLACES = (".", "clustering", "config", "formats", "judging", "report", "subsets")
NOUNS = sorted(p for place in PLACES for p in (PACKAGE / place).glob("*.py") if p.name != "__main__.py")
HEAVY = ("torch", "transformers", "peft", "ray", "deepspeed", "sklearn", "jinja2", "pandas", "datasets", "math_verify")
HEAVY += ("sympy", "numba")
COMPILED = "clustering/compiled.py"
"""Decorates its functions with numba's compiler, and is imported late itself."""


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def module_of(path: Path) -> str:
    return ".".join(["s2l_ray", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Yield the modules that are imported anywhere, inside functions too, also by `import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def modules_loaded_by(code: str) -> set[str]:
    code += "\nimport sys, json; print('\\n' + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(out.stdout.splitlines()[-1]))


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


# ------------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize("path", NOUNS, ids=name_of)
def test_noun_never_imports_ray(path):
    assert not [name for name in imports_of(tree_of(path)) if name.partition(".")[0] == "ray"]


def test_only_the_stages_import_ray():
    found = {p for p in MODULES if any(name.partition(".")[0] == "ray" for name in imports_of(tree_of(p)))}
    assert found
    assert all(path.parent == PACKAGE / "stages" for path in found)


@pytest.mark.parametrize("path", [p for p in NOUNS if p.name not in ("cli.py", "commands.py")], ids=name_of)
def test_noun_never_imports_a_stage_but_for_its_types(path):
    tree = tree_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    assert not [name for name in imports_of(tree) if name.startswith("s2l_ray.stages")]


def test_stage_knows_no_other_stage():
    for path in (PACKAGE / "stages").glob("*.py"):
        shared = ["runtime", "capacity", "metrics", "shards", "shared_storage", "launch", "train_worker"]
        shared += ["generate_with_vllm", "blocks", "contents", "trajectory_blocks", "distributed_kmeans"]
        shared += ["pool_blocks", "candidates", "selectors", "local_trainer"]
        # A sweep is many runs.
        shared += ["run"] if path.stem == "run_sweep" else []
        names = [n.split(".") for n in imports_of(tree_of(path)) if n.startswith("s2l_ray.stages.")]
        assert not [name for name in names if name[2] not in shared], name_of(path)


def test_importing_every_noun_imports_nothing_heavy():
    names = [module_of(path) for path in NOUNS if name_of(path) != COMPILED]
    assert {"s2l_ray", "s2l_ray.plan", "s2l_ray.report.html"} <= set(names)
    loaded = modules_loaded_by("\n".join(f"import {name}" for name in names))
    assert "pyarrow" in loaded
    assert not loaded & set(HEAVY)


def test_plan_imports_neither_torch_nor_ray(tmp_path):
    loaded = modules_loaded_by(
        "from s2l_ray.cli import main\n"
        f"assert main(['plan', 'workflows/quickstart.yaml', '--storage', {str(tmp_path)!r}, '--json']) == 0"
    )
    assert not loaded & set(HEAVY)


def test_plan_of_files_imports_neither_torch_nor_ray(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    sets = f"['--set', 'examples={{path: {rows}}}', '--storage', {str(tmp_path / 's')!r}]"
    loaded = modules_loaded_by(
        f"from s2l_ray.cli import main\nassert main(['plan', 'workflows/quickstart.yaml', *{sets}]) == 0"
    )
    assert not loaded & set(HEAVY)


# ------------------------------------------------------------------------------------------------- what may not be read


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_no_unpickler(path):
    forbidden = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    roots = {name.partition(".")[0] for name in imports_of(tree_of(path))}
    assert not roots & forbidden
    assert "ray.cloudpickle" not in set(imports_of(tree_of(path)))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_loads_nothing_that_can_run_code(path):
    for function, call in calls_of(tree_of(path)):
        last = function.rpartition(".")[2]
        assert function not in ("eval", "exec", "compile", "os.system", "os.popen"), function
        assert function not in ("pd.read_pickle", "pandas.read_pickle"), function
        if function == "torch.load":
            assert keyword(call, "weights_only") == "True"
        assert last not in ("unsafe_load", "full_load", "read_pickle"), function
        assert keyword(call, "shell") in (None, "False"), function
        if function in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") in (None, "False")
        if function in ("yaml.load", "yaml.load_all"):
            assert keyword(call, "Loader") == "_StrictLoader"
        if last == "from_pretrained":
            assert keyword(call, "trust_remote_code") in (None, "False") or "trust_remote_code" in (
                keyword(call, "trust_remote_code") or ""
            )


def test_strict_loader_is_a_safe_loader():
    from yaml import SafeLoader

    from s2l_ray.strict_yaml import _StrictLoader

    assert issubclass(_StrictLoader, SafeLoader)
    assert not any(tag and "python" in tag for tag in _StrictLoader.yaml_constructors)


# ---------------------------------------------------------------------------------------------------------- house rules


def test_no_module_of_leftovers():
    assert not {path.name for path in MODULES} & {"utils.py", "helpers.py", "common.py", "misc.py"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is_for(path):
    assert ast.get_docstring(tree_of(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_exception_is_swallowed_whole(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            kinds = ast.unparse(node.type) if node.type else "everything"
            if kinds in ("everything", "Exception", "BaseException"):
                assert any(isinstance(inner, ast.Raise) for inner in ast.walk(node)), f"line {node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            assert not {ast.unparse(a) for a in node.args} & {"Exception", "BaseException"}, f"line {node.lineno}"


def test_no_stage_reads_the_environment():
    for path in (PACKAGE / "stages").glob("*.py"):
        if path.name != "runtime.py":
            assert "os.environ" not in ast.unparse(tree_of(path)), name_of(path)
            assert "getenv" not in ast.unparse(tree_of(path)), name_of(path)
