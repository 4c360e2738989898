"""Cases of a parametrised test of which the default run takes some, and the slow tests the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *default: Any) -> list[Any]:
    """Return all cases as pytest's parameters; those that are not in `default` are marked slow.

    Raises:
        ValueError: a default case is none of the cases, so that nothing would run it.
    """
    cases = list(cases)
    if missing := [case for case in default if case not in cases]:
        raise ValueError(f"default cases {missing}: expected some of {cases}")
    return [
        case if case in default else pytest.param(case, marks=pytest.mark.slow) for case in cases
    ]
