"""Sections of several kinds: dataclasses that the key `name` of a configuration's section chooses from.

A dataclass names its kinds in `KINDS`, subclasses by name: {"fm": FactorizationMachineConfig, ...}.
Presets may set keys for whichever kind is chosen: those that only other kinds have are left out. Keys
given by hand are refused there, which `of_other_kinds` finds. Called by recsys/config.py and the studies.
"""

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def of_other_kinds(
    given: Mapping[str, Any], schemas: Sequence[type], keys: Iterable[str]
) -> dict[str, str]:
    """Return a text for every key that its section's chosen kind lacks and another kind has, by key.

    Args:
        given: the job's configuration.
        schemas: dataclasses of its top-level keys.
        keys: full names.
    """
    kinds = {s: (schema, of) for schema in schemas for s, of in _kinds_of(schema).items()}
    found = {}
    for key in keys:
        section, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        if section not in kinds:
            continue
        schema, of = kinds[section]
        kind = _chosen(schema, section, given.get(section))
        own = sorted(_names(kind))
        if name not in own and _has_field(of, name):
            near = difflib.get_close_matches(name, own, n=1, cutoff=0.5)
            there = f"the nearest is {section}.{near[0]}" if near else f"it has {', '.join(own)}"
            found[key] = f"{key}: {section}.name={kind.name} has no such key; {there}"
    return found


def unknown_kinds(schema: Any, given: Any, key: str) -> list[str]:
    """Return a text for every section of a dataclass whose name is none of its kinds'.

    Args:
        given: content of the dataclass.
        key: of the dataclass in the configuration; empty at the top.
    """
    problems = []
    for section, kinds in _kinds_of(schema).items():
        content = given.get(section) if isinstance(given, dict) else None
        if isinstance(content, dict) and "name" in content and content["name"] not in list(kinds):
            where = ".".join(part for part in (key, section, "name") if part)
            problems.append(f"{where}={content['name']!r}: expected one of {', '.join(kinds)}")
    return problems


def with_chosen_kinds(schema: Any, given: Any) -> Any:
    """Return a dataclass in which every section has its chosen kind; drop other kinds' keys from `given`.

    A dataclass without such sections is itself.
    """
    chosen = []
    for section, kinds in _kinds_of(schema).items():
        content = given.get(section) if isinstance(given, dict) else None
        kind = _chosen(schema, section, content)
        chosen.append((section, kind))
        if isinstance(content, dict):
            own = _names(kind)
            for name in [n for n in content if n not in own and _has_field(kinds, n)]:
                del content[name]
    return _of_kinds(schema, tuple(chosen)) if chosen else schema


@functools.cache
def _of_kinds(schema: Any, chosen: tuple[tuple[str, Any], ...]) -> Any:
    fields = [(section, kind, dataclasses.field(default_factory=kind)) for section, kind in chosen]
    return dataclasses.make_dataclass(
        schema.__name__, fields, bases=(schema,), frozen=True, kw_only=True
    )


@functools.cache
def _kinds_of(schema: Any) -> dict[str, Mapping[str, Any]]:
    """Return the kinds of a dataclass's sections, by section and name."""
    hints = typing.get_type_hints(schema)
    found = {section: getattr(hint, "KINDS", None) for section, hint in hints.items()}
    return {section: kinds for section, kinds in found.items() if kinds}


def _names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _has_field(kinds: Mapping[str, Any], name: str) -> bool:
    return any(name in _names(kind) for kind in kinds.values())


def _chosen(schema: Any, section: str, given: Any) -> Any:
    """Return the kind that a section's `name` chooses; the default's for no name or an unknown one."""
    (spec,) = (field for field in dataclasses.fields(schema) if field.name == section)
    name = given.get("name") if isinstance(given, dict) else None
    return _kinds_of(schema)[section].get(str(name), spec.default_factory)
