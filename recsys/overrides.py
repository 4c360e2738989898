"""Overrides: the `key=value` arguments of a job, between what people type, Hydra's grammar and a shell.

In: arguments as they were typed, or a key and a value. Out: arguments that Hydra
reads as they were meant, whatever their text looks like. Called by recsys/job.py for every job, by
recsys/study/ for the jobs that a study starts, and by `next:` lines.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from recsys.config import unknown_key
from recsys.config_types import type_at, without_none
from recsys.errors import UserError

_OVERRIDE = re.compile(r"\+{0,2}([^=~+\s-][^=\s]*)=(.*)", re.DOTALL)
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
_WORDS = ("null", "true", "false", "nan", "inf")


def quoted(text: str) -> str:
    """Return text in quotes that Hydra's grammar reads back as it is; `${...}` stays a reference."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def override(key: str, value: Any) -> str:
    """Return `key=value` as Hydra reads it back: the very text, number, truth value, list or None."""
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    # OmegaConf reads `${` in a quoted string too, unless a backslash precedes it.
    return quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))


def typed(
    arguments: Sequence[str],
    schemas: Sequence[type],
    is_group: Callable[[str], bool],
    *,
    values_too: bool = True,
) -> list[str]:
    """Return overrides in which every value that a schema calls text is text, whatever it looks like.

    `run.name=1e3`, `items=[007,true]` and a path with brackets in it reach the job letter by letter. A
    key of a schema needs no plus, also where the composed configuration does not hold it yet. Text
    in quotes is left to Hydra; `null` is None where the schema allows it.

    Args:
        schemas: dataclasses; their fields are the job's top-level keys.
        is_group: says whether a key names a folder of configs/, whose values are file names.
        values_too: false: values stay as they were typed; keys still need no plus.

    Raises:
        UserError: a key that no schema has at the top; names those there are.
    """
    hints = top_level(schemas)
    written = []
    problems = []
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if match is None or match[1].partition(".")[0] == "hydra":
            written.append(argument)
            continue
        key, value = match[1], match[2]
        first = key.partition(".")[0]
        if is_group(key.partition("@")[0]):
            is_name = values_too and not (value.startswith(("[", "{")) or value.lower() == "null")
            start = argument[: len(argument) - len(value)]
            written.append(start + (_as_text(value) if is_name else value))
        elif first not in hints:
            problems.append(unknown_key(first, "", schemas))
        else:
            hint = type_at(hints[first], key.split(".")[1:])
            written.append(f"++{key}={_typed_value(hint, value) if values_too else value}")
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
    return written


def top_level(schemas: Sequence[type]) -> dict[str, Any]:
    """Return the type of every field of some dataclasses, by name."""
    return {
        name: hint for schema in schemas for name, hint in typing.get_type_hints(schema).items()
    }


def _typed_value(hint: Any, value: str) -> str:
    inner = without_none(hint)
    of, origin = typing.get_args(inner), typing.get_origin(inner)
    stripped = value.strip()
    if inner is not hint and stripped.lower() == "null":
        return stripped
    if inner is str or origin is typing.Literal:
        return _as_text(value)
    if stripped.startswith("[") and stripped.endswith("]"):
        of_element = of[0] if origin is list else Any
        parts = _parts(stripped[1:-1], ",[{")
        return f"[{','.join(_typed_value(of_element, part) for part in parts)}]"
    if stripped.startswith("{") and stripped.endswith("}"):
        entries = []
        for part in _parts(stripped[1:-1], ",:[{"):
            name, colon, element = part.partition(":")
            entries.append(
                name + colon + _typed_value(type_at(inner, [name.strip()]), element.strip())
            )
        return f"{{{','.join(entries)}}}"
    if dataclasses.is_dataclass(inner) and stripped.lower() not in _WORDS:
        return _as_text(value)  # a section's short form, such as plan=path/to/plan.json
    return value


def _as_text(value: str) -> str:
    return value if _QUOTED.fullmatch(value) else quoted(value)


def _parts(text: str, before_quotes: str) -> Iterator[str]:
    """Cut text at its commas, but not within quotes, brackets or braces; blanks around are cut off.

    A bracket that nothing closes is part of the text, and so is a quote within a word: one opens
    only at the start, or after one of the letters of `before_quotes`.
    """
    if not text.strip():
        return
    part, depth, quote, escaped = "", 0, "", False
    nested = text.count("[") == text.count("]") and text.count("{") == text.count("}")
    for letter in text:
        if quote:
            if letter == quote and not escaped:
                quote = ""
            escaped = letter == "\\" and not escaped
        elif letter in "'\"" and (part.rstrip() or ",")[-1] in before_quotes:
            quote = letter
        elif nested and letter in "[{":
            depth += 1
        elif nested and letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            yield part.strip()
            part, depth = "", 0
            continue
        part += letter
    yield part.strip()
