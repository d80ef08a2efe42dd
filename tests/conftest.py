"""Shared fixtures. Real data is used where S2L_TEST_DATA names its folder."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    folder = os.environ.get("S2L_TEST_DATA")
    if not folder:
        pytest.skip("S2L_TEST_DATA is not set: it names a folder of real data")
    return Path(folder)
