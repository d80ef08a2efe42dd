"""A Ray that the commands of these tests join."""

from collections.abc import Iterator

import pytest

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
