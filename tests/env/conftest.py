"""What the tests of faults share."""

from pathlib import Path

import pytest

from tests.env.faulty_environment import Environment


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """The real packages without the GPTQ libraries, so that each test puts in what it wants."""
    found = Environment(tmp_path)
    for library in ("gptqmodel", "auto-gptq", "optimum"):
        found.remove(library)
    return found
