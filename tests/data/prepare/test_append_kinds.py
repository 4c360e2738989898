"""Appended logs of every kind: without users and items, without times, with lists and weights."""

import numpy as np
import pyarrow.parquet as pq

from recsys.config import from_config
from recsys.data.dataset import Dataset
from recsys.data.recipe import Recipe
from tests.data.small_days import appended, ids_of, prepared_base

CLICKS = {
    "file": "log",
    "label": "y",
    "weight": "w",
    "features": {
        "site": {"min_count": 2},
        "page": {"hash_rows": 7},
        "tags": {"kind": "id_list"},
        "price": {"kind": "numeric", "quantiles": 4},
    },
}


def write(source, name, header, rows):
    (source / "log").mkdir(parents=True, exist_ok=True)
    lines = [",".join(map(str, row)) for row in rows]
    (source / "log" / f"{name}.csv").write_text("\n".join([header, *lines, ""]))


def clicks(day, num_rows, rng):
    """Rows of a click log; some of a day's tags and sites were never there before."""
    return [
        (
            f"s{rng.integers(4 + day)}",
            f"p{rng.integers(9)}",
            "|".join(f"t{tag + day}" for tag in rng.integers(3, size=rng.integers(4))),
            rng.integers(1, 3),
            rng.integers(100),
            rng.integers(2),
        )
        for _ in range(num_rows)
    ]


def test_a_log_of_clicks_is_appended_with_its_lists_weights_and_cuts(tmp_path, rng):
    node = {"name": "clicks", "source": str(tmp_path / "raw"), "interactions": CLICKS}
    made = from_config(Recipe, {**node, "split": {"strategy": "random"}}, "data")
    days = [clicks(day, 12 if day else 60, rng) for day in range(3)]
    write(tmp_path / "raw", 0, "site,page,tags,w,price,y", days[0])
    manifest = prepared_base(made, tmp_path / "w")
    cuts = manifest.table("price").cuts
    for day in (1, 2):
        before = {name: ids_of(tmp_path / "w", name) for name in ("tags", "site")}
        write(tmp_path / "raw", day, "site,page,tags,w,price,y", days[day])
        manifest = appended(made, tmp_path / "w")
        after = {name: ids_of(tmp_path / "w", name) for name in before}
        assert all(ids[: len(before[name])] == before[name] for name, ids in after.items())
        (file,) = manifest.splits[manifest.split_named("next")].files
        rows = pq.read_table(tmp_path / "w" / "prepared" / file).sort_by("row_id").to_pylist()
        for row, (site, _, tags, weight, price, label) in zip(rows, days[day], strict=True):
            assert [after["tags"][tag] for tag in row["tags"]] == [t for t in tags.split("|") if t]
            assert after["site"][row["site"]] in (site, None)
            assert row["price"] == 1 + sum(cut < price for cut in cuts)
            assert (row["sample_weight"], row["label"]) == (weight, label)
    assert manifest.history is None and manifest.table("price").cuts == cuts
    longest = max(len([t for t in row[2].split("|") if t]) for rows in days for row in rows)
    assert {f.name: f.max_ids for f in manifest.features}["tags"] == longest
    # Sites of training and windows that were seen once wait for a second row; a row is never lost.
    waiting = pq.read_table(tmp_path / "w" / "prepared" / "waiting" / "site.parquet").to_pylist()
    assert all(line["count"] == 1 and line["id"] not in after["site"] for line in waiting)


def test_a_log_without_times_is_appended_in_the_order_of_its_files(tmp_path):
    node = {
        "name": "ratings",
        "source": str(tmp_path / "raw"),
        "interactions": {"file": "log", "user_id": "u", "item_id": "i", "label": "y"},
        "split": {"strategy": "random"},
        "history": {"max_length": 4, "recent_length": 1, "scope": "train"},
    }
    made = from_config(Recipe, node, "data")
    log = [("u1", "i1", 1), ("u1", "i2", 1), ("u2", "i1", 0), ("u2", "i3", 1)] * 5
    write(tmp_path / "raw", 0, "u,i,y", log)
    prepared_base(made, tmp_path / "w")
    write(tmp_path / "raw", 1, "u,i,y", [("u1", "i5", 1), ("u3", "i1", 1), ("u1", "i1", 0)])
    appended(made, tmp_path / "w")
    write(tmp_path / "raw", 2, "u,i,y", [("u3", "i2", 1), ("u1", "i1", 0), ("u4", "i1", 1)])
    manifest = appended(made, tmp_path / "w")
    data = Dataset(
        tmp_path / "w" / "prepared", manifest, split="window_0002", features=["user_id", "history"]
    )
    table = data.read(0, 3).sort_by("row_id")
    users, items = (ids_of(tmp_path / "w", name) for name in ("user_id", "item_id"))
    rows, ends = (table.column(name).to_numpy() for name in ("user_row", "history_end"))
    assert [users[row] for row in rows] == ["u3", "u1", "u4"]
    values, lengths = data.history_ids(data.features[1], rows, ends)
    seen = [[items[row] for row in part] for part in np.split(values, np.cumsum(lengths)[:-1])]
    assert seen[0] == ["i1"] and seen[2] == []
    assert len(seen[1]) == 4 and seen[1][-1] == "i5" and set(seen[1][:3]) <= {"i1", "i2"}
