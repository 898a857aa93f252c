"""Fixtures that every test folder may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data for tests; skip where it is absent, fail in CI."""
    root = Path(os.environ.get("TALSTACK_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / "README.md").is_file():
        message = f"no test data at {root} (set TALSTACK_TEST_DATA)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return root
