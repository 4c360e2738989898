"""Fails in every exchange on one of two ranks: `torchrun collectives_worker.py FOLDER`.

Started by test_collectives.py. Rank 0 prints what each rank raised, and how long it waited for it.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.checkpoint import saver as checkpoint_saver
from recsys.checkpoint import write as checkpoint_write
from recsys.checkpoint.saver import Saver
from recsys.checkpoint.snapshot import Snapshot
from recsys.checkpoint.state import TrainState
from recsys.errors import NonFiniteError, StorageError, UserError
from recsys.runtime.collectives import gather, share, sharing_errors
from recsys.runtime.env import Env, start, stop
from recsys.runtime.ranks import all_ranks

ERRORS: dict[str, Callable[[], Exception]] = {
    "user": lambda: UserError("key x=1: expected 2"),
    "storage": lambda: StorageError("disk full"),
    "diverged": lambda: NonFiniteError("loss is nan"),
    "refused": lambda: PermissionError(13, "Permission denied", "file"),
    "memory": lambda: MemoryError("3 GiB"),
    "ours": lambda: KeyError("column"),
}


def failing(env: Env, rank: int, error: Exception, value: Any = 1) -> Any:
    """Return a value; raise on one rank."""
    if env.rank == rank:
        raise error
    return value


def block(env: Env, rank: int, error: Exception) -> None:
    """Fail in a block of all ranks."""
    with sharing_errors():
        failing(env, rank, error)


def before_an_exchange(env: Env, rank: int, error: Exception) -> None:
    """Fail while the other rank is within an exchange of the same block."""
    with sharing_errors():
        failing(env, rank, error)
        gather(lambda: env.rank)


def in_work_of_rank_0(env: Env, rank: int, error: Exception) -> None:
    """Fail in a block for rank 0, or beside it."""
    with sharing_errors():
        if env.is_first or env.rank == rank:
            failing(env, rank, error)


def in_gather(env: Env, rank: int, error: Exception) -> None:
    """Fail in what is gathered."""
    gather(lambda: failing(env, rank, error))


def in_share(env: Env, rank: int, error: Exception) -> None:
    """Fail in what is shared."""
    share(lambda: failing(env, rank, error), source=rank)


def in_a_sum(env: Env, rank: int, error: Exception) -> None:
    """Fail before a sum of large arrays, which the other rank begins."""
    with sharing_errors():
        all_ranks().total(failing(env, rank, error, np.ones(100_000)))


def in_rows(env: Env, rank: int, error: Exception) -> None:
    """Fail before an exchange of rows, which the other rank begins."""
    with sharing_errors():
        counts = failing(env, rank, error, [1, 2])
        all_ranks().exchange({"a": np.arange(3), "b": np.ones((3, 2))}, counts)


EXCHANGES = (block, before_an_exchange, in_work_of_rank_0, in_gather, in_share, in_a_sum, in_rows)


def outcome(work: Callable[[], Any]) -> dict[str, Any]:
    """Return what a call raised, and after how many seconds."""
    started = time.monotonic()
    try:
        work()
    except Exception as error:
        raised = [type(error).__name__, str(error), isinstance(error, UserError)]
    else:
        raised = ["", "", False]
    return {"raised": raised, "seconds": time.monotonic() - started}


def save(env: Env, folder: Path, rank: int, where: str, in_background: bool) -> None:
    """Save a checkpoint of one small table, with a MemoryError on one rank."""
    names = {
        "writing": (checkpoint_write, "_write_part"),
        "snapshot": (checkpoint_saver, "take_snapshot"),
        "buffers": (checkpoint_saver, "host_buffers"),
        "manifest": (checkpoint_write, "write_manifest"),
    }
    module, name = names[where]
    snapshot = Snapshot(
        tables={"t/weight": torch.ones(2, 2)},
        chunks=[],
        random={},
        dense={},
        dense_optimizer={},
        id_maps={},
        index={"state": {"step": 7, "best_metric": None}},
    )
    before = {
        (owner, key): getattr(owner, key)
        for owner, key in [
            (checkpoint_saver, "take_snapshot"),
            (checkpoint_saver, "stored_tensors"),
            (module, name),
        ]
    }
    checkpoint_saver.take_snapshot = lambda *_: snapshot
    checkpoint_saver.stored_tensors = lambda *_: {}
    if env.rank == rank:
        setattr(module, name, lambda *_: failing(env, rank, MemoryError("no memory")))
    try:
        with Saver(
            folder,
            sharded=None,
            env=env,
            keep_last=1,
            in_background=in_background,
            on_failure=lambda: None,
            report=lambda step, costs: None,
        ) as saver:
            saver.save(TrainState(step=7), False)
    finally:
        for (owner, key), value in before.items():
            setattr(owner, key, value)


def main() -> None:
    """Run every case on both ranks."""
    folder = Path(sys.argv[1])
    env = start("cpu", timeout_seconds=60)
    cases = {}
    for exchange in EXCHANGES:
        for kind, make in ERRORS.items():
            for rank in range(2):
                cases[f"{exchange.__name__}/{kind}/{rank}"] = outcome(
                    lambda e=exchange, m=make, r=rank: e(env, r, m())
                )
    for where in ("writing", "snapshot", "buffers", "manifest"):
        for in_background in (False, True):
            for rank in range(2):
                if (where == "manifest" and rank == 1) or (
                    where == "buffers" and not in_background
                ):
                    continue  # no such work there
                kind = "background" if in_background else "waiting"
                cases[f"save/{where}/{kind}/{rank}"] = outcome(
                    lambda w=where, b=in_background, r=rank: save(env, folder, r, w, b)
                )
    # After all failures, the exchanges still match.
    values = {
        "gathered": gather(lambda: f"rank {env.rank}"),
        "shared": share(lambda: env.rank),
        "shared from rank 1": share(lambda: env.rank, source=1),
    }
    both = gather(lambda: {"cases": cases, "values": values})
    if env.is_first:
        left = sorted(path.name for path in folder.iterdir())
        print("RESULT " + json.dumps({"ranks": both, "left": left}), flush=True)
    stop()


if __name__ == "__main__":
    main()
