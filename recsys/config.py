"""From a Hydra config node to a frozen dataclass: the border where configuration ends.

Every component keeps a frozen dataclass beside it; builders in `launch/` call `from_config` and
hand flat arguments on. Nothing below `launch/` sees a DictConfig.
"""

import dataclasses
import difflib
import functools
import os
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recsys.errors import UserError

T = TypeVar("T")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 50
"""Of lists and mappings in each other, in a YAML file."""
_REFERENCE = re.compile(r"\$\{(workspace|data\.name)\}")
_MAX_REFERENCES = 3
"""In one text; what two names can make of it stays short."""


def from_config(
    schema: type[T], node: Any, key: str, base: T | None = None, *, stored: bool = False
) -> T:
    """Return `schema(**node)` after a strict merge: unknown keys and wrong types are errors.

    A section may have a short form: with `SHORT_FORM = "file"` in its dataclass, a bare value of
    that field's type stands for the whole section (plan=auto for plan.file=auto).

    A class names its removed keys in `REMOVED`, a mapping of each name to its off value and a text that
    says what does its job now: {"old_switch": (False, "use other_key=x")}.

    Args:
        schema: a dataclass whose defaults `node` overrides; its fields may be dataclasses, and
            dicts and lists of dataclasses, to any depth.
        node: a DictConfig, a dict, or None (all defaults).
        key: where the node stands in the config ("train.optim"), empty at the top; used in messages
            only.
        base: holds the values of keys that are not given, in place of the defaults.
        stored: an earlier version may have written `node`: a removed key at its off value is dropped.

    Raises:
        UserError: lists every offending key at once, with the allowed ones.
    """
    problems: list[str] = []
    content = plain(node)
    built = _build(
        schema, _without_removed(schema, content) if stored else content, key, problems, base
    )
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
    return built


def read_job(node: DictConfig, schemas: Sequence[type]) -> list[Any]:
    """Return the whole configuration of a job, one object for each dataclass of its top-level keys.

    Raises:
        UserError: every problem of every key at once.
    """
    given = plain(node, allow_missing=True)
    problems: list[str] = []
    known = {f.name for schema in schemas for f in dataclasses.fields(schema)}
    problems += [unknown_key(name, "", schemas) for name in given if name not in known]
    built = []
    for schema in schemas:
        names = {f.name for f in dataclasses.fields(schema)}
        own = {name: value for name, value in given.items() if name in names}
        built.append(_build(schema, own, "", problems, None))
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
    return built


def _build(schema: Any, given: Any, key: str, problems: list[str], base: Any) -> Any:
    given = {} if given is None else given
    hints = _hints(schema)
    short = getattr(schema, "SHORT_FORM", None)
    if short is not None and type(given) is hints[short]:
        given = {short: given}
    if not isinstance(given, dict):
        or_short = f", or a value of {key}.{short}" if short else ""
        problems.append(f"{key}: {given!r} given; expected keys and values{or_short}")
        return None
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for name in given:
        if name not in fields:
            problems.append(unknown_key(name, key, [schema]))
    values = {}
    num_before = len(problems)
    for name, spec in fields.items():
        missing = spec.default is dataclasses.MISSING
        missing = missing and spec.default_factory is dataclasses.MISSING
        if name in given:
            values[name] = _value(hints[name], given[name], _below(key, name), problems)
        elif base is not None:
            values[name] = getattr(base, name)
        elif missing:
            problems.append(f"{_below(key, name)}: missing, a value is required")
    return schema(**values) if len(problems) == num_before else None


_hints = functools.cache(typing.get_type_hints)


def unknown_key(name: Any, key: str, schemas: Sequence[type]) -> str:
    """Return the sentence that refuses a key: what does its job now, or the keys that there are.

    Args:
        name: the key that no schema has.
        key: of the section it was given in; empty at the top.
        schemas: dataclasses of that section.
    """
    for schema in schemas:
        if name in (removed := getattr(schema, "REMOVED", {})):
            return f"{_below(key, name)}: was removed; {removed[name][1]}"
    known = sorted({f.name for schema in schemas for f in dataclasses.fields(schema)})
    near = difflib.get_close_matches(str(name), known, n=1)
    meant = f" (did you mean {_below(key, near[0])}?)" if near else ""
    return f"{_below(key, name)}: unknown key; expected one of {', '.join(known)}{meant}"


def _without_removed(schema: Any, given: Any) -> Any:
    """Return a stored section without the removed keys that have their off values, at any depth."""
    if not isinstance(given, dict):
        return given
    hints, removed = _hints(schema), getattr(schema, "REMOVED", {})
    kept = {n: v for n, v in given.items() if n not in removed or v != removed[n][0]}
    return {
        name: _without_removed(hints[name], value)
        if dataclasses.is_dataclass(hints.get(name))
        else value
        for name, value in kept.items()
    }


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _value(hint: Any, given: Any, key: str, problems: list[str]) -> Any:
    """Return `given` as the type `hint` says, noting what does not fit."""
    inner = hint
    if type(None) in typing.get_args(hint):  # "X | None"
        if given is None:
            return None
        inner = next(h for h in typing.get_args(hint) if h is not type(None))
    if dataclasses.is_dataclass(inner):
        return _build(inner, given, key, problems, None)
    of, origin = typing.get_args(inner), typing.get_origin(inner)
    if origin in (list, dict) and given is None and dataclasses.is_dataclass(of[-1]):
        return origin()
    if origin is dict:
        if not isinstance(given, dict):
            problems.append(f"{key}: {given!r} given; expected names and, for each, its value")
            return None
        for name in given:
            if not isinstance(name, str):
                hint = _quote_hint(name) or "; write it between quotes"
                problems.append(f"{key}: the name {name!r} is no text{hint}")
        return {k: _value(of[1], v, f"{key}.{k}", problems) for k, v in given.items()}
    if origin is list:
        if not isinstance(given, list):
            problems.append(f"{key}: {given!r} given; expected {_shown(hint)}")
            return None
        return [_value(of[0], v, f"{key}[{i}]", problems) for i, v in enumerate(given)]
    if inner is str:
        # YAML has read it: 1e3 or no cannot be known any more from 1000.0 or False.
        if isinstance(given, bool) or not isinstance(given, str | int):
            problems.append(f"{key}: {given!r} does not fit; expected text{_quote_hint(given)}")
        return str(given)
    if inner in _CONVERT:
        try:
            return _CONVERT[inner](given)
        except (ValueError, TypeError, OverflowError):
            problems.append(f"{key}: {given!r} does not fit; expected {_shown(hint)}")
            return None
    assert inner is Any, f"{key}: no values of type {hint} are read here"
    return given


