"""One local Ray for the tests of subsets: selecting and extending compute on it."""

from collections.abc import Iterator

import pytest

from tests.conftest import one_local_ray


@pytest.fixture(scope="package", autouse=True)
def local_ray() -> Iterator[None]:
    yield from one_local_ray()
