"""Fixtures of the tests of prepare."""

import pytest


@pytest.fixture(scope="package")
def cluster():
    """The address of a local cluster of Ray, for all tests that ask: it needs some seconds to start."""
    from tests.data.prepare.local_ray import started_head

    with started_head() as address:
        yield address
