"""Extracts the values of test_extraction.py on every rank: `torchrun extraction_worker.py WORKSPACE`.

Rank 0 prints what each rank passed through the network.
"""

import dataclasses
import json
import sys
from pathlib import Path

from recsys.files import sha256_of
from recsys.runtime.collectives import gather
from recsys.runtime.env import start, stop
from recsys.schema import Manifest
from tests.embedding.features.test_extraction import VALUES, Network, extract


def main() -> None:
    """Extract, and print the counts."""
    workspace = Path(sys.argv[1])
    env = start("cpu")
    manifest = Manifest(
        name="t",
        tables=(),
        features=(),
        splits={},
        num_user_rows=0,
        num_item_rows=len(VALUES) + 1,
        items_checksum="ids",
        checksums={"items.parquet": sha256_of(workspace / "prepared" / "items.parquet")},
    )
    network = Network()
    done = extract(workspace, manifest, network, env=env)
    counts = gather(lambda: len(network.encoded))
    rows = gather(lambda: done.tables["one"].count)
    if env.is_first:
        result = dataclasses.asdict(dataclasses.replace(done, tables={}))
        print("RESULT " + json.dumps({**result, "encoded_by_rank": counts, "num_rows": rows}))
    stop()


if __name__ == "__main__":
    main()
