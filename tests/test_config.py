"""Dictionaries to checked dataclasses: removed keys and unknown ones, each with a way on."""

from dataclasses import dataclass, field

import pytest

from recsys.config import from_config, read_job
from recsys.overrides import typed


@dataclass(frozen=True, kw_only=True)
class Inner:
    REMOVED = {"old_switch": (False, "label=0 switches it off now")}

    label: int = 3


@dataclass(frozen=True, kw_only=True)
class Outer:
    REMOVED = {"gone": (None, "launch/other.py does it")}

    inner: Inner = field(default_factory=Inner)
    name: str = "a"


def test_removed_key_given_by_the_user_is_refused_by_what_does_its_job_now():
    for value in (False, True):
        with pytest.raises(ValueError, match=r"inner.old_switch: was removed; label=0 switches"):
            from_config(Outer, {"inner": {"old_switch": value}}, "")
    with pytest.raises(ValueError, match=r"gone: was removed; launch/other.py does it"):
        typed(["gone=1"], (Outer,), lambda _: False)
    with pytest.raises(ValueError, match=r"gone: was removed; launch/other.py does it"):
        read_job({"gone": 1}, (Outer,))


def test_removed_key_of_a_stored_configuration_is_dropped_at_its_off_value_alone():
    stored = {"inner": {"old_switch": False, "label": 4}, "gone": None}
    assert from_config(Outer, stored, "", stored=True) == Outer(inner=Inner(label=4))
    with pytest.raises(ValueError, match=r"inner.old_switch: was removed; label=0 switches"):
        from_config(Outer, {"inner": {"old_switch": True}}, "", stored=True)


def test_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"inner.lable: unknown key; .*mean inner.label\?"):
        from_config(Outer, {"inner": {"lable": 4}}, "")
    with pytest.raises(ValueError, match=r"^configuration: x: unknown key; expected one of inner"):
        read_job({"x": 1}, (Outer,))
