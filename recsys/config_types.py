"""Types of a configuration's keys: found by the path of a key, and written for people.

In: dataclasses whose fields have types, choices and bounds. Out: types and texts. Called by
recsys/config.py, recsys/config_keys.py and recsys/overrides.py.
"""

import dataclasses
import functools
import typing
from collections.abc import Sequence
from typing import Any

hints_of = functools.cache(typing.get_type_hints)
"""Types of the fields of a dataclass, by name and without bounds."""


def type_at(hint: Any, path: Sequence[str | int]) -> Any:
    """Return the type of what is at a path of keys and indices below a type.

    `Any` where the type does not say, also for a key that a dataclass does not have.
    """
    for name in path:
        holder: Any = without_none(hint)
        if dataclasses.is_dataclass(holder):
            kinds = [hints_of(kind) for kind in (holder, *getattr(holder, "KINDS", {}).values())]
            hint = next((hints[str(name)] for hints in kinds if str(name) in hints), Any)
        else:
            in_holder = typing.get_origin(holder) in (dict, list)
            hint = typing.get_args(holder)[-1] if in_holder else Any
    return hint


def without_none(hint: Any) -> Any:
    """Return X of the type `X | None`; any other type as it is."""
    of = typing.get_args(hint)
    return next(h for h in of if h is not type(None)) if type(None) in of else hint


BOUNDS = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "multiple_of": "a multiple of {multiple_of}",
}
"""Words for a bound, by pydantic's name of the error."""


def type_text(hint: Any) -> str:
    """Return a type as people write it: text, int, list[str], its choices."""
    if hint is str:
        return "text"
    if typing.get_origin(hint) is typing.Literal:
        *others, last = map(str, typing.get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    if typing.get_origin(hint) is list:
        (of,) = typing.get_args(hint)
        if typing.get_origin(of) is typing.Literal:
            return f"{type_text(of)}, or a list of them"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def bound_texts(hint: Any) -> list[str]:
    """Return the bounds that `Annotated[..., Field(ge=1)]` states, in words; none of another type."""
    stated = [bound for field in getattr(hint, "__metadata__", ()) for bound in field.metadata]
    words = {word[word.index("{") + 1 : word.index("}")]: word for word in BOUNDS.values()}
    return [
        word.format(**{name: getattr(bound, name)})
        for bound in stated
        for name, word in words.items()
        if hasattr(bound, name)
    ]
