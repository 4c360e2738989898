"""Sections of several kinds: a name chooses the dataclass, and keys of others are dropped or refused."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from recsys.config import from_config, read_job
from recsys.kinds import of_other_kinds
from recsys.overrides import typed


@dataclass(frozen=True, kw_only=True)
class Shape:
    KINDS: ClassVar[dict] = {}

    name: str = "circle"
    colour: str = "red"


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    radius: int = 1


@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    name: str = "square"
    width: int = 2
    label: str = ""


Shape.KINDS = {"circle": Circle, "square": Square}


@dataclass(frozen=True, kw_only=True)
class Outer:
    shape: Shape = field(default_factory=Circle)
    size: int = 0


def test_name_chooses_the_dataclass_and_no_name_the_default():
    assert from_config(Outer, {}, "") == Outer(shape=Circle())
    square = {"name": "square", "width": 5}
    assert from_config(Outer, {"shape": square}, "") == Outer(shape=Square(width=5))


def test_keys_that_only_another_kind_has_are_dropped():
    given = {"shape": {"name": "square", "radius": 7, "width": 3}}
    assert from_config(Outer, given, "") == Outer(shape=Square(width=3))


def test_keys_that_no_kind_has_and_unknown_names_are_refused_together():
    given = {"shape": {"name": "cone", "edges": 7}, "size": "x"}
    with pytest.raises(ValueError, match=r"shape.name='cone': expected one of circle, square") as e:
        from_config(Outer, given, "")
    assert "shape.edges: unknown key" in str(e.value) and "size: 'x' does not fit" in str(e.value)


def test_values_of_the_chosen_kind_are_checked():
    with pytest.raises(ValueError, match="shape.width: 'x' does not fit; expected int"):
        from_config(Outer, {"shape": {"name": "square", "width": "x"}}, "")


def test_key_of_another_kind_is_named_with_the_nearest_own_one():
    given = {"shape": {"name": "square"}}
    found = of_other_kinds(given, [Outer], ["shape.radius", "shape.width", "size"])
    sentence = "shape.radius: shape.name=square has no such key; it has colour, label, name, width"
    assert found == {"shape.radius": sentence}
    sentence = "shape.width: shape.name=circle has no such key; it has colour, name, radius"
    assert of_other_kinds({}, [Outer], ["shape.width"]) == {"shape.width": sentence}


def test_text_of_a_kind_is_typed_as_text():
    assert typed(["shape.label=1e3"], (Outer,), lambda _: False) == ["++shape.label='1e3'"]


def test_key_typed_for_another_kind_is_refused_by_the_job(monkeypatch):
    monkeypatch.setattr("recsys.config._typed_keys", lambda: ["shape.width"])
    with pytest.raises(ValueError, match="shape.width: shape.name=circle has no such key"):
        read_job({"shape": {"width": 3}}, (Outer,))
