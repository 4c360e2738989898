"""Exports runs one after the other, opens the bundles, and prints the memory that each step took.

Run by test_large_tables.py as a process of its own. Counted are anonymous pages, which the kernel cannot
drop; pages of memory-mapped files it can.
"""

import json
import sys
import threading
from pathlib import Path

from recsys.export import tables
from recsys.export.export import ExportConfig, export, open_source
from recsys.run.folder import read_run_folder
from recsys.runtime.threads import use_threads
from recsys.schema import read_manifest
from recsys.serving.recommender import Recommender

BLOCK_BYTES = 4 << 20


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


class Peak(threading.Thread):
    """The most anonymous memory while a block runs."""

    def __enter__(self) -> "Peak":
        self.most = anonymous_bytes()
        self._ended = threading.Event()
        self.start()
        return self

    def run(self) -> None:
        while not self._ended.wait(0.002):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def main() -> None:
    use_threads(1)
    tables.BLOCK_BYTES = BLOCK_BYTES
    for place in sys.argv[1:]:
        workspace, _, precision = place.partition(":")
        folder = Path(workspace)
        with Peak(daemon=True) as exporting:
            source = open_source(
                folder, read_run_folder(folder / "runs" / "run"), read_manifest(folder)
            )
            settings = ExportConfig(precision=precision, thumbnail_pixels=0, max_auc_loss=None)
            bundle = export(source, settings, threads=1)
            del source
        before = anonymous_bytes()
        with Peak(daemon=True) as serving:
            recommender = Recommender.open(bundle)
            items = recommender.recommend(likes=["i1", "i2"], k=5).items
        table = bundle / "tables" / "studio.values.npy"
        print(
            json.dumps({
                "exporting": exporting.most,
                "serving": serving.most - before,
                "table": table.stat().st_size,
                "items": len(items),
            })
        )


if __name__ == "__main__":
    main()