def _integer(given: Any) -> int:
    if isinstance(given, float) and given.is_integer():  # 2e9
        return int(given)
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise TypeError
    return int(given)


def _number(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise TypeError
    return float(given)


def _truth(given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if str(given).lower() in ("true", "false", "1", "0"):
        return str(given).lower() in ("true", "1")
    raise TypeError


_CONVERT: dict[Any, Callable[[Any], Any]] = {int: _integer, float: _number, bool: _truth}


def _quote_hint(given: Any) -> str:
    """Return advice for a value or name that is text only between quotes; "" for any other."""
    values = list(given) if isinstance(given, dict | list) else [given]
    if any(isinstance(value, bool) for value in values):
        return "; unquoted, YAML takes yes, no, on, off, true and false for booleans: write 'no'"
    if any(isinstance(value, float) for value in values):
        return "; unquoted, YAML takes it for a number: write it between quotes"
    return ""


def _shown(hint: Any) -> str:
    """Return a type as people write it: list[int], not <class 'list'>."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def check_config_folder(folder: Path, *, is_ours: bool = False) -> None:
    """Refuse YAML files that reach beyond their group: they may come from a stranger.

    Hydra makes objects of any class where its own section says so (callbacks, launchers, log
    handlers), and interpolations read the environment. Recipes and presets need neither: they may
    refer to ${workspace} and ${data.name} and to nothing else.

    Args:
        folder: its files are looked at, also behind symbolic links.
        is_ours: files at the top are the jobs' own and may have a hydra section.

    Raises:
        UserError: names every file and key.
    """
    problems = []
    for path in _yaml_files(folder):
        if not (is_ours and path.parent == folder):
            problems += [f"{path}: {problem}" for problem in _reaching_beyond(path)]
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def _yaml_files(folder: Path) -> Iterator[Path]:
    """Yield the YAML files below a folder, behind links too; every real folder once."""
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(
            f for f in folders if os.path.realpath(os.path.join(place, f)) not in seen
        )
        seen |= {os.path.realpath(os.path.join(place, f)) for f in folders}
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".yaml"))


def _reaching_beyond(path: Path) -> list[str]:
    try:
        nodes = [read_yaml(path)]
    except UserError as error:
        return [str(error).removeprefix(f"{path}: ")]
    text = path.read_text(encoding="utf-8")
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
        elif isinstance(node, str):
            rest, num_references = _REFERENCE.subn("", node)
            if "${" in rest or num_references > _MAX_REFERENCES:
                problems.append(
                    f"{node[:200]!r}: may refer to ${{workspace}} and ${{data.name}} only, and at "
                    f"most {_MAX_REFERENCES} times; give other values on the command line"
                )
    return problems


def read_yaml(path: Path) -> Any:
    """Return the content of a file of plain YAML, whoever wrote it.

    Raises:
        UserError: no YAML, no UTF-8, nested too deep, or aliases (*x) that repeat far more than
            stands in the file; nothing is expanded before.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if problem := _unbounded(text):
            raise UserError(f"{path}: {problem}")
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- it is the safe one
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not plain YAML ({str(error).splitlines()[0]})") from error


def _unbounded(text: str) -> str | None:
    """Return what makes a YAML text too large to read; None where it is not."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the total before
    total = num_events = 0
    for event in yaml.parse(text, Loader=_Loader):
        num_events += 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                return f"alias *{event.anchor}: stands inside of itself or before its anchor"
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
        if len(open_nodes) > _MAX_DEPTH:
            return f"more than {_MAX_DEPTH} lists and mappings in each other"
        if total > 1_000 + 2 * num_events:
            return "aliases (*name) that repeat far more than stands in the file; write values out"
    return None


def plain(node: Any, allow_missing: bool = False) -> Any:
    """Return a DictConfig or ListConfig as plain dicts and lists with interpolations resolved.

    Args:
        allow_missing: leave out keys marked as required (???) that have no value.

    Raises:
        UserError: a value marked as required (???) is missing.
    """
    if not isinstance(node, DictConfig | ListConfig):
        return node
    try:
        content = OmegaConf.to_container(node, resolve=True, throw_on_missing=not allow_missing)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from error
    return _without_missing(content) if allow_missing else content


def _without_missing(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _without_missing(v) for k, v in content.items() if v != "???"}
    if isinstance(content, list):
        return [_without_missing(v) for v in content]
    return content
