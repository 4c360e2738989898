"""Keys of a configuration, for people: name, type, default and text of every field of a dataclass.

In: dataclasses of a job's top-level keys. Out: one record for each key. Called by
launch/doctor.py (`config=train`).
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.config_types import bound_texts, type_text, without_none


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a job."""

    name: str
    """Its full name; `<name>` stands for the names of a dictionary, [0] for the entries of a list."""
    type: str
    """Its type, with bounds."""
    default: str
    """Its default as YAML; empty where a value is required."""
    text: str
    """Its docstring on one line."""


def keys_of(schemas: Sequence[type], above: str = "") -> Iterator[Key]:
    """Yield every key of some dataclasses, in the order of their fields, those within others too."""
    for schema in schemas:
        hints = typing.get_type_hints(schema, include_extras=True)
        texts = _field_texts(schema)
        choices = getattr(schema, "CHOICES", {})
        for field in dataclasses.fields(schema):
            name = f"{above}{field.name}"
            section, suffix = _section_of(hints[field.name])
            if suffix or section is None or _default(field) is None:
                yield Key(
                    name=name,
                    type=_type(hints[field.name], choices.get(field.name, ())),
                    default=_written(field),
                    text=texts[field.name],
                )
            if section is not None:
                yield from keys_of([section], f"{name}{suffix}.")
                yield from _keys_of_kinds(section, f"{name}{suffix}.")


def _keys_of_kinds(section: type, above: str) -> Iterator[Key]:
    """Yield the keys of a section's kinds beside or instead of its own, with the names of the kinds."""
    shared = list(keys_of([section], above))
    names: dict[Key, list[str]] = {}
    for name, kind in getattr(section, "KINDS", {}).items():
        for key in keys_of([kind], above):
            if key not in shared and key.name != f"{above}name":
                names.setdefault(key, []).append(name)
    for key, kinds in sorted(names.items(), key=lambda item: item[0].name):
        yield dataclasses.replace(key, type=f"{key.type}, with {above}name={', '.join(kinds)}")


def _section_of(hint: Any) -> tuple[type | None, str]:
    """Return the dataclass that a field holds, and how its entries are named within the field."""
    inner = without_none(hint)
    if dataclasses.is_dataclass(inner):
        return typing.cast(type, inner), ""
    origin, of = typing.get_origin(inner), typing.get_args(inner)
    if origin in (dict, list) and dataclasses.is_dataclass(of[-1]):
        return typing.cast(type, of[-1]), ".<name>" if origin is dict else "[0]"
    return None, ""


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    factory = field.default_factory
    return dataclasses.MISSING if factory is dataclasses.MISSING else factory()


def _written(field: "dataclasses.Field[Any]") -> str:
    default = _default(field)
    if default is dataclasses.MISSING:
        return ""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return str(default) if default != "" else "''"


def _type(hint: Any, choices: Sequence[str]) -> str:
    if choices:
        return " or ".join(", ".join(choices).rsplit(", ", 1))
    given = without_none(hint)
    bare, bounds = _without_bounds(given), bound_texts(given)
    origin, of = typing.get_origin(bare), typing.get_args(bare)
    if origin in (dict, list):
        bounds += [f"each {bound}" for bound in bound_texts(of[-1])]
        bare = origin[(*of[:-1], _without_bounds(of[-1]))]
    section = _section_of(bare)[0]
    if section is not None:
        described = (
            "keys and values" if dataclasses.is_dataclass(bare) else "entries of keys and values"
        )
    else:
        described = type_text(bare)
    return ", ".join([described, *bounds]) + ("" if given is hint else " or null")


def _without_bounds(hint: Any) -> Any:
    """Return X of the type `Annotated[X, ...]`; any other type as it is."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


@functools.cache
def _field_texts(schema: type) -> dict[str, str]:
    """Return the docstring below every field of a dataclass and its bases, on one line, by name."""
    texts = {}
    for base in reversed([b for b in schema.__mro__ if dataclasses.is_dataclass(b)]):
        texts.update(_own_texts(base))
    return texts


def _own_texts(schema: type) -> dict[str, str]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(node, ast.ClassDef), schema
    texts = {}
    for field, below in zip(node.body, node.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = str(below.value.value) if is_text else ""  # type: ignore[attr-defined]
            texts[field.target.id] = " ".join(text.split())
    return texts
