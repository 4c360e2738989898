"""Opens feature tables on two ranks and counts what each hashes: `store_worker.py WORKSPACE`.

Started by test_store.py, once with whole tables and once with a changed one.
"""

import json
import sys
from pathlib import Path
from typing import Any

from embedding.features import opening, store
from recsys.runtime.collectives import gather
from recsys.runtime.env import start, stop
from tests.embedding.features.test_store import manifest_of


def main() -> None:
    """Open two tables; rank 0 prints what every rank hashed, read and raised."""
    workspace = Path(sys.argv[1])
    env = start("cpu", timeout_seconds=60)
    hashed: list[str] = []
    sha256_of = store.sha256_of

    def counted(path: Path) -> str:
        hashed.append(path.parent.name)
        return sha256_of(path)

    store.sha256_of = counted
    result: dict[str, Any] = {"error": None, "rows": {}}
    try:
        tables = opening.open_features(workspace, ["text", "style"], manifest_of())
        result["rows"] = {name: table.read(3, 5).tolist() for name, table in tables.items()}
    except ValueError as error:
        result["error"] = f"{type(error).__name__}: {error}"
    ranks = gather(lambda: result | {"hashed": hashed})
    if env.is_first:
        print("RESULT " + json.dumps(ranks), flush=True)
    stop()


if __name__ == "__main__":
    main()
