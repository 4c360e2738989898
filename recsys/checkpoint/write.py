"""Writing of checkpoints, in a format that fits any number of ranks and any sharding plan.

A table is stored as chunks, each a rectangle of rows and columns with its optimizer state; a reader
takes from the chunks whatever its own shards cover. In: the Snapshot of every rank.
Called by saver.py; read.py reads what this writes.

    checkpoints/step-00000042/
      index.json             chunks of every table, step counts, loop state
      tables-rank00000.safetensors   this rank's chunks
      dense.safetensors      dense weights (rank 0)
      dense-optimizer.pt     dense optimizer state (rank 0, tensors only)
      ids.safetensors        id maps of tables with a fixed capacity, if there are any (rank 0)
      random-rank00000.pt    random state of each rank
      manifest.json          size and sha256 of every file above; written last (integrity.py)

The folder is written under a hidden name and renamed: it is complete or it does not exist.
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save, save_file

from recsys.checkpoint.integrity import (
    describe_file,
    point_to_best,
    prune,
    write_manifest,
)
from recsys.checkpoint.snapshot import Snapshot, tables_file, take_snapshot
from recsys.checkpoint.state import ID_MAPS, TrainState
from recsys.errors import StorageError
from recsys.files import folder_beside, replace_folder, write_json
from recsys.runtime.collectives import gather, share, sharing_errors
from recsys.runtime.env import Env
from recsys.sharding.apply import ShardedRanker


def write_checkpoint(
    folder: Path,
    snapshot: Snapshot,
    *,
    env: Env,
    keep_last: int,
    best: bool,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write a checkpoint below `folder` and return its path; all ranks call this.

    Args:
        folder: the run's checkpoints/ folder.
        keep_last: newest checkpoints kept; the best one is kept besides.
        best: this step has the best validation so far; `best.json` will name it.
        group: of all ranks, where a thread beside the main one calls this.

    Raises:
        StorageError: a file could not be written, on whichever rank; raised on every rank. Nothing of
            this checkpoint is left, and those before it are as they were; so after any other error.
        RankError: another rank failed in another way.
    """
    state = snapshot.index["state"]
    final = folder / f"step-{state['step']:08d}"
    with ExitStack() as stack:

        def opened() -> Path:
            with _naming_space(folder, snapshot):
                return stack.enter_context(folder_beside(final))

        beside = share(opened, group)

        def written() -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
            with _naming_space(beside, snapshot):
                return snapshot.chunks, _write_part(beside, snapshot, env)

        parts = gather(written, group)
        with sharing_errors(group), _naming_space(beside, snapshot):
            if env.is_first:
                chunks = [chunk for part, _ in parts for chunk in part]
                write_json(beside / "index.json", {**snapshot.index, "chunks": chunks})
                files = {"index.json": describe_file(beside / "index.json")}
                write_manifest(beside, files | {n: f for _, p in parts for n, f in p.items()})
                replace_folder(beside, final)
                if best:
                    point_to_best(folder, final.name, state["best_metric"])
                prune(folder, final, keep_last)
    return final


def save_checkpoint(
    folder: Path, *, sharded: ShardedRanker, state: TrainState, env: Env, keep_last: int, best: bool
) -> Path:
    """Write a checkpoint of `state.step` below `folder` at once; all ranks call this."""
    snapshot = take_snapshot(sharded, state, env, None)
    return write_checkpoint(folder, snapshot, env=env, keep_last=keep_last, best=best)


def _write_part(folder: Path, snapshot: Snapshot, env: Env) -> dict[str, dict[str, Any]]:
    """Write this rank's files and return their manifest entries.

    Raises:
        StorageError: a file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {f"random-rank{env.rank:05d}.pt": _pickled(snapshot.random)}
    if env.is_first:
        contents["dense.safetensors"] = save(snapshot.dense)
        contents["dense-optimizer.pt"] = _pickled(snapshot.dense_optimizer)
        if snapshot.id_maps:
            contents[ID_MAPS] = save(snapshot.id_maps)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    try:
        save_file(snapshot.tables, folder / tables_file(env))
    except SafetensorError as error:
        raise StorageError(f"{tables_file(env)}: {error}") from error
    return {name: describe_file(folder / name) for name in [*contents, tables_file(env)]}


def _pickled(values: Any) -> bytes:
    """Bytes of torch.save, of tensors and plain values only (read with weights_only)."""
    stream = io.BytesIO()
    torch.save(values, stream)
    return stream.getvalue()


@contextmanager
def _naming_space(folder: Path, snapshot: Snapshot) -> Iterator[None]:
    """Say of a refused write how much space is needed and free.

    Raises:
        StorageError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        raise StorageError(
            f"{folder.parent}: the checkpoint of step {snapshot.index['state']['step']:,} cannot be "
            f"written ({error}); the tables of this rank take {snapshot.num_bytes:,} bytes, "
            f"{shutil.disk_usage(there).free:,} are free there. The checkpoints before it are whole: "
            f"free some space, lower train.keep_last, or move the workspace (workspace=), and start "
            f"the same command again"
        ) from error
