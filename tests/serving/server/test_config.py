"""Settings of the server: how many workers it has."""

import pytest

from recsys.errors import UserError
from recsys.runtime.limits import usable_cores
from recsys.serving.server.config import ServeConfig, num_workers

CONFIG = ServeConfig(bundle="bundle")


def test_the_environment_says_how_many_workers_there_are_where_no_key_does(monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    assert num_workers(CONFIG) == 3
    assert num_workers(ServeConfig(bundle="bundle", workers=2)) == 2
    monkeypatch.setenv("WEB_CONCURRENCY", "")
    assert num_workers(CONFIG) == usable_cores()
    monkeypatch.delenv("WEB_CONCURRENCY")
    assert num_workers(CONFIG) == usable_cores()


@pytest.mark.parametrize("given", ["0", "two", "-1", "1.5", "257", "999"])
def test_a_number_of_workers_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv("WEB_CONCURRENCY", given)
    with pytest.raises(UserError, match=f"WEB_CONCURRENCY='{given}': expected a whole number"):
        num_workers(CONFIG)
