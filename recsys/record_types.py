"""Types of records: whether the fields of a dataclass hold what their types say.

In: records made of JSON that somebody may have edited. Out: a sentence for every field. Called by the
readers of manifests.
"""

import dataclasses
import typing
from typing import Any


def fits(hint: Any, value: Any) -> bool:
    """Return whether a plain value or record is of the type `hint` says, what it holds included."""
    of, origin = typing.get_args(hint), typing.get_origin(hint)
    if hint is Any:
        return True
    if type(None) in of:
        return value is None or any(fits(h, value) for h in of if h is not type(None))
    if origin in (list, tuple):
        return isinstance(value, origin) and all(fits(of[0], element) for element in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(name, of[0]) and fits(of[1], element) for name, element in value.items()
        )
    if dataclasses.is_dataclass(hint):
        return isinstance(value, hint) and not misfits(value)  # type: ignore[arg-type]
    return isinstance(value, int | float if hint is float else hint)


def misfits(record: Any) -> list[str]:
    """Return a sentence for every field of a record that holds something of another type."""
    hints = typing.get_type_hints(type(record))
    return [
        f"{name}: {getattr(record, name)!r} does not fit"
        for name, hint in hints.items()
        if not fits(hint, getattr(record, name))
    ]
