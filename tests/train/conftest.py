"""One small world for all tests of training commands."""

import pytest

from tests.shared import made_once
from tests.small_runs import make_workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, job):
    """A drawn, prepared and embedded world of 120 pictures; every test has run names of its own."""
    return made_once(tmp_path_factory, "small", lambda folder: make_workspace(folder, job))
