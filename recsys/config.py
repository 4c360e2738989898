"""From a Hydra config node to a frozen dataclass: the border where configuration ends.

Every component keeps a frozen dataclass beside it; builders in `launch/` call `from_config` and
hand flat arguments on. Nothing below `launch/` sees a DictConfig.
"""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recsys.schema import fits

T = TypeVar("T")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
    if not fits(hint, checked):
        problems.append(f"{key}: {given!r} does not fit; expected {_shown(hint)}")
        return None
    return checked


def _shown(hint: Any) -> str:
    """Return a type as people write it: list[int], not <class 'list'>."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def check_config_folder(folder: Path) -> None:
    """Refuse YAML files that reach beyond their group: they may come from a stranger.

    Hydra makes objects of any class where its own section says so (callbacks, launchers, log
    handlers), and interpolations read the environment. Recipes and presets need neither.

    Args:
        folder: its files are looked at; those at the top are the jobs' own and may have a hydra section.

    Raises:
        ValueError: names every file and key.
    """
    problems = []
    for path in sorted(folder.rglob("*.yaml")):
        if path.parent != folder:
            problems += [f"{path}: {problem}" for problem in _reaching_beyond(path)]
    if problems:
        raise ValueError("configuration: " + "\n  ".join(problems))


def _reaching_beyond(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        nodes = [yaml.load(text, Loader=_Loader)]  # noqa: S506 -- it is the safe one
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        return [f"not plain YAML ({str(error).splitlines()[0]})"]
    package = re.search(r"^\s*#\s*@package\s+(\S*hydra\S*)", text, flags=re.MULTILINE)
    problems = [f"package {package[1]} is Hydra's own"] if package else []
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += [*node.keys(), *node.values()]
            problems += [
                f"key {name!r}: only the jobs' own files may configure Hydra"
                for name in map(str, node)
                if "_target_" in name or "hydra" in name.lower()
            ]
            entries = node.get("defaults")
            if isinstance(entries, list):
                problems += [
                    f"defaults {entry!r}: only the jobs' own files may configure Hydra"
                    for entry in entries
                    if isinstance(entry, str) and "hydra" in entry.lower()
                ]
        elif isinstance(node, list):
            nodes += node
        elif isinstance(node, str) and "${oc.env" in node.replace(" ", ""):
            problems.append(f"{node!r}: reads the environment; give the value on the command line")
    return problems


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
