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
from recsys.evaluation.data import EvaluationData
from recsys.evaluation.importance import evaluate_importance
from recsys.evaluation.predict import Predictions
from recsys.evaluation.ranking import evaluate_candidates
from recsys.evaluation.samples import choose_users
from recsys.evaluation.segments import ROW_COLUMNS, SegmentsConfig, read_by_row_id, segments
from recsys.metrics.bootstrap import unit_keys
from recsys.runtime.env import start, stop
from recsys.runtime.partition import Lookup
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
    items = Lookup(item_N[own_N], NUM_ITEMS, ranks)
    found = by_item_attributes(folder / "items.parquet", items, items.times_asked(), 4)
    parts = ranks.gather([(s.family, s.name, own_N[s.mask_N].tolist()) for s in found])
    return [
        [*segments[0][:2], sorted(row for _, _, rows in segments for row in rows)]
        for segments in zip(*parts, strict=True)
    ]


class Masks:
    """Table of a modality that two of three items have a vector in, without a file."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows

    def has_vector(self, rows: np.ndarray) -> np.ndarray:
        """Return which of the rows have a vector."""
        return rows % 3 > 0


def segmented(workspace: Path, ranks: Ranks) -> dict[str, Any]:
    """Return the rows of every segment of a split, and numbers by item and user that the report shows.

    The split's first user has rows on rank 0 alone, and the last rank has only a few.
    """
    manifest = read_manifest(workspace)
    dataset = Dataset(workspace / "prepared", manifest, split="train", features=[])
    tables: Any = {"style": Masks(manifest.num_item_rows)}
    data = EvaluationData(workspace=workspace, dataset=dataset, tables=tables, ranks=ranks)
    rows = dataset.read(0, dataset.num_rows)
    place_N = np.arange(dataset.num_rows)
    own_N = place_N[np.minimum(place_N * ranks.size // 250, ranks.size - 1) == ranks.rank]
    columns = {n: rows.column(n).to_numpy()[own_N] for n in ("row_id", "user_row", "item_row")}
    found = segments(
        prepared=data.prepared,
        manifest=manifest,
        row_values=read_by_row_id(
            data.prepared, manifest, "train", columns["row_id"], ROW_COLUMNS, ranks
        ),
        user_row_N=columns["user_row"],
        item_row_N=columns["item_row"],
        item_counts=data.item_counts,
        has_vector=data.has_vector,
        config=SegmentsConfig(num_values=4, age_days=[1e-4, 1e-3]),
        first_time_R=data.first_time,
        ranks=ranks,
    )
    parts = ranks.gather([(s.family, s.name, own_N[s.mask_N].tolist()) for s in found])
    return {
        "segments": [
            [*same[0][:2], sorted(row for _, _, rows in same for row in rows)]
            for same in zip(*parts, strict=True)
        ],
        "vectors": data.vector_counts,
        "interactions": {
            side: {
                name: np.asarray(v).tolist() for name, v in vars(data.interactions[side]).items()
            }
            for side in ("item", "user")
        },
    }


def shares(workspace: Path, ranks: Ranks) -> dict[str, int]:
    """Return how many items this rank has numbers of, by what they say."""
    manifest = read_manifest(workspace)
    dataset = Dataset(workspace / "prepared", manifest, split="train", features=[])
    tables: Any = {"style": Masks(manifest.num_item_rows)}
    data = EvaluationData(workspace=workspace, dataset=dataset, tables=tables, ranks=ranks)
    items = Lookup(np.arange(ranks.rank, manifest.num_item_rows), manifest.num_item_rows, ranks)
    assert data.first_time is not None
    return {
        "items": manifest.num_item_rows,
        "first time": len(data.first_time),
        "vectors": len(data.has_vector["style"]),
        "rows": len(items.times_asked()),
    }


def looked_up(ranks: Ranks) -> dict[str, Any]:
    """Return whether rows get the numbers of their items, by type, and how often items are asked for."""
    rng = np.random.default_rng(11)
    row_N, own = rng.integers(0, NUM_ITEMS - 9, NUM_ROWS), slice(ranks.rank, None, ranks.size)
    items = Lookup(row_N[own], NUM_ITEMS, ranks)
    numbers = {
        "int64": rng.integers(-(2**62), 2**62, NUM_ITEMS),
        "bool": rng.random(NUM_ITEMS) < 0.5,
        "float32": rng.random(NUM_ITEMS).astype(np.float32),
    }
    right = {
        name: bool((items.of(of_all[items.range]) == of_all[row_N[own]]).all())
        for name, of_all in numbers.items()
    }
    times = np.concatenate(ranks.gather(items.times_asked()))
    nobody = Lookup(np.zeros(0, np.int64), NUM_ITEMS, ranks)
    return {
        "right": right,
        "times": times.tolist(),
        "expected": np.bincount(row_N, minlength=NUM_ITEMS).tolist(),
        "of nothing": len(nobody.of(numbers["int64"][nobody.range])),
    }


def main() -> None:
    """Rank on all ranks."""
    workspace, max_rows = Path(sys.argv[1]), list(map(int, sys.argv[2:]))
    env = start("cpu", timeout_seconds=60)
    ranks = all_ranks()
    found = [ranked(workspace, most, ranks) for most in max_rows]
    every = ranks.gather({
        "ranked": found,
        "texts": texts(workspace, ranks),
        "segmented": segmented(workspace / "with_features", ranks),
        "looked up": looked_up(ranks),
        "shares": shares(workspace / "with_features", ranks),
    })
    if env.is_first:
        print("RESULT " + json.dumps(every), flush=True)
    stop()


if __name__ == "__main__":
    main()
