"""Starts a training on pretended hosts up to its first batch; counts what every rank reads of the data.

`start_reads.py WORKSPACE RANKS_A_HOST`, started by test_start_reads.py. Bytes are those of read() calls;
memory-mapped pages are not among them.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recsys.run.config import read_run_config
from recsys.run.training import build_loaders, open_run
from recsys.runtime.collectives import gather
from recsys.runtime.env import Env, start, stop

FEATURES = ["user_id", "item_id", "artist", "tags", "history"]


class Counter:
    """Files of a workspace that this process opens, and the bytes that it reads."""

    def __init__(self, workspace: Path):
        """Count from now on."""
        self.opened: list[str] = []
        self.parts: list[str] = []
        sys.addaudithook(self._note)
        own: Any = pq.ParquetFile

        def counted(path: Any, *args: Any, **kwargs: Any) -> Any:
            self.parts.append(Path(path).name)
            return own(path, *args, **kwargs)

        pq.ParquetFile = counted
        self._workspace = str(workspace)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(self._workspace):
            self.opened.append(str(arguments[0]))

    def of(self, work: Callable[[], object]) -> dict[str, int]:
        """Return what `work` opens and reads, by kind."""
        self.opened.clear()
        self.parts.clear()
        begun = bytes_read()
        work()
        return {
            "files": len(self.opened),
            "feature_files": sum("/features/" in name for name in self.opened),
            "vocabularies": sum("/vocab/" in name for name in self.opened),
            "manifests": sum(name.endswith("manifest.json") for name in self.opened),
            "parts": len(self.parts),
            "bytes": bytes_read() - begun,
        }


def bytes_read() -> int:
    """Bytes of all read() calls of this process so far."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def begin(workspace: Path, env: Env) -> list[Any]:
    """Open run and data as launch/train.py does, and take the first batch."""
    config = read_run_config({"run": {"name": "reads"}, "train": {"global_batch_size": 1024}})
    loader, _ = build_loaders(open_run(workspace, config, env), FEATURES)
    batches = loader.batches(0)
    next(batches)
    return [loader, batches]


def kept_open() -> int:
    """Parquet files that this process has open or mapped."""
    descriptors = [
        os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()
    ]
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return sum(name.endswith(".parquet") for name in {*descriptors, *mapped})


def main() -> None:
    """Start twice, the second time counted: imports are read by the first. Print every rank's counts."""
    workspace, ranks_a_host = Path(sys.argv[1]), int(sys.argv[2])
    local_rank = int(os.environ["RANK"]) % ranks_a_host
    os.environ |= {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(ranks_a_host)}
    env = start("cpu")
    counter = Counter(workspace)
    held: list[Any] = []
    counter.of(lambda: held.append(begin(workspace, env)))
    counts = counter.of(lambda: held.append(begin(workspace, env)))
    ranks = gather(lambda: counts | {"kept_open": kept_open()})
    if env.is_first:
        print("RESULT " + json.dumps(ranks), flush=True)
    stop()


if __name__ == "__main__":
    main()
