"""Commands of the tests: in processes of their own on a Ray that they join, or here, one after the other."""

import subprocess
from collections.abc import Iterator

import pytest

from s2l_ray import cli
from s2l_ray.log import display
from tests.conftest import S2L, one_local_ray
from tests.nodes import Nodes


@pytest.fixture(scope="package")
def cluster_address() -> Iterator[str]:
    """A Ray that many commands join, one after the other: starting one is much of what a short command costs."""
    with Nodes(head_cpus=2) as nodes:
        yield nodes.address


@pytest.fixture
def joined(cluster_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands of a test join it."""
    monkeypatch.setenv("RAY_ADDRESS", cluster_address)


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    yield from one_local_ray()


@pytest.fixture
def run_here(local_ray: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> S2L:
    """Run the command in this process, as one job with all before it: its workers have imported what they need."""
    monkeypatch.setattr(cli, "_end_process", lambda code: None)
    monkeypatch.setattr(display, "quiet", display.quiet)
    monkeypatch.setattr(display, "stdout", display.stdout)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        capsys.readouterr()
        code = cli.main(arguments)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run
