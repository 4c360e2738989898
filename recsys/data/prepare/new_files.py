"""New raw files: those that prepared data has not read yet, and those that cannot be appended to it.

In: a recipe and the manifest, whose chain lists every file read. Out: the files to read, by section.
A file is known by its path below data.source and its size: known files are not opened again. A users or
items file that has changed is read again, whole; a log file only from a stated time on.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from recsys.chain import RawFile
from recsys.data.prepare.checks import Problems
from recsys.data.prepare.inputs import Inputs
from recsys.data.prepare.object_store import source_root
from recsys.data.prepare.raw_files import find_paths
from recsys.data.prepare.raw_paths import RawPath, below, content_of, num_bytes_of
from recsys.data.prepare.sources import Source, differences_of
from recsys.data.prepare.vectors import vectors_key
from recsys.data.recipe import Recipe
from recsys.errors import UserError
from recsys.job import say
from recsys.schema import Manifest

LOG = "interactions"
_SHOWN_DAYS = 3


@dataclass(frozen=True, kw_only=True)
class NewFiles:
    """Raw files that an append reads."""

    paths: dict[str, tuple[RawPath, ...]]
    """By section; sections without any are left out."""
    files: tuple[RawFile, ...]
    """The same files, as the manifest keeps them."""


def read_files(recipe: Recipe, inputs: Inputs) -> tuple[RawFile, ...]:
    """Return the files that were read of every section, as the manifest keeps them."""
    root = source_root(recipe)
    paths = [(section, source.raw_paths) for section, source in sections_of(inputs)]
    paths += [(vectors_key(own.name), own.paths) for own in inputs.vectors]
    return tuple(_raw_file(section, path, root) for section, own in paths for path in own)


def sections_of(inputs: Inputs) -> Iterator[tuple[str, Source]]:
    """Yield the section of the recipe of every source."""
    for source, _ in inputs.logs:
        yield LOG, source
    for name, catalogue in (("items", inputs.items), ("users", inputs.users)):
        if catalogue:
            yield name, catalogue.source


def raw_columns(inputs: Inputs) -> dict[str, dict[str, str]]:
    """Return the types of the raw columns by section, as the manifest keeps them."""
    return {section: dict(source.kinds) for section, source in sections_of(inputs)}


def _raw_file(section: str, path: RawPath, root: RawPath) -> RawFile:
    return RawFile(
        section=section,
        path=below(path, root).as_posix(),
        num_bytes=num_bytes_of(path),
        sha256=content_of(path),
    )


def seconds_of(since: str) -> int:
    """Return the time `since` in whole seconds since 1970; a date without a zone is of UTC.

    Raises:
        UserError: it is neither a number nor a date.
    """
    if re.fullmatch(r"\d+", since):
        return int(since)
    try:
        moment = datetime.fromisoformat(since)
    except ValueError as error:
        raise UserError(
            f"since={since!r}: expected seconds since 1970, or a time such as 2026-11-01 or "
            f'"2026-11-01 12:00"'
        ) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def time_problems(since: str) -> list[str]:
    """Return a text where `since` is no time."""
    try:
        seconds_of(since)
    except UserError as error:
        return [str(error)]
    return []


def find_new_files(recipe: Recipe, manifest: Manifest, since: str | None) -> NewFiles:
    """Return the files of a recipe that prepared data has not read.

    Args:
        since: given, log files that have changed are read too.

    Raises:
        UserError: there is no new log file; one has changed, or its content was read under another
            name (all listed at once).
    """
    root = source_root(recipe)
    known = {(f.section, f.path): f for f in files_read(manifest)}
    if not known and since is None:
        raise UserError(
            f"append=true: {manifest.name!r} was prepared by a version that kept no list of its files; "
            f"give since= (the first time that is new), or prepare it anew once"
        )
    names_by_content = {f.sha256: f.path for f in known.values() if f.section == LOG}
    problems = Problems()
    paths: dict[str, tuple[RawPath, ...]] = {}
    found: list[RawFile] = []
    for section, name in _places(recipe).items():
        new = []
        for path in find_paths(root, name, section):
            earlier = known.get((section, below(path, root).as_posix()))
            if earlier and earlier.num_bytes == num_bytes_of(path):
                continue
            file = _raw_file(section, path, root)
            if section == LOG:
                problems.found += _unusable(path, file, earlier, names_by_content, since)
                names_by_content[file.sha256] = file.path
            new.append(path)
            found.append(file)
        if new:
            paths[section] = tuple(new)
    problems.raise_if_any()
    paths = _with_vectors_by_row(recipe, root, paths, {section for section, _ in known})
    if LOG not in paths:
        num_known = sum(section == LOG for section, _ in known)
        raise UserError(
            f"append=true: no new file for interactions.file={recipe.interactions.file!r} below {root}: "
            f"{num_known:,} were read already; add the files of the new days"
        )
    return NewFiles(paths=paths, files=tuple(found))


def files_read(manifest: Manifest) -> list[RawFile]:
    """Return all files that prepared data and its ancestors have read, the first ones first."""
    files = [known.files for known in manifest.chain] + [manifest.files]
    return [file for read in files for file in read]


def _places(recipe: Recipe) -> dict[str, str]:
    """Return the file, folder or pattern of each section that an append reads."""
    log = recipe.interactions
    if not log.file:
        raise UserError(
            "interactions.file: missing; append=true reads the files of new days from it, since "
            "interactions.files are those of train, valid and test"
        )
    places = {LOG: log.file}
    places |= {"items": recipe.items.file} if recipe.items else {}
    vectors = recipe.items.vectors if recipe.items else {}
    places |= {vectors_key(name): own.file for name, own in vectors.items()}
    return places | ({"users": recipe.users.file} if recipe.users else {})


def _with_vectors_by_row(
    recipe: Recipe, root: RawPath, new: dict[str, tuple[RawPath, ...]], known: Collection[str]
) -> dict[str, tuple[RawPath, ...]]:
    """Return the new files by section, those of vectors by row together with the items files alone.

    Args:
        known: sections of the files that were read earlier.
    """
    paths = dict(new)
    for name, own in (recipe.items.vectors if recipe.items else {}).items():
        key, file = vectors_key(name), root / own.file
        is_by_row = all(path.suffix.lower() == ".npy" for path in new.get(key, (file,)))
        if is_by_row and "items" in new and file.is_file():
            paths[key] = (file,)  # of all rows of the items file, which is read again
        elif is_by_row and "items" not in new and key not in known:
            paths.pop(key, None)  # read by a version that kept no list of them
    return paths


def _unusable(
    path: RawPath,
    file: RawFile,
    earlier: RawFile | None,
    names_by_content: dict[str, str],
    since: str | None,
) -> Iterator[str]:
    """Yield why a log file cannot be appended."""
    if earlier and since is None:
        yield (
            f"{path}: was read already with {earlier.num_bytes:,} bytes and has {file.num_bytes:,} now; "
            f"give since= (the first time that is new) to read the rows that were added, or write "
            f"new days to files of their own"
        )
    elif not earlier and file.sha256 in names_by_content:
        yield (
            f"{path}: has the content of {names_by_content[file.sha256]}, which was read already; "
            f"remove one of the two"
        )


def check_columns(inputs: Inputs, manifest: Manifest) -> None:
    """Refuse files whose columns are of other types than those read earlier.

    JSON lines may lack a key, or have a new one: a key's type alone counts.

    Raises:
        UserError: names the first new file of each section and the columns.
    """
    problems = Problems()
    for section, source in sections_of(inputs):
        expected, own = manifest.raw_columns.get(section), source.kinds
        if expected is None:  # prepared by a version that did not keep them
            continue
        if source.files.kind == "json":
            expected = {name: kind for name, kind in expected.items() if name in own}
            own = {name: kind for name, kind in own.items() if name in expected}
        if differences := differences_of(own, expected):
            problems.found.append(
                f"{source.files.paths[0]}: another schema than the files of {section} that were read "
                f"earlier: {differences}"
            )
    problems.raise_if_any()


def say_missing_days(manifest: Manifest, new: NewFiles) -> None:
    """Warn of days that no folder of hive partitions has, from the last known day on."""
    known = _days_of(f.path for f in files_read(manifest) if f.section == LOG)
    days = _days_of(f.path for f in new.files if f.section == LOG)
    for column in sorted(days.keys() & known.keys()):
        last = max(known[column])
        later = sorted(day for day in days[column] if day > last)
        missing = []
        for before, day in zip([last, *later], later, strict=False):
            missing += [before + timedelta(n) for n in range(1, (day - before).days)]
        if missing:
            shown = ", ".join(day.isoformat() for day in missing[:_SHOWN_DAYS])
            more = f" and {len(missing) - _SHOWN_DAYS:,} more" if len(missing) > _SHOWN_DAYS else ""
            say(
                f"warning: no files for {column}={shown}{more}, between {last} and {later[-1]}: "
                f"their rows cannot be appended later"
            )


def _days_of(paths: Iterable[str]) -> dict[str, set[date]]:
    """Return the days that folders called column=day name, by column; columns of other values not."""
    days: dict[str, set[date]] = {}
    for path in paths:
        for part in path.split("/")[:-1]:
            column, is_given, value = part.partition("=")
            if is_given and re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", value):
                try:
                    days.setdefault(column, set()).add(date.fromisoformat(value))
                except ValueError:  # digits that are no date
                    continue
    return days
