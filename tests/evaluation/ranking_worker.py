"""Ranks candidates of a prepared split by drawn scores: `torchrun ranking_worker.py WORKSPACE MAX_ROWS`.

Started by test_ranking_over_ranks.py. Every rank draws and ranks its own users; scores depend on the user
and the item alone. Rank 0 prints what all ranks found.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.dataset import Dataset
from recsys.evaluation.attributes import by_item_attributes
from recsys.evaluation.candidates import Candidates, RankingConfig, draw_candidates
from recsys.evaluation.config import BootstrapConfig, EvaluateConfig
from recsys.evaluation.importance import evaluate_importance
from recsys.evaluation.predict import Predictions
from recsys.evaluation.ranking import evaluate_candidates
from recsys.evaluation.samples import choose_users
from recsys.evaluation.segments import ROW_COLUMNS, read_by_row_id
from recsys.metrics.bootstrap import unit_keys
from recsys.runtime.env import start, stop
from recsys.runtime.ranks import Ranks, all_ranks
from recsys.schema import Manifest, read_manifest

NUM_ROWS = 700


def drawn_scores(candidates: Candidates) -> np.ndarray:
    """Return a score [N] for every pair, with ties."""
    mixed = candidates.user_row_N * 7919 + candidates.item_row_N * 104_729
    return (mixed % 61 + 10 * candidates.relevant_N) / 100


class Vectors:
    """Item vectors of two numbers, without a file."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors of some rows."""
        rows = np.arange(start, stop)
        return np.stack([np.sin(rows), np.cos(rows * 2)], axis=1)


def ranked(workspace: Path, max_rows: int, ranks: Ranks) -> dict[str, Any]:
    """Return the rankings, lists and sample users of all ranks."""
    manifest = read_manifest(workspace)
    dataset = Dataset(workspace / "prepared", manifest, split="test", features=[])
    config = EvaluateConfig(
        bootstrap=BootstrapConfig(num_replicates=20),
        ranking=RankingConfig(num_users=9, num_negatives=5, max_rows=max_rows, ks=[3, 5]),
    )
    candidates = draw_candidates(dataset, config=config.ranking, seed=4, ranks=ranks)
    assert candidates is not None
    users = candidates.users
    tables: Any = {"style": Vectors()}
    found = evaluate_candidates(
        candidates,
        drawn_scores(candidates),
        train_count_I=np.arange(manifest.num_item_rows) % 5,
        profile_count_U={user: user % 3 + 0.5 for user in users.tolist() if user % 4},
        tables=tables,
        config=config,
        ranks=ranks,
    )
    histories = {user: np.ones(user % 3, np.int64) for user in users.tolist()}
    shown = choose_users(found.best, histories, num_users=3, seed=1, ranks=ranks)
    best = {u: candidates.item_row_N[pairs].tolist() for u, pairs in found.best.items()}
    return {
        "rankings": dataclasses.asdict(found.rankings),
        "lists": None if found.lists is None else dataclasses.asdict(found.lists),
        "shown": shown,
        "best": {user: items for part in ranks.gather(best) for user, items in part.items()},
        "values": values_of_rows(workspace, manifest, dataset, ranks),
        "importance": importance(config, ranks),
    }


def values_of_rows(
    workspace: Path, manifest: Manifest, dataset: Dataset, ranks: Ranks
) -> list[list[int]]:
    """Return row id and columns of every scored row, by row id."""
    ids = dataset.read(0, dataset.num_rows).column("row_id").to_numpy()
    own = np.random.default_rng(6).permutation(ids)[ranks.rank :: ranks.size]
    found = read_by_row_id(
        workspace / "prepared", manifest, "test", own, ["label", *ROW_COLUMNS], ranks
    )
    lines = np.stack([own, *(found[name].astype(np.int64) for name in sorted(found))], axis=1)
    return sorted(line for part in ranks.gather(lines.tolist()) for line in part)


def importance(config: EvaluateConfig, ranks: Ranks) -> list[dict[str, Any]]:
    """Return the importance of two inputs, of drawn rows that are spread over the ranks."""
    rng = np.random.default_rng(8)
    row, user = np.arange(NUM_ROWS), rng.integers(1, 40, NUM_ROWS)
    label = (rng.random(NUM_ROWS) < 0.3).astype(np.uint8)
    score = np.round(np.clip(0.2 + 0.3 * label + 0.4 * rng.random(NUM_ROWS), 0, 1), 2)
    own = rng.permutation(row)[ranks.rank :: ranks.size]
    whole = Predictions(
        row_id=row[own],
        user_row=user[own],
        item_row=row[own],
        label=label[own],
        score=score[own],
        weights=np.zeros((len(own), 0), np.float32),
    )
    shuffled = {
        ("feature", "one"): np.round(score + 0.1 * rng.random(NUM_ROWS), 2).clip(0, 1)[own],
        ("item vector", "two"): rng.permutation(score)[own],
    }
    units = unit_keys(whole.row_id, whole.user_row)
    lines = evaluate_importance(whole, shuffled, units, config, ranks)
    return [dataclasses.asdict(line) for line in lines]


NUM_ITEMS = 60


def write_texts(folder: Path) -> None:
    """Write items.parquet of tags, artists and texts in row groups of seven; many tie in frequency."""
    rng = np.random.default_rng(9)
    words = ["sea", "\u3042\u304a", "\u6d77", "\u043c\u043e\u0440\u0435", None]
    rows = range(1, NUM_ITEMS)
    table = {
        "tags": [None, *([f"t{t}" for t in rng.integers(0, 9, rng.integers(0, 4))] for _ in rows)],
        "artist": [None, *(None if row % 5 == 0 else f"a{row % 13}" for row in rows)],
        "text": [None, *(words[row % 5] for row in rows)],
    }
    types = {"tags": pa.list_(pa.string()), "artist": pa.string(), "text": pa.string()}
    columns = {name: pa.array(table[name], kind) for name, kind in types.items()}
    pq.write_table(pa.table(columns), folder / "items.parquet", row_group_size=7)


def texts(folder: Path, ranks: Ranks) -> list[list[Any]]:
    """Return family, name and rows of every segment by the texts of items."""
    item_N = np.random.default_rng(10).integers(0, NUM_ITEMS, NUM_ROWS)
    own_N = np.arange(NUM_ROWS)[ranks.rank :: ranks.size]
    rows_I = np.bincount(item_N, minlength=NUM_ITEMS)
    found = by_item_attributes(folder / "items.parquet", item_N[own_N], rows_I, 4, ranks)
    parts = ranks.gather([(s.family, s.name, own_N[s.mask_N].tolist()) for s in found])
    return [
        [*segments[0][:2], sorted(row for _, _, rows in segments for row in rows)]
        for segments in zip(*parts, strict=True)
    ]


def main() -> None:
    """Rank on all ranks."""
    workspace, max_rows = Path(sys.argv[1]), list(map(int, sys.argv[2:]))
    env = start("cpu", timeout_seconds=60)
    ranks = all_ranks()
    found = [ranked(workspace, most, ranks) for most in max_rows]
    every = ranks.gather({"ranked": found, "texts": texts(workspace, ranks)})
    if env.is_first:
        print("RESULT " + json.dumps(every), flush=True)
    stop()


if __name__ == "__main__":
    main()
