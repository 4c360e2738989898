"""Segments of a small prepared log, told by hand."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.config import from_config
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.segments import (
    ROW_COLUMNS,
    UNKNOWN,
    ItemCounts,
    SegmentsConfig,
    read_by_row_id,
    segments,
)
from tests.data.small_log import prepared, recipe, write_source

# (items: year 1980 or before / to 2000 / later; a row per rating)
ITEMS = """item_id,title,image,genres,year,lang,by
10,Ten,a.png,red|round,1990,en,Ada
20,\u5341\u4e8c,b.png,red,2005,zh,Ben
30,\u304b\u306a,,blue|round|red,,ja,Ada
40,Forty,sub/d.png,,1971,en,
50,Never seen,e.png,green,2010,en,Ada
"""


NO_ROW = "row 0: not admitted, or forgotten"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segments")
    made = recipe(
        write_source(folder / "raw", items=ITEMS),
        items__artist="by",
        items__features={
            "genres": {"kind": "id_list"},
            "year": {"kind": "numeric", "cuts": [1980, 2000]},
            "lang": {},
        },
    )
    manifest, workspace = prepared(folder, made)
    return manifest, workspace / "prepared"


def rows_of(world, split="train"):
    manifest, folder = world
    files = [folder / name for name in manifest.splits[split].files]
    return pq.read_table(files[0])


def found(world, split="train", has_vector=None, first_time=None, id_maps=None, **settings):
    manifest, folder = world
    rows = rows_of(world, split)
    columns = {n: rows.column(n).to_numpy() for n in ("row_id", "user_row", "item_row")}
    families = {}
    for family, name, mask in segments(
        prepared=folder,
        manifest=manifest,
        row_values=read_by_row_id(folder, manifest, split, columns["row_id"], ROW_COLUMNS),
        user_row_N=columns["user_row"],
        item_row_N=columns["item_row"],
        item_counts=ItemCounts(
            train_count_I=np.load(folder / "items" / "train_count.npy"),
            drawn_count_I=np.load(folder / "items" / "drawn_count.npy"),
        ),
        has_vector=has_vector or {},
        config=SegmentsConfig(**settings),
        first_time_R=first_time,
        id_maps=id_maps or {},
    ):
        families.setdefault(family, {})[name] = mask
    return columns, families


def items_of(world, columns):
    """The raw item id of every row."""
    table = pq.read_table(world[1] / "items.parquet", columns=["item_id"])
    ids = table.column(0).to_pylist()
    return np.array([ids[row] for row in columns["item_row"]])


def test_every_family_the_data_can_tell_is_there(world):
    _, families = found(world, has_vector={"semantic": np.ones(6, bool)})
    assert list(families) == [
        "training rows of the item",
        "earlier positives of the user",
        "modalities of the item",
        "tag of the item",
        "artist of the item",
        "script of the item's text",
        "genres of the item",
        "lang of the item",
        "time",
    ]


def test_segments_of_one_answer_hold_every_row_once(world):
    for split in ("train", "test"):
        columns, families = found(world, split, num_values=9)
        for family in (
            "training rows of the item",
            "earlier positives of the user",
            "script of the item's text",
            "lang of the item",
            "time",
        ):
            total = np.sum(list(families[family].values()), axis=0)
            assert total.tolist() == [1] * len(columns["row_id"]), family


def test_items_are_unseen_rare_common_or_popular_by_their_training_rows(world):
    columns, families = found(world, "test", rare_rows=1)
    counts = np.load(world[1] / "items" / "train_count.npy")[columns["item_row"]]
    bounds = families["training rows of the item"]
    assert bounds["unseen (0)"].tolist() == (counts == 0).tolist()
    assert bounds["rare (1 to 1)"].tolist() == (counts == 1).tolist()
    popular = next(mask for name, mask in bounds.items() if name.startswith("popular"))
    assert popular.tolist() == (counts >= max(2, counts.max())).tolist() or not popular.any()


def test_rows_are_told_apart_by_the_age_that_their_item_has_then(world):
    columns, _ = found(world)
    times = rows_of(world).column("timestamp").to_numpy()
    first = np.full(world[0].num_item_rows, 20)
    _, families = found(world, first_time=first, age_days=[1.0, 50 / 86_400])
    ages = families["age of the item"]
    known = columns["item_row"] > 0
    expected = {
        "under 0.000578704 days": times - 20 < 50,
        "0.000578704 to 1 days": times - 20 >= 50,
        "1 days or more": times < 0,
    }
    found_rows = {name: mask.tolist() for name, mask in ages.items() if name != UNKNOWN}
    assert found_rows == {name: (mask & known).tolist() for name, mask in expected.items()}
    assert 0 < sum(found_rows["under 0.000578704 days"]) < known.sum()


def test_rows_of_ids_without_a_table_row_are_a_segment(world):
    columns, _ = found(world)
    rows = np.zeros(world[0].num_item_rows, np.int32)
    rows[2:4] = [2, 1]
    _, families = found(world, id_maps={"item_id": rows})
    own, row_0 = (families["table row of the item"][n] for n in ("its own", NO_ROW))
    is_own = np.isin(columns["item_row"], [2, 3])
    assert own.tolist() == is_own.tolist() and is_own.any()
    assert row_0.tolist() == (~is_own & (columns["item_row"] > 0)).tolist()


def test_drawn_negatives_and_unknown_items_are_neither_seen_nor_unseen():
    counts = ItemCounts(
        train_count_I=np.array([357, 4, 0, 0]), drawn_count_I=np.array([0, 50, 50, 0])
    )
    kinds = counts.kinds(np.array([0, 1, 2, 3, 0]))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in kinds.items()} == {
        "seen_in_training": [1],
        "unseen_in_training": [3],
        "only_drawn_as_negatives": [2],
        "unknown_to_the_vocabulary": [0, 4],
    }


def test_what_is_unknown_is_a_segment_of_its_own_in_every_family(world):
    manifest, folder = world
    row_id = rows_of(world, "test").column("row_id").to_numpy()
    item_row = np.arange(len(row_id))
    user_row = 1 - np.minimum(item_row, 1)
    has = np.ones(manifest.num_item_rows, bool)
    has[[0, 1]] = False
    train_count = np.load(folder / "items" / "train_count.npy")
    train_count[0] = 357
    found = {
        (segment.family, segment.name): np.flatnonzero(segment.mask_N).tolist()
        for segment in segments(
            prepared=folder,
            manifest=manifest,
            row_values=read_by_row_id(folder, manifest, "test", row_id, ROW_COLUMNS),
            user_row_N=user_row,
            item_row_N=item_row,
            item_counts=ItemCounts(
                train_count_I=train_count, drawn_count_I=np.array([0, 0, 0, 0, 0, 9])
            ),
            has_vector={"style": has},
            config=SegmentsConfig(),
        )
    }
    items = "training rows of the item"
    assert found[items, UNKNOWN] == found["modalities of the item", UNKNOWN] == [0]
    assert not any(
        0 in rows
        for (family, name), rows in found.items()
        if family in (items, "modalities of the item") and name != UNKNOWN
    )
    assert found["modalities of the item", "no style"] == [1]
    assert found["earlier positives of the user", UNKNOWN] == item_row[1:].tolist()
    assert found["earlier positives of the user", "none"] == []
    assert (items, "only drawn as negatives (0)") in found


def test_history_is_what_the_row_may_see(world):
    _, families = found(world, short_history=1)
    ends = rows_of(world).column("history_end").to_numpy()
    bounds = families["earlier positives of the user"]
    assert bounds["none"].tolist() == (ends == 0).tolist()
    assert bounds["short (1 to 1)"].tolist() == (ends == 1).tolist()
    assert bounds["long (2 or more)"].tolist() == (ends > 1).tolist()


def test_tags_artists_languages_and_scripts_are_those_of_the_item(world):
    columns, families = found(world)
    items = items_of(world, columns)
    tags = families["tag of the item"]
    assert tags["red"].tolist() == np.isin(items, ["10", "20", "30"]).tolist()
    assert tags["round"].tolist() == np.isin(items, ["10", "30"]).tolist()
    assert families["genres of the item"]["red"].tolist() == tags["red"].tolist()
    assert families["artist of the item"]["Ada"].tolist() == np.isin(items, ["10", "30"]).tolist()
    assert families["lang of the item"]["en"].tolist() == np.isin(items, ["10", "40"]).tolist()
    scripts = families["script of the item's text"]
    assert scripts["Japanese kana"].tolist() == (items == "30").tolist()
    assert scripts["Chinese characters, no kana"].tolist() == (items == "20").tolist()


def test_an_attribute_shows_its_most_frequent_values_only(world):
    _, families = found(world, num_values=1)
    assert list(families["tag of the item"]) == ["red"]
    assert len(families["lang of the item"]) == 1


def test_items_without_a_vector_are_a_segment(world):
    columns, _ = found(world)
    has = np.ones(6, bool)
    has[columns["item_row"][0]] = False
    _, families = found(world, has_vector={"style": has, "text": np.ones(6, bool)})
    missing = families["modalities of the item"]
    expected = columns["item_row"] == columns["item_row"][0]
    assert missing["no style"].tolist() == expected.tolist()
    assert missing["all there"].tolist() == (~expected).tolist()
    assert not missing["no text"].any(), "an empty segment is a segment"


def test_row_values_come_in_the_order_of_the_rows_asked_for(world):
    manifest, folder = world
    rows = rows_of(world)
    ids = rows.column("row_id").to_numpy()[::-1]
    values = read_by_row_id(folder, manifest, "train", ids, ["timestamp", "unknown"])
    assert list(values) == ["timestamp"]
    assert values["timestamp"].tolist() == rows.column("timestamp").to_pylist()[::-1]


def test_predictions_of_another_data_set_are_refused(world):
    manifest, folder = world
    with pytest.raises(ValueError, match="row 999 was scored and is not in the split 'test'"):
        ids = np.array([rows_of(world, "test").column("row_id")[0].as_py(), 999])
        read_by_row_id(folder, manifest, "test", ids, ["timestamp"])


def test_bad_settings_are_named_all_at_once():
    bad = {"rare_rows": 0, "popular_share": 1.0, "min_of_each_class": 0}
    with pytest.raises(ValueError) as caught:
        from_config(EvaluateConfig, {"segments": bad}, "")
    for key in ("rare_rows=0", "popular_share=1.0", "min_of_each_class=0"):
        assert f"segments.{key}" in str(caught.value)
