"""Configuration: from a Hydra config node to frozen, checked dataclasses.

In: a DictConfig or plain dictionaries. Out: objects of the dataclasses that the
components keep, or one error with every problem. Called by the jobs in `launch/`; nothing below sees a
DictConfig.
"""

import copy
import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from recsys.config_types import BOUNDS, hints_of, type_at, type_text, without_none
from recsys.errors import UserError
from recsys.kinds import of_other_kinds, unknown_kinds, with_chosen_kinds

T = TypeVar("T")


def from_config(
    schema: type[T], node: Any, key: str, base: T | None = None, *, stored: bool = False
) -> T:
    """Return `schema(**node)`, checked: unknown keys, wrong types and values out of bounds are errors.

    pydantic checks types and bounds (`Annotated[int, Field(ge=1)]`). A class may have
    - `problems()`, a method that returns a text for everything else that is wrong, such as keys that
      contradict each other; each text begins with the field's name
    - `SHORT_FORM = "file"`: a bare value of that field's type stands for the whole section (plan=auto
      for plan.file=auto)
    - `REMOVED`, a mapping of each removed key to its off value and a text that says what does its job
      now: {"old_switch": (False, "use other_key=x")}
    - `KINDS`, subclasses by name, of which the section's key `name` chooses one (recsys.kinds).

    Args:
        schema: a dataclass whose defaults `node` overrides; its fields may be dataclasses, and
            dicts and lists of dataclasses, to any depth.
        node: a DictConfig, a dict, or None (all defaults).
        key: of the node in the config ("train.optim"), empty at the top; used in messages only.
        base: holds the values of keys that are not given, in place of the defaults.
        stored: an earlier version may have written `node`: a removed key at its off value is dropped.

    Raises:
        UserError: lists every offending key at once, with the allowed ones.
    """
    content = plain(node)
    if stored:
        content = _without_removed(schema, content)
    if base is not None and isinstance(content, dict):
        content = dataclasses.asdict(typing.cast(Any, base)) | content
    built, problems = _read(schema, content, key)
    _refuse(problems)
    return typing.cast(T, built)


def read_job(node: DictConfig, schemas: Sequence[type]) -> list[Any]:
    """Return the whole configuration of a job, one object for each dataclass of its top-level keys.

    Raises:
        UserError: every problem of every key at once.
    """
    given = plain(node, allow_missing=True)
    known = {f.name for schema in schemas for f in dataclasses.fields(schema)}
    problems = [unknown_key(name, "", schemas) for name in given if name not in known]
    problems += of_other_kinds(given, schemas, _typed_keys()).values()
    read = []
    for schema in schemas:
        names = {f.name for f in dataclasses.fields(schema)}
        own = {name: value for name, value in given.items() if name in names}
        built, found = _read(schema, own, "")
        read.append(built)
        problems += found
    _refuse(problems)
    return read


def check(built: Any, key: str) -> None:
    """Raise UserError for everything that the `problems` of a dataclass, at any depth, complain of.

    Args:
        key: of the dataclass in the config; used in messages only.
    """
    _refuse(_problems_of(built, key))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def _read(schema: Any, given: Any, key: str) -> tuple[Any, list[str]]:
    """Return a checked dataclass, None where it cannot be built, and the problems of its values."""
    tree = [{} if given is None else copy.deepcopy(given)]
    if problems := list(_unreadable(tree[0], key)):
        return None, problems
    general, unknown = schema, unknown_kinds(schema, tree[0], key)
    schema = with_chosen_kinds(schema, tree[0])
    adapter = _adapter(schema)
    mended = True
    while mended:
        try:
            (built,) = adapter.validate_json(json.dumps(tree))
            built = general(**{f.name: getattr(built, f.name) for f in dataclasses.fields(general)})
            return built, unknown + _problems_of(built, key)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        mended = bool(sum(_mend(schema, tree, e["loc"], e["type"]) for e in errors))
    problems = unknown + [_sentence(schema, e, key) for e in errors]
    paths = [e["loc"][1:] for e in errors]
    broken = {path[:depth] for path in paths for depth in range(len(path) + 1)}
    return None, problems + list(_problems_beside(schema, tree[0], key, broken))


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    """Return the reader of lists of a dataclass, which takes milliseconds to make.

    In JSON mode nested dictionaries are read as dataclasses, and yet every type is strict.
    """
    return TypeAdapter(list[schema], config=ConfigDict(extra="forbid", strict=True))


