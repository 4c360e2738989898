"""From a Hydra config node to a frozen dataclass: the border where configuration ends.

Every component keeps a frozen dataclass beside it; builders in `launch/` call `from_config` and
hand flat arguments on. Nothing below `launch/` sees a DictConfig.
"""

import dataclasses
import typing
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def from_config(schema: type[T], node: Any, key: str) -> T:
    """Return `schema(**node)` after a strict merge: unknown keys and wrong types are errors.

    Args:
        schema: a dataclass whose defaults `node` overrides; its fields may be dataclasses, and
            dicts of dataclasses, to any depth.
        node: a DictConfig, a dict, or None (all defaults).
        key: where the node stands in the config ("train.optim"); used in messages only.

    Raises:
        ValueError: lists every offending key at once, with the allowed ones.
    """
    problems: list[str] = []
    built = _build(schema, plain(node), key, problems)
    if problems:
        raise ValueError("configuration: " + "\n  ".join(problems))
    return built


def _build(schema: Any, given: Any, key: str, problems: list[str]) -> Any:
    given = {} if given is None else given
    if not isinstance(given, dict):
        problems.append(f"{key}: {given!r} given; expected keys and values")
        return None
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for name in given:
        if name not in fields:
            problems.append(
                f"{key}.{name}: unknown key; expected one of {', '.join(sorted(fields))}"
            )
    values = {}
    num_before = len(problems)
    for name, spec in fields.items():
        missing = spec.default is dataclasses.MISSING
        missing = missing and spec.default_factory is dataclasses.MISSING
        if name in given:
            values[name] = _value(hints[name], given[name], f"{key}.{name}", problems)
        elif missing:
            problems.append(f"{key}.{name}: missing, a value is required")
    return schema(**values) if len(problems) == num_before else None


def _value(hint: Any, given: Any, key: str, problems: list[str]) -> Any:
    """Return `given` as the type `hint` says, noting what does not fit."""
    inner = hint
    if type(None) in typing.get_args(hint):  # "X | None"
        if given is None:
            return None
        inner = next(h for h in typing.get_args(hint) if h is not type(None))
    if dataclasses.is_dataclass(inner):
        return _build(inner, given, key, problems)
    of = typing.get_args(inner)
    if typing.get_origin(inner) is dict and dataclasses.is_dataclass(of[1]):
        given = {} if given is None else given
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            problems.append(f"{key}: {given!r} given; expected names and, below each, its keys")
            return None
        return {k: _build(of[1], v, f"{key}.{k}", problems) for k, v in given.items()}
    if typing.get_origin(inner) is list and dataclasses.is_dataclass(of[0]):
        given = [] if given is None else given
        if not isinstance(given, list):
            problems.append(f"{key}: {given!r} given; expected a list")
            return None
        return [_build(of[0], v, f"{key}[{i}]", problems) for i, v in enumerate(given)]
    # OmegaConf checks and converts everything else; it wants a field to hang the type on.
    holder = dataclasses.make_dataclass("holder", [("value", hint)])
    try:
        checked = plain(OmegaConf.merge(OmegaConf.structured(holder), {"value": given}))["value"]
    except (OmegaConfBaseException, ValueError) as error:
        problems.append(f"{key}: {given!r} does not fit ({str(error).splitlines()[0]})")
        return None
    # It lets lists and dictionaries through where their elements should be plain values.
    if not _fits(hint, checked):
        problems.append(f"{key}: {given!r} does not fit; expected {_shown(hint)}")
        return None
    return checked


def _fits(hint: Any, value: Any) -> bool:
    """Return whether a plain value is of the type `hint` says, elements included."""
    of, origin = typing.get_args(hint), typing.get_origin(hint)
    if hint is Any:
        return True
    if type(None) in of:
        return value is None or any(_fits(h, value) for h in of if h is not type(None))
    if origin is list:
        return isinstance(value, list) and all(_fits(of[0], element) for element in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(name, of[0]) and _fits(of[1], element) for name, element in value.items()
        )
    return isinstance(value, int | float if hint is float else hint)


def _shown(hint: Any) -> str:
    """Return a type as people write it: list[int], not <class 'list'>."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def plain(node: Any) -> Any:
    """Return a DictConfig or ListConfig as plain dicts and lists with interpolations resolved.

    Raises:
        ValueError: a value marked as required (???) is missing.
    """
    if isinstance(node, DictConfig | ListConfig):
        try:
            return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ValueError(f"configuration: {str(error).splitlines()[0]}") from error
    return node
