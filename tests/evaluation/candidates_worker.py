"""Draws candidates of a prepared split on every rank: `torchrun candidates_worker.py WORKSPACE MAX_ROWS`.

Started by test_candidates.py. Rank 0 prints what each rank drew.
"""

import json
import sys
from pathlib import Path
from typing import Any

from recsys.data.dataset import Dataset
from recsys.evaluation.candidates import Candidates, RankingConfig, draw_candidates
from recsys.runtime.env import start, stop
from recsys.runtime.ranks import all_ranks
from recsys.schema import read_manifest


def described(candidates: Candidates) -> dict[str, Any]:
    """Return candidates as JSON holds them."""
    return {
        "users": candidates.user_row_N.tolist(),
        "items": candidates.item_row_N.tolist(),
        "relevant": candidates.relevant_N.tolist(),
        "templates": candidates.templates
        .column("row_id")
        .to_numpy()[candidates.template_N]
        .tolist(),
        "is_full": candidates.is_full,
    }


def main() -> None:
    """Draw on both ranks."""
    workspace = Path(sys.argv[1])
    env = start("cpu", timeout_seconds=60)
    ranks = all_ranks()
    manifest = read_manifest(workspace)
    dataset = Dataset(workspace / "prepared", manifest, split="test", features=[])
    config = RankingConfig(num_users=9, num_negatives=5, max_rows=int(sys.argv[2]))
    candidates = draw_candidates(dataset, config=config, seed=4, ranks=ranks)
    assert candidates is not None
    every = ranks.gather(described(candidates))
    if env.is_first:
        print("RESULT " + json.dumps(every), flush=True)
    stop()


if __name__ == "__main__":
    main()