def _problems_beside(
    hint: Any,
    given: Any,
    key: str,
    broken: set[tuple[str | int, ...]],
    at: tuple[str | int, ...] = (),
) -> Iterator[str]:
    """Yield the problems of every dataclass in which all types and bounds are kept.

    Args:
        given: content of a type, in which some values are broken.
        broken: paths of these values, and of everything that they are in.
        at: path of `given`.
    """
    hint = without_none(hint)
    if given is None:
        return
    if dataclasses.is_dataclass(hint) and at not in broken:
        yield from _read(hint, given, key)[1]
    elif isinstance(given, dict):
        for name, value in given.items():
            below = _below(key, name)
            yield from _problems_beside(type_at(hint, [name]), value, below, broken, (*at, name))
    elif isinstance(given, list):
        for i, value in enumerate(given):
            yield from _problems_beside(type_at(hint, [i]), value, f"{key}[{i}]", broken, (*at, i))


def _unreadable(given: Any, key: str) -> Iterator[str]:
    """Yield a text for every name and value that no configuration may hold, at any depth."""
    if isinstance(given, dict):
        for name, value in given.items():
            if not isinstance(name, str):
                quote = _quote_hint(name) or "; write it between quotes"
                yield f"{key or name}: the name {name!r} is no text{quote}"
            yield from _unreadable(value, _below(key, name))
    elif isinstance(given, list):
        for index, value in enumerate(given):
            yield from _unreadable(value, f"{key}[{index}]")
    elif isinstance(given, str):
        if not given.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in given):
            yield f"{key}: {given!r} does not fit; expected text in UTF-8"
    elif not isinstance(given, bool | int | float | None):
        yield f"{key}: {given!r} does not fit; YAML takes it for no text: write it between quotes"


def _problems_of(built: Any, key: str) -> list[str]:
    """Return what the `problems` of a value and of everything in it complain of, with full keys."""
    if isinstance(built, dict):
        return [p for name, value in built.items() for p in _problems_of(value, _below(key, name))]
    if isinstance(built, list):
        return [p for i, value in enumerate(built) for p in _problems_of(value, f"{key}[{i}]")]
    if not dataclasses.is_dataclass(built):
        return []
    problems = []
    for spec in dataclasses.fields(built):
        problems += _problems_of(getattr(built, spec.name), _below(key, spec.name))
    if hasattr(built, "problems"):
        problems += [_below(key, problem) for problem in built.problems()]
    return problems


def _mend(schema: Any, tree: list[Any], loc: Sequence[Any], error: str) -> bool:
    """Put a value of the right type in place of one that YAML wrote in another way; False: none."""
    holder = functools.reduce(lambda node, name: node[name], loc[:-1], tree)
    if error not in _MENDED or loc[-1] == "[key]":
        return False
    value, hint = holder[loc[-1]], without_none(type_at(schema, loc[1:]))
    try:
        holder[loc[-1]] = _MENDED[error](value, hint)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _section(value: Any, hint: Any) -> dict[str, Any]:
    """Return {} for a section without content, and a section by its short form."""
    if value is None:
        return {}
    short = getattr(hint, "SHORT_FORM", None)
    if short is None or type(value) is not hints_of(hint)[short]:
        raise TypeError
    return {short: value}


def _empty(value: Any, hint: Any) -> Any:
    """Return an empty list or dictionary of dataclasses where none is given."""
    if value is not None or not dataclasses.is_dataclass(typing.get_args(hint)[-1]):
        raise TypeError
    return typing.get_origin(hint)()


