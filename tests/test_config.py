"""Dictionaries to checked dataclasses: removed keys and unknown ones, each with a way on."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import Field

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


@dataclass(frozen=True, kw_only=True)
class Range:
    low: int = 0
    high: int = 1
    inner: "Range | None" = None
    kinds: list[Literal["a", "b"]] | None = None
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 4

    def problems(self):
        return [] if self.low < self.high else [f"low={self.low}: expected below high"]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    count: int = 1
    one: Range = field(default_factory=Range)
    maybe: Range | None = None
    named: dict[str, Range] = field(default_factory=dict)
    listed: list[Range] = field(default_factory=list)


def test_problems_of_every_sound_section_are_told_beside_values_that_do_not_fit():
    """A broken section's own problems are not asked for, those of the sections in it are."""
    bad = {"low": 5}
    given = {
        "count": "many",
        "one": {"low": "x", "inner": bad},
        "maybe": bad,
        "named": {"a": bad, "b": {"low": 7, "high": "y"}},
        "listed": [{}, bad],
    }
    with pytest.raises(ValueError) as raised:
        from_config(Ranges, given, "top")
    told = str(raised.value).removeprefix("configuration: ").split("\n  ")
    assert sorted(line.partition(":")[0] for line in told) == [
        "top.count",
        "top.listed[1].low=5",
        "top.maybe.low=5",
        "top.named.a.low=5",
        "top.named.b.high",
        "top.one.inner.low=5",
        "top.one.low",
    ]
    with pytest.raises(ValueError, match=r"^configuration: count: 'x' does not fit; expected int$"):
        from_config(Ranges, {"count": "x", "maybe": None, "named": None}, "")


def test_one_choice_stands_for_a_list_of_one_and_other_lists_are_written_out():
    assert from_config(Range, {"kinds": "a"}, "").kinds == ["a"]
    assert from_config(Range, {"kinds": ["b", "a"]}, "").kinds == ["b", "a"]
    for given, sentence in (("c", r"kinds\[0\]='c': expected a or b"), (3, "a or b, or a list of")):
        with pytest.raises(ValueError, match=sentence):
            from_config(Range, {"kinds": given}, "")
    with pytest.raises(ValueError, match="width=6: expected a multiple of 4"):
        from_config(Range, {"width": 6}, "")
