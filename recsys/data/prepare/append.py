"""Append: new raw files to prepared data, as one window of time after all splits that there are.

In: a Recipe, and `prepared/` made by it. Out: a new `prepared/` with the same rows, numbers of ids and
tables, the new ids after them, and the new rows as the split `window_0001`, `window_0002`, ... Called by
launch/prepare.py with append=true.

The rows before are not read: a day costs its own rows, and one pass over the ids and over the users' last
positives. The exceptions are the first append, which gathers these positives, and negatives that are
drawn, which must be none of a user's earlier positives. Files that have not changed are hard links to
those of the earlier folder.
"""

import dataclasses
import shutil
from contextlib import ExitStack
from pathlib import Path

from recsys.chain import window_name
from recsys.config import check, from_config
from recsys.data.prepare.append_steps import Step, run_steps
from recsys.data.prepare.engine import opened_engine
from recsys.data.prepare.object_store import in_place
from recsys.data.prepare.pipeline import column_checksums
from recsys.data.prepare.window import Earlier, HoldWindow, whole_window
from recsys.data.prepare.writing import link
from recsys.data.recipe import Recipe
from recsys.errors import UserError
from recsys.files import new_folder, sha256_of
from recsys.schema import Manifest, read_manifest, write_manifest


def append(
    recipe: Recipe,
    workspace: Path,
    *,
    since: str | None,
    memory_limit: str,
    threads: int,
    hold: HoldWindow = whole_window,
) -> Manifest:
    """Append the recipe's new files to `<workspace>/prepared/` and return the grown manifest.

    Args:
        since: time from which rows are new, for a log file that has grown; None: all rows of new files.
        memory_limit, threads: of DuckDB, as for `prepare`.
        hold: holder of the window's rows; the result does not depend on it.

    Raises:
        UserError: there is nothing to append to or nothing new, the recipe is another one, or the
            input has problems (all listed at once). `prepared/` stays as it was.
    """
    check(recipe, "data")
    manifest = read_manifest(workspace)
    _check_recipe(recipe, manifest)
    prepared = workspace / "prepared"
    # The tables of own vectors take their places first: after a kill in between, the same append
    # again reads of them the items before alone.
    with new_folder(prepared) as beside, ExitStack() as tables:
        local = in_place(recipe)
        with opened_engine(beside / "work", memory_limit, threads) as engine:
            window = window_name(len(manifest.chain) + 1)
            step = Step(
                engine=engine,
                recipe=local,
                earlier=Earlier(folder=prepared, manifest=manifest, window=window),
                folder=beside,
                hold=hold,
                features=workspace / "features",
                tables=tables,
            )
            grown = run_steps(step, since)
        shutil.rmtree(beside / "work")
        grown = _finished(step, dataclasses.replace(grown, recipe=dataclasses.asdict(recipe)))
        if read_manifest(workspace).identity != manifest.identity:
            raise UserError(
                f"{prepared}: was replaced by another job meanwhile; run launch/prepare.py again"
            )
        write_manifest(beside, grown)
    return grown


def _check_recipe(recipe: Recipe, manifest: Manifest) -> None:
    """Refuse a recipe other than the prepared data's, but for the folder of its files.

    Raises:
        UserError: names the keys that differ, with both values.
    """
    stored = from_config(Recipe, manifest.recipe, "data", stored=True)
    before, now = (_flat(dataclasses.asdict(r)) for r in (stored, recipe))
    differing = sorted(
        key
        for key in before.keys() | now.keys()
        if key != "source" and before.get(key) != now.get(key)
    )
    if differing:
        texts = [f"data.{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in differing]
        raise UserError(
            f"append=true: {manifest.name!r} was prepared by another recipe ({'; '.join(texts)}); "
            f"append with the same one, or prepare anew without append"
        )


def _flat(node: object, key: str = "") -> dict[str, object]:
    """Return the values of nested mappings by dotted key; an empty mapping is a value."""
    if not isinstance(node, dict) or not node:
        return {key: node}
    return {
        inner: value
        for name, below in node.items()
        for inner, value in _flat(below, f"{key}.{name}" if key else str(name)).items()
    }


def _finished(step: Step, grown: Manifest) -> Manifest:
    """Link the files that have not changed; return the manifest with the checksums of all files."""
    checksums = {}
    for old in sorted(step.earlier.folder.rglob("*")):
        name = old.relative_to(step.earlier.folder).as_posix()
        if old.is_dir() or name == "manifest.json" or (step.folder / name).exists():
            continue
        link(old, step.folder / name)
        if name in step.earlier.manifest.checksums:
            checksums[name] = step.earlier.manifest.checksums[name]
    for path in sorted(step.folder.rglob("*")):
        name = path.relative_to(step.folder).as_posix()
        if path.is_file() and name not in checksums:
            checksums[name] = sha256_of(path)
    items = "items.parquet"
    is_new = checksums.get(items) != step.earlier.manifest.checksums.get(items)
    return dataclasses.replace(
        grown,
        checksums=dict(sorted(checksums.items())),
        column_checksums=(
            column_checksums(step.folder, grown)
            if is_new
            else step.earlier.manifest.column_checksums
        ),
    )