def _list(value: Any, hint: Any) -> Any:
    """Return a list of one choice where a choice is given for a list of choices."""
    of_choices = typing.get_origin(typing.get_args(hint)[0]) is typing.Literal
    return [value] if of_choices and isinstance(value, str) else _empty(value, hint)


def _text(value: Any, _: Any) -> str:
    # YAML has read it: 1e3 or no cannot be known any more from 1000.0 or False.
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return str(value)


def _integer(value: Any, _: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):  # 2e9
        raise TypeError
    return int(value)


def _number(value: Any, _: Any) -> float:
    if not isinstance(value, str):
        raise TypeError
    return float(value)


def _truth(value: Any, _: Any) -> bool:
    if str(value).lower() not in ("true", "false", "1", "0"):
        raise TypeError
    return str(value).lower() in ("true", "1")


_MENDED: dict[str, Callable[[Any, Any], Any]] = {
    "dataclass_type": _section,
    "dict_type": _empty,
    "list_type": _list,
    "string_type": _text,
    "int_type": _integer,
    "float_type": _number,
    "bool_type": _truth,
}
"""What YAML and people write in another way than JSON, by pydantic's name of the error."""


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _sentence(schema: Any, error: Any, key: str) -> str:
    """Return one problem that pydantic found, with the full name of its key."""
    loc, given, kind, context = (
        error["loc"][1:],
        error["input"],
        error["type"],
        error.get("ctx", {}),
    )
    for name in loc:
        key = f"{key}[{name}]" if isinstance(name, int) else _below(key, name)
    if kind == "unexpected_keyword_argument":
        section = key.removesuffix(str(loc[-1])).removesuffix(".")
        return unknown_key(loc[-1], section, [without_none(type_at(schema, loc[:-1]))])
    if kind == "missing":
        return f"{key}: missing, a value is required"
    hint = without_none(type_at(schema, loc))
    if kind == "dataclass_type":
        short = getattr(hint, "SHORT_FORM", None)
        or_short = f", or a value of {key}.{short}" if short else ""
        return f"{key}: {given!r} given; expected keys and values{or_short}"
    if kind == "dict_type":
        return f"{key}: {given!r} given; expected names and, for each, its value"
    if kind == "list_type":
        return f"{key}: {given!r} given; expected {type_text(hint)}"
    if kind in BOUNDS:
        bound = {n: f"{b:g}" if isinstance(b, float) else b for n, b in context.items()}
        return f"{key}={given}: expected {BOUNDS[kind].format(**bound)}"
    expected = type_text(hint)
    if kind == "literal_error" and isinstance(given, str):
        return f"{key}={given!r}: expected {expected}"
    return f"{key}: {given!r} does not fit; expected {expected}{_quote_hint(given)}"


def _quote_hint(given: Any) -> str:
    """Return advice for a value or name that is text only between quotes; "" for any other."""
    values = list(given) if isinstance(given, dict | list) else [given]
    if any(isinstance(value, bool) for value in values):
        return "; unquoted, YAML takes yes, no, on, off, true and false for booleans: write 'no'"
    if any(isinstance(value, float) for value in values):
        return "; unquoted, YAML takes it for a number: write it between quotes"
    return ""


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


def _typed_keys() -> list[str]:
    """Return the full names of the keys that were given to this job by hand; none outside of a job."""
    if not HydraConfig.initialized():
        return []
    return [key_of(argument) for argument in HydraConfig.get().overrides.task]


def key_of(argument: str) -> str:
    """Return the full name of the key that an override gives a value to."""
    return argument.lstrip("+").partition("=")[0]


def _without_removed(schema: Any, given: Any) -> Any:
    """Return a stored section without the removed keys that have their off values, at any depth."""
    if not isinstance(given, dict):
        return given
    hints, removed = hints_of(schema), getattr(schema, "REMOVED", {})
    kept = {n: v for n, v in given.items() if n not in removed or v != removed[n][0]}
    return {
        name: _without_removed(hints[name], value)
        if dataclasses.is_dataclass(hints.get(name))
        else value
        for name, value in kept.items()
    }


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
