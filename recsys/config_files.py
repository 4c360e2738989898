"""Configuration files: YAML read safely, whoever wrote it, and what a file may refer to.

In: a file or a folder of recipes and presets. Out: plain values, or an error that names
the file. Called by recsys/job.py before Hydra sees a folder, and wherever a YAML file is read.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from recsys.errors import UserError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_DEPTH = 50
"""Of lists and mappings in each other, in a YAML file."""
_REFERENCE = re.compile(r"\$\{(workspace|data\.name)\}")
_MAX_REFERENCES = 3
"""In one text; what two names can make of it stays short."""


def check_config_folder(
    folder: Path, *, is_ours: bool = False, groups: Collection[str] | None = None
) -> None:
    """Refuse YAML files that reach beyond their group: they may come from a stranger.

    Hydra makes objects of any class where its own section says so (callbacks, launchers, log
    handlers), and interpolations read the environment. Recipes and presets need neither: they may
    refer to ${workspace} and ${data.name} and to nothing else.

    Args:
        folder: its files are looked at, also behind symbolic links.
        is_ours: files at the top are the jobs' own and may have a hydra section.
        groups: folders that are groups of presets; others are not looked at, and no file may refer to
            them. None: every folder is a group.

    Raises:
        UserError: names every file and key.
    """
    problems = []
    for path in _yaml_files(folder, groups):
        if not (is_ours and path.parent == folder):
            problems += [f"{path}: {problem}" for problem in _reaching_beyond(path, groups)]
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def _yaml_files(folder: Path, groups: Collection[str] | None) -> Iterator[Path]:
    """Yield the YAML files of a folder and its groups, behind links too; every real folder once."""
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(
            f for f in folders if os.path.realpath(os.path.join(place, f)) not in seen
        )
        if groups is not None and Path(place) == folder:
            folders[:] = [f for f in folders if f in groups]
        seen |= {os.path.realpath(os.path.join(place, f)) for f in folders}
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".yaml"))


def _reaching_beyond(path: Path, groups: Collection[str] | None) -> list[str]:
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
                problems += _foreign_groups(entries, groups)
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


def _foreign_groups(entries: list[Any], groups: Collection[str] | None) -> list[str]:
    """Return a sentence for every entry of a defaults list that leads to a folder which is no group."""
    found = []
    for entry in entries:
        for name in entry if isinstance(entry, dict) else [entry]:
            place = str(name).removeprefix("optional ").removeprefix("override ").strip()
            is_foreign = place.startswith("/") and groups is not None
            is_foreign = is_foreign and re.split("[/@:]", place[1:])[0] not in (groups or ())
            if is_foreign or ".." in place:
                known = ", ".join(sorted(groups or ())) or "folders of presets"
                found.append(f"defaults {place!r}: expected one of {known}")
    return found


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
